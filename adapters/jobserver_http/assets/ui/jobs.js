// The list of all jobs, a page at a time.
import { send } from "./api.js";
import { address, button, catchFocus, element, say, section, showError } from "./dom.js";
import { subscribe, throttled } from "./events.js";
import { WAITING } from "./format.js";
import { choice, field, onSubmit } from "./forms.js";
import { unknownFilters } from "./lookups.js";
import { jobTable } from "./tables.js";

const LIMIT = 50;
const FILTERS = ["status", "context", "classPath"];
const STATES = [
  ["", "Any"], [WAITING], ["STARTED", "STARTED or WAITING"], ["RUNNING"], ["RESTARTING", "RESTARTING or WAITING"],
  ["FINISHED"], ["ERROR"], ["KILLED"],
];

export function jobs(page, query) {
  page.title("Jobs");
  const given = Object.fromEntries(FILTERS.map((name) => [name, query.get(name)]).filter(([, value]) => value));
  const filtered = Object.keys(given).length > 0;
  const empty = filtered ? "No job matches the filter." : "No jobs yet.";
  const list = jobTable("Jobs", ["job", "state", "class", "context", "error:wide", "started", "duration"], empty);
  const cursors = [null]; // of the pages up to this one
  let next = null;
  const message = element("div");
  const hints = element("div");
  const newest = button("Newest", () => go(() => cursors.splice(1)));
  const newer = button("Newer", () => cursors.length > 1 && go(() => cursors.pop()));
  const older = button("Older", () => next && go(() => cursors.push(next)));
  const turns = [newest, newer, older];
  const where = element("span", { role: "status", class: "empty" });
  const content = [filters(query), section(`${filtered ? "Matching" : "All"} jobs, newest first`, message, list.root, hints,
    element("div", { class: "actions" }, newest, newer, older, where))];
  page.root.append(...content);

  async function load() {
    const cursor = cursors.at(-1);
    // Pages can be turned faster than the server responds.
    const outdated = () => cursor !== cursors.at(-1);
    try {
      const { rows, following } = await loadPage(given, cursor, page.signal);
      if (outdated()) return;
      next = following;
      list.update(rows);
      showHints(rows.length === 0);
      message.replaceChildren();
      if (!content[0].isConnected) page.root.replaceChildren(...content);
    } catch (error) {
      if (outdated()) return;
      if (error.status === 403) {
        showError(page.root, error);
        return page.live(false);
      }
      list.stopWaiting();
      if (!page.failed(error)) showError(message, error);
    }
    page.live(cursors.length === 1);
    newest.disabled = newer.disabled = cursors.length === 1;
    older.disabled = !next;
    catchFocus(turns.includes(document.activeElement), turns.find(({ disabled }) => !disabled));
    say(where, `Page ${cursors.length}`);
  }
  /** Below an empty list, say which names of the filter do not exist. They are looked up once. */
  async function showHints(wanted) {
    hints.hidden = !wanted;
    if (!wanted || !(given.context || given.classPath) || hints.dataset.known) return;
    hints.dataset.known = "true";
    const href = (name) => jobsAddress({ ...given, ...name });
    hints.replaceChildren(...await unknownFilters(given, href, page.signal).catch(() => []));
  }
  function go(turn) {
    turn();
    next = null; // until the new page is here
    load();
  }
  const refresh = throttled(load, page.signal);
  // Only the first page changes by itself: on older pages nobody wants rows to move.
  subscribe((name) => (cursors.length === 1 || name === "connected") && name !== "callback" && refresh(), page.signal);
  refresh();
}

/** Return the rows of a page, and the cursor of the following one or null. */
async function loadPage(given, cursor, signal) {
  const response = await send(["jobs"], { query: { ...given, limit: LIMIT, cursor }, signal });
  const found = /[?&]cursor=([^&>]+)/.exec(response.headers.get("link") ?? "");
  return { rows: await response.json(), following: found && decodeURIComponent(found[1]) };
}

function jobsAddress(given) {
  return `${address("jobs")}?${new URLSearchParams(given)}`;
}

function filters(query) {
  const status = choice("State", STATES, query.get("status") ?? "");
  const context = field("Context", { value: query.get("context") ?? "", autocomplete: "off" });
  const classPath = field("Class", { value: query.get("classPath") ?? "", autocomplete: "off" });
  const form = element("form", { class: "bar", role: "search", "aria-label": "Filter jobs" },
    status.root, context.root, classPath.root, element("button", {}, "Filter"));
  onSubmit(form, () => {
    const wanted = { status: status.input.value, context: context.input.value.trim(), classPath: classPath.input.value.trim() };
    location.hash = jobsAddress(Object.fromEntries(Object.entries(wanted).filter(([, value]) => value)));
  });
  return form;
}
