// Parses JSON without losing digits, and shows it as a tree or a table.
import { bdi, button, catchFocus, element } from "./dom.js";
import { plural } from "./format.js";

const PAGE = 200;
/** Branches of up to this many entries are open from the start, above this depth. */
const SMALL = 20;
const DEPTH = 3;
/** Values of up to this many characters are not broken in tables. */
const SHORT = 24;

/** A number as it is written, because a JavaScript number would have other digits. */
class Written {
  constructor(source) {
    this.source = source;
  }
}

/** Parse JSON. Numbers with more digits than JavaScript's keep them, if the browser can tell. */
export function parse(text) {
  return JSON.parse(text, (_key, value, context) =>
    typeof value === "number" && context?.source !== undefined && String(value) !== context.source
      ? new Written(context.source) : value);
}

const isObject = (value) => value !== null && typeof value === "object" && !(value instanceof Written);
const isRecord = (value) => isObject(value) && !Array.isArray(value);

/** Whether a value is shown as a table: records, or lists of the same length. */
export function isTable(value) {
  if (!Array.isArray(value) || value.length === 0) return false;
  const first = value[0];
  if (Array.isArray(first)) return value.every((row) => Array.isArray(row) && row.length === first.length && row.length > 0);
  return isRecord(first) && value.every(isRecord) && columnsOf(value).length <= 60;
}

function columnsOf(rows) {
  return [...new Set(rows.slice(0, 1000).flatMap((row) => Object.keys(row)))];
}

/** A table of records or lists, which grows by pages. */
export function dataTable(rows, label) {
  const named = !Array.isArray(rows[0]);
  const columns = named ? columnsOf(rows) : rows[0].map((_value, index) => index);
  // Nested values are trees that can be opened.
  const leaf = (value) => (isObject(value) ? tree(value, { open: false }) : bdi(text(value)));
  const cell = (row, column) => (Object.hasOwn(row, column) ? leaf(row[column]) : "");
  // A short value stays in one line, whatever else the table has to make room for.
  const kind = (value) => (isObject(value) || String(text(value ?? null)).length <= SHORT ? "short" : "name");
  const body = element("tbody");
  const head = columns.map((column) => element("th", { scope: "col" }, bdi(named ? column : column + 1)));
  const frame = element("div", { class: "scroller data", role: "group", "aria-label": label, tabindex: 0 },
    element("table", { "aria-label": label }, element("thead", {}, element("tr", {}, head)), body));
  return growing(rows, body, (row) =>
    element("tr", {}, columns.map((column) => element("td", { class: kind(row[column]) }, cell(row, column)))), frame);
}

/** Show a page of items in a container, and a button for the next page. */
function growing(items, container, show, frame = container) {
  const more = button("Show more", add);
  const count = element("p", { class: "empty", role: "status" });
  let shown = 0;
  function add() {
    container.append(...items.slice(shown, shown + PAGE).map(show));
    shown = Math.min(items.length, shown + PAGE);
    more.hidden = shown === items.length;
    catchFocus(document.activeElement === more, frame);
    count.textContent = shown === items.length ? plural(shown, "item") : `${shown} of ${plural(items.length, "item")}`;
  }
  add();
  return element("div", {}, frame, more, items.length > PAGE || frame !== container ? count : null);
}

function text(value) {
  if (value instanceof Written) return value.source;
  return typeof value === "string" ? value : JSON.stringify(value);
}

/** A JSON value as a tree. Branches are built when they are opened. */
export function tree(value, { open = true } = {}) {
  return element("div", { class: "tree" }, isObject(value) ? branch("", value, open ? 0 : DEPTH) : scalar(value));
}

function scalar(value) {
  if (typeof value !== "string") return element("span", { class: "other" }, text(value));
  return element("bdi", { class: "string" }, JSON.stringify(value));
}

function branch(label, value, depth) {
  const entries = Array.isArray(value) ? value.map((item, index) => [index, item]) : Object.entries(value);
  const size = Array.isArray(value) ? `[${plural(entries.length, "item")}]` : `{${plural(entries.length, "key")}}`;
  const details = element("details", {}, element("summary", {}, label, element("span", { class: "key" }, size)));
  const build = () => {
    if (details.childElementCount > 1) return;
    details.append(growing(entries, element("ul", { tabindex: -1 }), ([key, item]) => element("li", {}, entry(key, item, depth + 1))));
  };
  details.addEventListener("toggle", build);
  if (depth === 0 || (depth < DEPTH && entries.length <= SMALL)) {
    build();
    details.open = true;
  }
  return details;
}

function entry(key, item, depth) {
  const name = element("bdi", { class: "key" }, `${key}: `);
  return isObject(item) ? branch(name, item, depth) : [name, scalar(item)];
}
