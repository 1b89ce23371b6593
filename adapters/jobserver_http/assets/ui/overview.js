// The overview: contexts, and running, failed and recent jobs, kept current by events.
import { json } from "./api.js";
import { contextTable } from "./contexts.js";
import { address, alert, element, section } from "./dom.js";
import { subscribe, throttled } from "./events.js";
import { jobTable } from "./tables.js";

const PARTS = [
  {
    title: "Contexts",
    make: contextTable,
    load: (options) => json(["contexts"], { ...options, query: { details: true } }),
  },
  {
    title: "Running jobs",
    more: { status: "RUNNING" },
    make: () => jobTable("Running jobs", ["job", "state:wide", "class", "context", "progress", "duration"], "No job is running."),
    load: running,
  },
  {
    title: "Failed jobs",
    more: { status: "ERROR" },
    make: () => jobTable("Failed jobs", ["job", "class:wide", "context", "error", "started"], "No job has failed."),
    load: (options) => json(["jobs"], { ...options, query: { status: "ERROR", limit: 5 } }),
  },
  {
    title: "Recent jobs",
    more: {},
    make: () => jobTable("Recent jobs", ["job", "state", "class", "context", "started", "duration"], "No jobs yet."),
    load: (options) => json(["jobs"], { ...options, query: { limit: 15 } }),
  },
];

async function running(options) {
  const lists = await Promise.all(["RUNNING", "STARTED"].map((status) =>
    json(["jobs"], { ...options, query: { status, limit: 10 } })));
  return lists.flat();
}

export function overview(page) {
  page.title("Overview");
  const parts = PARTS.map((part) => show(page, part));
  const refresh = throttled(() => Promise.all(parts.map((load) => load())), page.signal);
  subscribe((name) => name !== "callback" && refresh(), page.signal);
  refresh();
}

/** Add a section, and return a function that loads its rows. A caller may lack the permission for one of them. */
function show(page, { title, more, make, load }) {
  const { root, update } = make();
  const message = element("div");
  const link = more && element("p", {}, element("a", { href: `${address("jobs")}?${new URLSearchParams(more)}` }, `All ${title.toLowerCase().replace("recent ", "")}`));
  page.root.append(section(title, message, root, link));
  return async () => {
    try {
      update(await load({ signal: page.signal }));
      message.replaceChildren();
      root.hidden = false;
    } catch (error) {
      root.hidden = true;
      if (!page.failed(error)) message.replaceChildren(alert(error));
    }
  };
}
