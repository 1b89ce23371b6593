// The overview: contexts, and running, failed and recent jobs, kept current by events.
import { json } from "./api.js";
import { address, element, section } from "./dom.js";
import { subscribe, throttled } from "./events.js";
import { contextTable, jobTable } from "./tables.js";

const jobsWith = (query) => (options) => json(["jobs"], { ...options, query });

const PARTS = [
  { title: "Contexts", make: contextTable, load: (options) => json(["contexts"], { ...options, query: { details: true } }) },
  {
    title: "Running jobs",
    more: { status: "RUNNING" },
    make: () => jobTable("Running jobs", ["job", "state:wide", "class", "context", "progress", "duration"], "No job is running."),
    load: async (options) => (await Promise.all(["RUNNING", "STARTED"].map((status) => jobsWith({ status, limit: 10 })(options)))).flat(),
  },
  {
    title: "Failed jobs",
    more: { status: "ERROR" },
    make: () => jobTable("Failed jobs", ["job", "class:wide", "context", "error", "started"], "No job has failed."),
    load: jobsWith({ status: "ERROR", limit: 5 }),
  },
  {
    title: "Recent jobs",
    more: {},
    make: () => jobTable("Recent jobs", ["job", "state", "class", "context", "started", "duration"], "No jobs yet."),
    load: jobsWith({ limit: 15 }),
  },
];

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
    root.hidden = !await page.attempt(message, async () => update(await load({ signal: page.signal })));
  };
}
