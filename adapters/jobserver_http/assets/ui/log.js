// A log, followed while it grows.
import { download, send } from "./api.js";
import { alert, button, element, say, section, visible } from "./dom.js";
import { subscribe } from "./events.js";

const TAIL = 256 * 1024;
const MAX_LENGTH = 1_000_000;
// Sequences that would steer a terminal: CSI, OSC, and other escapes.
const ESCAPES = /\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-Z\\-_])/g;
const UNFINISHED = /\x1b[^\n]{0,200}$/;
const INTERRUPTED = "Interrupted. The log continues when the server responds again.";
const CONTROLS = /[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]/g;

/** Remove escape sequences and control characters from a log. */
function plainText(text) {
  return visible(text.replace(ESCAPES, "").replace(/\r\n?/g, "\n").replace(CONTROLS, "\ufffd"));
}

/**
 * Add a log to a page. `live` means that it may still grow: then it is followed, and read again whenever the
 * connection to the server was interrupted.
 */
export function showLog(page, segments, name, live) {
  const output = element("pre", { tabindex: 0, role: "log", "aria-live": "off", "aria-label": `Lines of the ${name.toLowerCase()}`, hidden: true });
  const status = element("span", { role: "status", class: "empty" });
  const save = button("Download", () =>
    download(segments, `${segments.slice(0, 2).join("-")}.log`, page.signal).catch(show));
  const follow = element("input", { type: "checkbox", id: "log-follow", checked: true });
  const scroll = element("span", {}, follow, " ", element("label", { for: "log-follow" }, "Scroll with new lines"));
  const message = element("div");
  let reading = new AbortController();
  const root = section(name, message, output, element("div", { class: "actions" }, save, live ? scroll : null, status));
  save.hidden = true;

  function show(error) {
    if (page.failed(error)) return;
    if (error.status === 404) status.textContent = "No output.";
    else message.replaceChildren(alert(error));
  }
  function append(text) {
    output.hidden = save.hidden = false;
    output.append(text);
    for (let length = output.textContent.length; length > MAX_LENGTH && output.childNodes.length > 1;) {
      length -= output.firstChild.length;
      output.firstChild.remove();
    }
    if (follow.checked) output.scrollTop = output.scrollHeight;
  }
  async function load() {
    reading.abort();
    const mine = reading = new AbortController();
    page.signal.addEventListener("abort", () => mine.abort(), { signal: mine.signal });
    let any = false;
    say(status, live ? "Following …" : "");
    message.replaceChildren();
    try {
      for await (const text of read(segments, live, mine.signal)) {
        if (!any) output.replaceChildren();
        any = true;
        append(text);
      }
      status.textContent = any ? (live ? "Ended." : "") : "No output.";
    } catch (error) {
      if (mine.signal.aborted) return;
      status.textContent = live && (error.unreachable || !error.status) ? INTERRUPTED : "";
      if (!status.textContent) show(error);
    }
  }
  if (live) subscribe((event) => event === "connected" && root.isConnected && load(), page.signal);
  load();
  return root;
}

async function* read(segments, live, signal) {
  const response = await send(segments, { query: { tail: TAIL, follow: live || null }, signal });
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    const text = rest + (value ?? "");
    rest = done ? "" : (UNFINISHED.exec(text)?.[0] ?? "");
    const plain = plainText(text.slice(0, text.length - rest.length));
    if (plain) yield plain;
    if (done) return;
  }
}
