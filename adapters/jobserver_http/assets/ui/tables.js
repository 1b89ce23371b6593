// Tables whose rows are updated in place, so that live updates keep focus, selection and scrolling.
import { address, breakable, element } from "./dom.js";
import { jobDuration, jobState, moment, progress } from "./format.js";

/**
 * A table. Each column has a `title`, `show(row)`, and perhaps a `class`. `key(row)` identifies a row, and
 * `empty` is what the table says without rows. Call `update(rows)` with the current rows.
 */
export function table({ label, columns, key, empty }) {
  const head = columns.map(({ title, class: name }) => element("th", { scope: "col", class: name }, title));
  const body = element("tbody");
  const none = element("p", { class: "empty" }, "Loading …");
  const scroller = element("div", { class: "scroller", role: "region", "aria-label": label, tabindex: 0, hidden: true },
    element("table", {}, element("thead", {}, element("tr", {}, head)), body));
  let shown = new Map();

  function update(rows) {
    const next = new Map();
    for (const row of rows) {
      const id = key(row);
      const written = JSON.stringify(row);
      const old = shown.get(id);
      next.set(id, old?.written === written ? old : { written, line: line(row, old?.line) });
    }
    for (const [id, { line: old }] of shown) if (next.get(id)?.line !== old) old.remove();
    let at = 0;
    for (const { line: current } of next.values()) {
      if (body.children[at] !== current) body.insertBefore(current, body.children[at] ?? null);
      at += 1;
    }
    shown = next;
    scroller.hidden = rows.length === 0;
    none.hidden = rows.length > 0;
    none.textContent = empty;
  }

  /** Build a row; if the old one has the focus, its successor gets it. */
  function line(row, old) {
    const made = element("tr", {}, columns.map(({ show, class: name }, index) =>
      element(index ? "td" : "th", { class: name, scope: index ? null : "row" }, show(row))));
    const position = old ? [...old.querySelectorAll("a, button")].indexOf(document.activeElement) : -1;
    if (position >= 0) queueMicrotask(() => made.querySelectorAll("a, button")[position]?.focus());
    return made;
  }

  return { root: element("div", {}, none, scroller), update };
}

const COLUMNS = {
  job: { title: "Job", show: (job) => element("a", { href: address("jobs", job.jobId), title: job.jobId }, element("code", {}, job.jobId.slice(0, 8))) },
  state: { title: "State", show: jobState },
  class: { title: "Class", show: (job) => element("bdi", { class: "name" }, breakable(job.classPath)) },
  context: {
    title: "Context",
    class: "wide",
    show: (job) => element("a", { class: "name", href: address("contexts", job.context) }, element("bdi", {}, job.context)),
  },
  progress: { title: "Progress", show: (job) => progress(job, { short: true }) ?? "–" },
  started: { title: "Submitted", class: "wide", show: (job) => moment(job.startTime) },
  duration: { title: "Duration", class: "number", show: jobDuration },
  error: {
    title: "Error",
    show: (job) => element("bdi", { class: "excerpt" }, job.result?.message?.split("\n", 1)[0] ?? ""),
  },
};

/** A table of job records with some of the columns; those named `<column>:wide` are left out on small screens. */
export function jobTable(label, columns, empty) {
  return table({ label, empty, key: (job) => job.jobId, columns: columns.map(column) });
}

function column(name) {
  const [known, size] = name.split(":");
  return size ? { ...COLUMNS[known], class: size } : COLUMNS[known];
}
