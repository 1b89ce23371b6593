// The page of one context.
import { json, may, send } from "./api.js";
import { address, bdi, button, element, externalLink, facts, grid, nothing, refill, section } from "./dom.js";
import { subscribe, throttled } from "./events.js";
import { moment, stateName } from "./format.js";
import { confirm } from "./forms.js";
import { errorSection } from "./job.js";
import { showLog } from "./log.js";
import { suggestion } from "./lookups.js";
import { contextAge, contextState, jobTable, memory } from "./tables.js";

/** The page of the newest context with a name, or of the context with this ID. */
export function context(page, name) {
  let called = name;
  page.title(`Context ${name}`);
  page.live();
  const parts = Object.fromEntries(["summary", "error", "jobs", "settings", "log"].map((part) => [part, element("div")]));
  page.root.append(...Object.values(parts));
  const list = jobList(page, parts.jobs, () => called);
  let shown = "";
  let last = "";

  const show = async () => {
    const record = await json(["contexts", name], { signal: page.signal });
    called = record.name;
    page.title(`Context ${called}`);
    if (stateName(record) !== last) page.announce(`Context is ${stateName(record)}`);
    last = stateName(record);
    refill(parts.summary, summary(page, record));
    parts.error.replaceChildren(...(record.error ? [errorSection(record.error)] : []));
    if (record.id !== shown) {
      shown = record.id;
      parts.settings.replaceChildren(section("Settings", settings(record.settings ?? {})));
      parts.log.replaceChildren(showLog(page, ["contexts", name, "logs"], "Log", record.endTime === "Empty"));
    }
  };
  // The jobs are another call, which a user may be allowed without the first.
  const load = () => page.load(() => show().finally(list), [`There is no context with the name ${name}`, address(), "Overview"],
    async () => suggestion(name, await json(["contexts"]), (found) => address("contexts", found)));
  const refresh = throttled(load, page.signal);
  subscribe((event, data) => {
    const mine = event === "context" ? data.name === called : data.context === called;
    if (mine || event === "lost" || event === "connected") refresh();
  }, page.signal);
  refresh();
}

function summary(page, record) {
  const ended = record.endTime !== "Empty";
  const load = ended ? null : record.load;
  const ask = record.state === "STOPPING" ? button("Kill", () => askToKill(page, record), { class: "danger" })
    : button("Stop", () => askToStop(page, record), { class: "danger" });
  const stop = ended || !may("contexts:delete") ? null : ask;
  return section("Summary", facts([
    ["State", contextState(record)],
    ...(ended ? [] : [contextAge(record)]),
    ["Preparing", record.preparing && bdi(record.preparing)],
    ["Slots in use", load && `${load.running} of ${load.slots}`],
    ["Jobs in the queue", load?.waiting],
    ["Memory", bdi(memory(record))],
    [["STARTED", "RESTARTING"].includes(record.state) ? "Start requested" : "Started", moment(record.startTime)],
    ["Ended", ended ? moment(record.endTime) : null],
    ["Ended because", record.endReason && bdi(record.endReason)],
    ["Server", record.server && bdi(record.server)],
    ["Application", record.applicationId && bdi(record.applicationId)],
    ["Spark UI", record.url && externalLink(record.url, record.url)],
    ["Restarts", record.restarts && String(record.restarts)],
    ["Last restart", record.lastRestart && bdi(record.lastRestart.error?.message ?? "reason unknown")],
    ["Context before", record.lastRestart && element("code", {}, record.lastRestart.id)],
    ["ID", element("code", {}, record.id)],
  ]), stop && element("div", { class: "actions" }, stop));
}

function askToStop(page, record) {
  confirm({
    title: "Stop this context?",
    text: `The jobs that run and wait in ${record.name} end as ERROR.`,
    option: "Kill it, without waiting for Spark to stop",
    verb: "Stop the context",
    failed: `Context ${record.name} was not stopped`,
    action: (force) => stop(page, record, force),
  });
}

function askToKill(page, record) {
  confirm({
    title: "Kill this context?",
    text: `${record.name} is stopping already. Kill it if it takes too long.`,
    verb: "Kill the context",
    failed: `Context ${record.name} was not killed`,
    action: () => stop(page, record, true),
  });
}

async function stop(page, record, force) {
  const response = await send(["contexts", record.name], { method: "DELETE", query: { force: force || "" } });
  page.announce(response.status === 202 ? "The context is stopping" : "The context was stopped");
}

/** Add the newest jobs of the context that `called` names, and return a function that loads them. */
function jobList(page, container, called) {
  const table = jobTable("Jobs of this context", ["job", "state", "class", "progress:wide", "started", "duration"], "No jobs yet.");
  const message = element("div");
  const all = element("a", {}, "All jobs of this context");
  container.append(section("Jobs", message, table.root, element("p", {}, all)));
  return () => {
    all.href = `${address("jobs")}?${new URLSearchParams({ context: called() })}`;
    return page.rows(table, message, () => json(["jobs"], { query: { context: called(), limit: 20 }, signal: page.signal }));
  };
}

function settings(values) {
  const rows = Object.entries(values).sort(([one], [other]) => (one < other ? -1 : 1));
  if (rows.length === 0) return nothing("None");
  const mono = (value) => element("bdi", { class: "mono" }, typeof value === "string" ? value : JSON.stringify(value));
  return grid("Settings", ["Setting", "Value"], rows.map((cells) => cells.map(mono)));
}
