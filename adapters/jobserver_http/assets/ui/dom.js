// Builds elements. Strings become text, never markup.

/**
 * Create an element. Attributes with a function as their value are event listeners; those that are
 * null, undefined or false are left out. Children are nodes, strings or numbers; null and "" are skipped.
 */
export function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (typeof value === "function") made.addEventListener(key, value);
    else made.setAttribute(key, value === true ? "" : String(value));
  }
  made.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== "").map(asNode));
  return made;
}

function asNode(child) {
  return child instanceof Node ? child : document.createTextNode(visible(String(child)));
}

/** A string whose characters that reverse text are shown as escapes: without them, it reads as it is. */
export function visible(text) {
  return text.replace(/[\u202a-\u202e\u2066-\u2069]/g, (found) => `\\u${found.charCodeAt(0).toString(16)}`);
}

/** A link to one of this UI's pages: `page("jobs", id)` is `#/jobs/<id>`. */
export function address(...segments) {
  return "#/" + segments.map(encodeURIComponent).join("/");
}

/** A text from outside, whose direction of writing does not affect what is around it. */
export function bdi(text) {
  return element("bdi", {}, text);
}

/** A link to the page of something that has a name. */
export function nameLink(kind, name) {
  return element("a", { class: "name", href: address(kind, name) }, bdi(name));
}

/** A dotted name that may be broken after its dots. */
export function breakable(name) {
  return name.split(/(?<=\.)/).flatMap((part) => [part, element("wbr")]).slice(0, -1);
}

/** A link to another site, or plain text if the URL is not http(s), since it comes from outside. */
export function externalLink(url, text) {
  let protocol = "";
  try {
    protocol = new URL(url).protocol;
  } catch {
    // Not a URL, so it is shown as text.
  }
  if (protocol !== "http:" && protocol !== "https:") return asNode(url);
  return element("a", { href: url, rel: "noreferrer noopener", target: "_blank" }, text);
}

/** A section with a heading that names it. */
export function section(title, ...children) {
  const id = `section-${title.toLowerCase().replace(/[^a-z]+/g, "-")}`;
  return element("section", { "aria-labelledby": id }, element("h2", { id }, title), ...children);
}

/**
 * Replace the children of an element. If one of its links or buttons has the focus, the new one gets it, or the
 * page's heading if there is none.
 */
export function refill(container, ...children) {
  const controls = () => [...container.querySelectorAll("a, button")];
  const focused = controls().indexOf(document.activeElement);
  container.replaceChildren(...children);
  if (focused >= 0) controls()[focused]?.focus();
  catchFocus(focused >= 0);
}

/** If the focus `had` been on something that is gone, give it to `successor`, or else to the page's heading. */
export function catchFocus(had, successor) {
  const now = document.activeElement;
  if (!had || (now !== document.body && now.checkVisibility() && !now.disabled)) return;
  const next = successor?.isConnected && successor.checkVisibility() ? successor : document.querySelector("main h1");
  next.focus({ preventScroll: true });
}

/** Change the text of an element unless it is the same, which screen readers would announce again. */
export function say(place, text) {
  if (place.textContent !== text) place.textContent = text;
}

/** Show an error in `place`, and what it has prevented, unless it is there already. */
export function showError(place, error, failed) {
  const shown = alert(error, failed);
  if (place.textContent !== shown.textContent) place.replaceChildren(shown);
}

/** A text of several lines, which can be scrolled with the keyboard. */
export function preformatted(label, text, attributes = {}) {
  return element("pre", { tabindex: 0, role: "group", "aria-label": label, ...attributes }, text);
}

/** A list of names and values; pairs without a value are left out. */
export function facts(pairs) {
  const shown = pairs.filter(([, value]) => value !== null && value !== undefined && value !== "");
  return element("dl", { class: "facts" },
    shown.map(([name, value]) => element("div", {}, element("dt", {}, name), element("dd", {}, value))));
}

/** A small table that does not change. On small screens, the cells of one with many columns are below each other. */
export function grid(label, titles, rows) {
  const many = titles.length > 4;
  const cell = (shown, at) => element(at ? "td" : "th", { class: "name", scope: at ? null : "row", "data-title": many && titles[at] }, shown);
  return element("div", { class: "scroller" }, element("table", { "aria-label": label, class: many && "stacked" },
    element("thead", {}, element("tr", {}, titles.map((title) => element("th", { scope: "col" }, title)))),
    element("tbody", {}, rows.map((cells) => element("tr", {}, cells.map(cell))))));
}

export function button(text, action, attributes = {}) {
  return element("button", { type: "button", click: action, ...attributes }, text);
}

/** What stands where there is nothing. */
export function nothing(text) {
  return element("p", { class: "empty" }, text);
}

/** Tell screen readers what has happened. */
export function announce(text) {
  document.getElementById("announcements").textContent = text;
}

/** An error as a message that screen readers announce, perhaps with what has `failed` because of it. */
export function alert(error, failed) {
  return element("p", { class: "alert", role: "alert" }, failed ? `${failed}: ${error.message}` : error.message);
}
