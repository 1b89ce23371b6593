// A job's result: a table or a tree if it is JSON of reasonable size, a download in any case.
import { download, send } from "./api.js";
import { alert, button, element, nothing, preformatted, section } from "./dom.js";
import { bytes } from "./format.js";
import { dataTable, isTable, parse, tree } from "./jsontree.js";

const MAX_SIZE = 2_000_000;
const MAX_TEXT = 100_000;

/** Add the result of a finished job to its page. */
export async function showResult(page, id) {
  const path = ["jobs", id, "result"];
  const body = element("div", {}, nothing("Loading …"));
  const failed = (error) => page.failed(error) || body.replaceChildren(alert(error));
  const save = button("Download", () => download(path, `result-${id}`, page.signal).catch(failed));
  const actions = element("div", { class: "actions" }, save);
  try {
    const head = await send(path, { method: "HEAD", signal: page.signal });
    // A proxy that compresses responses may leave the length out.
    const length = head.headers.get("content-length");
    const size = length === null ? null : bytes(Number(length));
    const say = (text) => body.replaceChildren(element("p", {}, text));
    const isJson = head.headers.get("content-type")?.startsWith("application/json");
    if (!isJson) say(size === null ? "A streamed result." : `A streamed result of ${size}.`);
    else if (size === null) say("A result of unknown size, which may be too large to show.");
    else if (Number(length) > MAX_SIZE) say(`A result of ${size}, which is too large to show.`);
    else render(body, actions, await (await send(path, { signal: page.signal })).text());
  } catch (error) {
    failed(error);
  }
  return section("Result", body, actions);
}

function render(body, actions, text) {
  const views = [
    ...structured(text),
    ["JSON", () => preformatted("Result as JSON", shortened(text))],
  ];
  const buttons = views.map(([name, view]) => button(name, () => choose(name, view), { "aria-pressed": "false" }));
  function choose(name, view) {
    body.replaceChildren(view());
    for (const item of buttons) item.setAttribute("aria-pressed", String(item.textContent === name));
  }
  actions.prepend(element("span", { role: "group", "aria-label": "Show as", class: "group" }, buttons));
  choose(...views[0]);
}

/** The views of a parsed result; none if it is nested too deeply for the browser. */
function structured(text) {
  try {
    const value = parse(text);
    return [...(isTable(value) ? [["Table", () => dataTable(value, "Result as a table")]] : []), ["Tree", () => tree(value)]];
  } catch {
    return [];
  }
}

function shortened(text) {
  if (text.length <= MAX_TEXT) return text;
  return `${text.slice(0, MAX_TEXT)}\n… ${text.length - MAX_TEXT} more characters; download the result to see them`;
}
