// The page of one context.
import { json, send } from "./api.js";
import { contextState, memory } from "./contexts.js";
import { confirm } from "./dialogs.js";
import { address, alert, button, element, externalLink, facts, refill, section } from "./dom.js";
import { subscribe, throttled } from "./events.js";
import { elapsed, moment } from "./format.js";
import { errorSection, grid } from "./job.js";
import { showLog } from "./log.js";
import { jobTable } from "./tables.js";

export function context(page, name) {
  page.title(`Context ${name}`);
  const parts = Object.fromEntries(["summary", "error", "jobs", "settings", "log"].map((part) => [part, element("div")]));
  page.root.append(...Object.values(parts));
  const list = jobList(page, parts.jobs, name);
  let shown = "";
  let last = "";

  async function load() {
    try {
      const report = await json(["contexts", name], { signal: page.signal });
      if (report.state !== last) page.announce(`Context is ${report.state}`);
      last = report.state;
      refill(parts.summary, summary(page, report));
      parts.error.replaceChildren(...(report.error ? [errorSection(report.error)] : []));
      if (report.id !== shown) {
        shown = report.id;
        parts.settings.replaceChildren(section("Settings", settings(report.settings ?? {})));
        parts.log.replaceChildren(showLog(page, ["contexts", name, "logs"], "Log", report.endTime === "Empty"));
      }
      await list();
      page.succeeded();
    } catch (error) {
      page.fail(error);
    }
  }
  const refresh = throttled(load, page.signal);
  subscribe((event, data) => {
    const mine = event === "context" ? data.name === name : data.context === name;
    if (mine || event === "lost" || event === "connected") refresh();
  }, page.signal);
  refresh();
}

function summary(page, report) {
  const ended = report.endTime !== "Empty";
  const stop = ended ? null : button("Stop", () => askToStop(page, report), { class: "danger" });
  return section("Summary", facts([
    ["State", contextState(report)],
    ["Up for", ended ? null : elapsed(report.startTime)],
    ["Slots in use", ended || !report.load ? null : `${report.load.running} of ${report.load.slots}`],
    ["Jobs in the queue", ended || !report.load ? null : String(report.load.waiting)],
    ["Memory", element("bdi", {}, memory(report))],
    ["Started", moment(report.startTime)],
    ["Ended", ended ? moment(report.endTime) : null],
    ["Application", report.applicationId && element("bdi", {}, report.applicationId)],
    ["Spark UI", report.url && externalLink(report.url, report.url)],
    ["Restarts", report.restarts && String(report.restarts)],
    ["ID", element("code", {}, report.id)],
  ]), stop && element("div", { class: "actions" }, stop));
}

function askToStop(page, report) {
  confirm({
    title: "Stop this context?",
    text: `The jobs that run and wait in ${report.name} end as ERROR.`,
    option: "Kill it, without waiting for Spark to stop",
    verb: "Stop the context",
    action: async (force) => {
      const response = await send(["contexts", report.name], { method: "DELETE", query: { force: force || "" } });
      page.announce(response.status === 202 ? "The context is stopping" : "The context was stopped");
    },
  });
}

/** Add the newest jobs of a context, and return a function that loads them. */
function jobList(page, container, name) {
  const { root, update } = jobTable("Jobs of this context", ["job", "state", "class", "progress", "started", "duration"], "No jobs yet.");
  const message = element("div");
  const all = element("a", { href: `${address("jobs")}?${new URLSearchParams({ context: name })}` }, "All jobs of this context");
  container.append(section("Jobs", message, root, element("p", {}, all)));
  return async () => {
    try {
      update(await json(["jobs"], { query: { context: name, limit: 20 }, signal: page.signal }));
      message.replaceChildren();
    } catch (error) {
      if (!page.failed(error)) message.replaceChildren(alert(error));
    }
  };
}

function settings(values) {
  const rows = Object.entries(values).sort(([one], [other]) => (one < other ? -1 : 1));
  if (rows.length === 0) return element("p", { class: "empty" }, "None");
  return grid(["Setting", "Value"], rows.map(([key, value]) => [
    element("bdi", { class: "mono" }, key),
    element("bdi", { class: "mono" }, typeof value === "string" ? value : JSON.stringify(value)),
  ]));
}
