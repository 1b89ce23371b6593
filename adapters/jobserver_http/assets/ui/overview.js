// The overview: contexts, and running, failed and recent jobs, kept current by events.
import { json } from "./api.js";
import { address, element, section } from "./dom.js";
import { subscribe, throttled } from "./events.js";
import { WAITING } from "./format.js";
import { contextTable, jobTable } from "./tables.js";

const jobsWith = (query) => (options) => json(["jobs"], { ...options, query });

const PARTS = [
  { title: "Contexts", link: ["Ended contexts", address("contexts")], make: contextTable, load: (options) => json(["contexts"], { ...options, query: { details: true } }) },
  {
    title: "Running jobs",
    more: { status: "RUNNING" },
    make: () => jobTable("Running jobs", ["job", "state:wide", "class", "context", "progress", "duration"], "No job is running."),
    load: jobsWith({ status: "RUNNING", limit: 10 }),
  },
  {
    title: "Waiting jobs",
    more: { status: WAITING },
    hidden: true,
    make: () => jobTable("Waiting jobs", ["job", "state", "class", "context", "duration"], "No job is waiting."),
    load: async (options) => (await Promise.all(["STARTED", "RESTARTING"].map((status) => jobsWith({ status, limit: 10 })(options)))).flat(),
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
  page.live();
  const parts = PARTS.map((part) => show(page, part));
  const refresh = throttled(() => Promise.all(parts.map((load) => load())), page.signal);
  subscribe((name) => name !== "callback" && refresh(), page.signal);
  refresh();
}

function jobsLink(title, query) {
  return [`All ${title.toLowerCase().replace("recent ", "")}`, `${address("jobs")}?${new URLSearchParams(query)}`];
}

/**
 * Add a section, and return a function that loads its rows. A caller may lack the permission for one of them.
 * One that is `hidden` appears when it has rows.
 */
function show(page, { title, more, link = jobsLink(title, more), hidden = false, make, load }) {
  const list = make();
  const message = element("div");
  const [text, href] = link;
  const shown = section(title, message, list.root, element("p", {}, element("a", { href }, text)));
  shown.hidden = hidden;
  page.root.append(shown);
  return () => page.rows(list, message, async () => {
    const rows = await load({ signal: page.signal });
    shown.hidden = hidden && rows.length === 0;
    return rows;
  });
}
