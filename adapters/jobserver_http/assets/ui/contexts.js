// The list of the contexts that have ended.
import { json } from "./api.js";
import { address, element, section } from "./dom.js";
import { subscribe, throttled } from "./events.js";
import { endedContextTable } from "./tables.js";

const LIMIT = 200;

export function endedContexts(page) {
  page.title("Ended contexts");
  page.live();
  const list = endedContextTable();
  const message = element("div");
  page.root.append(section(`The newest ${LIMIT} ended contexts`, message, list.root),
    element("p", {}, element("a", { href: address() }, "Overview")));
  const load = () => json(["contexts"], { query: { ended: true, limit: LIMIT }, signal: page.signal });
  const refresh = throttled(() => page.rows(list, message, load), page.signal);
  subscribe((name) => ["context", "lost", "connected"].includes(name) && refresh(), page.signal);
  refresh();
}
