// Tables of jobs and contexts. Rows are updated in place, so that live updates keep focus, selection and scrolling.
import { address, bdi, breakable, catchFocus, element, nameLink } from "./dom.js";
import { decisiveLine } from "./errors.js";
import { elapsed, jobDuration, jobState, moment, progress, state, stateName } from "./format.js";

/**
 * A table. Each column has a `title`, `show(row)`, and perhaps a `class`. `key(row)` identifies a row, and
 * `empty` is what the table says without rows. Call `update(rows)` with the current rows, and `stopWaiting`
 * if they could not be loaded: those from before stay.
 */
export function table({ label, columns, key, empty }) {
  const head = columns.map(({ title, class: name }) => element("th", { scope: "col", class: name }, title));
  const body = element("tbody");
  const none = element("p", { class: "empty" }, "Loading …");
  const scroller = element("div", { class: "scroller", role: "group", "aria-label": label, tabindex: 0, hidden: true },
    element("table", { "aria-label": label }, element("thead", {}, element("tr", {}, head)), body));
  let shown = new Map();

  function update(rows) {
    const held = scroller.contains(document.activeElement) ? document.activeElement : null;
    const next = new Map();
    for (const row of rows) {
      const id = key(row);
      const written = JSON.stringify(row);
      const old = shown.get(id);
      next.set(id, old?.written === written ? old : { written, line: line(row, old?.line) });
    }
    for (const [id, { line: old }] of shown) if (next.get(id)?.line !== old) old.remove();
    [...next.values()].forEach(({ line: current }, at) => {
      if (body.children[at] !== current) body.insertBefore(current, body.children[at] ?? null);
    });
    shown = next;
    scroller.hidden = rows.length === 0;
    none.hidden = rows.length > 0;
    none.textContent = empty;
    queueMicrotask(() => catchFocus(held !== null, held?.isConnected ? held : scroller)); // after those of rows
  }

  function stopWaiting() {
    if (none.textContent !== empty) none.textContent = "";
  }

  /** Build a row; if the old one has the focus, its successor gets it. */
  function line(row, old) {
    const made = element("tr", {}, columns.map(({ show, class: name }, index) =>
      element(index ? "td" : "th", { class: name, scope: index ? null : "row" }, show(row))));
    const position = old ? [...old.querySelectorAll("a, button")].indexOf(document.activeElement) : -1;
    if (position >= 0) queueMicrotask(() => made.querySelectorAll("a, button")[position]?.focus());
    return made;
  }

  return { root: element("div", {}, none, scroller), update, stopWaiting };
}

/** A link to a job, with the beginning of its ID. */
export function jobLink(id) {
  return element("a", { href: address("jobs", id), title: id }, element("code", {}, id.slice(0, 8)));
}

const COLUMNS = {
  job: { title: "Job", show: ({ jobId }) => jobLink(jobId) },
  state: { title: "State", show: jobState },
  class: { title: "Class", show: (job) => element("bdi", { class: "name" }, breakable(job.classPath)) },
  context: { title: "Context", class: "wide", show: ({ context }) => nameLink("contexts", context) },
  progress: { title: "Progress", show: (job) => progress(job, { short: true }) ?? "–" },
  started: { title: "Submitted", class: "wide", show: (job) => moment(job.startTime) },
  duration: { title: "Duration", class: "number", show: jobDuration },
  error: { title: "Error", show: ({ result }) => element("bdi", { class: "excerpt" }, decisiveLine(result?.message ?? "")) },
};

/** A table of job records with some of the columns; those named `<column>:wide` are left out on small screens. */
export function jobTable(label, names, empty) {
  const columns = names.map((name) => name.split(":")).map(([known, size = COLUMNS[known].class]) => ({ ...COLUMNS[known], class: size }));
  return table({ label, empty, key: (job) => job.jobId, columns });
}

function slots({ load }) {
  if (!load) return "–";
  return element("span", { class: "progress" },
    element("meter", { value: load.running, max: load.slots, "aria-label": "Slots in use" }), `${load.running} of ${load.slots}`);
}

/** A context's memory settings: of each executor, and of the driver if that is set. A local master has only a driver. */
export function memory({ settings = {} }) {
  const executor = settings["memory-per-node"] ?? settings["spark.executor.memory"] ?? settings["passthrough.spark.executor.memory"];
  const driver = settings["launcher.spark.driver.memory"] ?? settings["spark.driver.memory"];
  if (/^local\b/.test(settings["spark.master"])) return driver ?? settings["memory-per-node"] ?? "default";
  const parts = [executor && `${executor} per executor`, driver && `${driver} driver`].filter(Boolean);
  return parts.join(", ") || "default";
}

/** For how long a live context is up, starts or waits: that has a name, and the time. */
export function contextAge({ state: current, waiting, startTime }) {
  const name = waiting ? "Waiting for" : ["STARTED", "RESTARTING"].includes(current) ? "Starting for" : "Up for";
  return [name, elapsed(startTime)];
}

/** The same as it stands below "Up for". */
function age(context) {
  const [name, shown] = contextAge(context);
  return name === "Up for" ? shown : element("span", {}, `${name.toLowerCase()} `, shown);
}

export function contextState(context) {
  return element("span", {}, state(stateName(context)));
}

export function contextTable() {
  return table({
    label: "Contexts",
    empty: "No context is running. One starts when a job needs it.",
    key: (context) => context.id,
    columns: [
      { title: "Context", show: ({ name }) => nameLink("contexts", name) },
      { title: "State", show: contextState },
      { title: "Slots in use", show: slots },
      { title: "Queue", class: "number", show: ({ load }) => load?.waiting ?? "–" },
      { title: "Memory", class: "wide", show: (context) => bdi(memory(context)) },
      { title: "Up for", class: "number wide", show: age },
    ],
  });
}

export function endedContextTable() {
  return table({
    label: "Ended contexts",
    empty: "No context has ended yet.",
    key: (context) => context.id,
    columns: [
      { title: "Context", show: ({ id, name }) => element("a", { class: "name", href: address("contexts", id) }, bdi(name)) },
      { title: "State", show: contextState },
      { title: "Why", show: (context) => element("bdi", { class: "excerpt" }, context.error ? decisiveLine(context.error.message) : context.endReason ?? "–") },
      { title: "Started", class: "wide", show: ({ startTime }) => moment(startTime) },
      { title: "Ended", show: ({ endTime }) => moment(endTime) },
    ],
  });
}
