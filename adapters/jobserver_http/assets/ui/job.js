// The page of one job.
import { json } from "./api.js";
import { confirm } from "./dialogs.js";
import { address, alert, breakable, button, element, facts, refill, section } from "./dom.js";
import { subscribe, throttled } from "./events.js";
import { bytes, duration, jobDuration, jobState, moment, progress, state } from "./format.js";
import { tree } from "./jsontree.js";
import { showLog } from "./log.js";
import { showResult } from "./result.js";

const FINAL = ["FINISHED", "ERROR", "KILLED"];

export function job(page, id) {
  page.title(`Job ${id}`);
  const parts = Object.fromEntries(["summary", "error", "result", "callbacks", "code", "log"].map((name) => [name, element("div")]));
  page.root.append(...Object.values(parts));
  let last = "";
  let ended = false;

  async function load() {
    try {
      show(await json(["jobs", id], { query: { result: false }, signal: page.signal }));
      page.succeeded();
    } catch (error) {
      page.fail(error);
    }
  }
  function show(report) {
    if (report.status !== last) page.announce(`Job is ${report.status}`);
    const first = last === "";
    last = report.status;
    refill(parts.summary, summary(page, report));
    refill(parts.callbacks, ...callbacks(report));
    if (first) showOnce(page, parts, report);
    if (FINAL.includes(report.status) && !ended) {
      ended = true;
      end(page, parts, report);
    }
  }
  const refresh = throttled(load, page.signal);
  subscribe((name, data) => {
    if (!ended && (name === "lost" || name === "connected" || data.jobId === id)) refresh();
    else if (ended && name === "callback" && data.jobId === id) refresh();
  }, page.signal);
  refresh();
}

/** What does not change while the job runs. */
function showOnce(page, parts, report) {
  parts.code.append(section("Class path", classPath(report.cp ?? [])));
  json(["jobs", report.jobId, "config"], { signal: page.signal })
    .then((config) => parts.code.prepend(section("Configuration",
      Object.keys(config).length ? tree(config) : element("p", { class: "empty" }, "Empty"))))
    .catch((error) => page.failed(error) || parts.code.prepend(section("Configuration", alert(error))));
  parts.log.append(showLog(page, ["jobs", report.jobId, "logs"], "Log", !FINAL.includes(report.status)));
}

async function end(page, parts, report) {
  if (report.status === "FINISHED") parts.result.replaceChildren(await showResult(page, report.jobId));
  else parts.error.replaceChildren(errorSection(report.result));
}

function summary(page, report) {
  const ended = FINAL.includes(report.status);
  const kill = ended ? null : button("Kill", () => askToKill(page, report), { class: "danger" });
  const wait = (seconds) => (seconds === undefined ? null : duration(seconds));
  return section("Summary", facts([
    ["State", jobState(report)],
    ["Progress", progress(report)],
    ["Duration", jobDuration(report)],
    ["Class", element("bdi", {}, breakable(report.classPath))],
    ["Context", element("a", { href: address("contexts", report.context) }, element("bdi", {}, report.context))],
    ["Submitted by", report.submittedBy && element("bdi", {}, report.submittedBy)],
    ["Submitted", moment(report.startTime)],
    ["Dispatched", report.dispatchTime && moment(report.dispatchTime)],
    ["Began to run", report.runningTime && moment(report.runningTime)],
    ["Ended", report.endTime && moment(report.endTime)],
    ["Priority", report.priority],
    ["Longest wait", wait(report.maxQueueTime)],
    ["Longest run", wait(report.maxRunTime)],
    ["May run again", report.restartable && "if its context dies"],
    ["Runs again", report.restarts && String(report.restarts)],
  ]), kill && element("div", { class: "actions" }, kill));
}

function askToKill(page, report) {
  confirm({
    title: "Kill this job?",
    text: `${report.classPath} in context ${report.context} ends as KILLED.`,
    option: "Kill its context too if the job cannot be killed alone",
    verb: "Kill the job",
    action: async (force) => {
      await json(["jobs", report.jobId], { method: "DELETE", query: { force: force || "" } });
      page.announce("The kill was requested");
    },
  });
}

/** A job's or context's error, with its stack. */
export function errorSection(error) {
  return section("Error",
    element("p", { class: "alert" }, `${error.errorClass ? `${error.errorClass}: ` : ""}${error.message}`),
    error.stack ? element("pre", { tabindex: 0, "aria-label": "Stack" }, error.stack) : null);
}

function classPath(entries) {
  if (entries.length === 0) return element("p", { class: "empty" }, "Empty");
  const name = ({ source, id }) => (id ? element("a", { href: address("binaries", source) }, element("bdi", {}, source)) : element("bdi", {}, source));
  return grid(["Source", "Type", "Size", "SHA-256"], entries.map((entry) =>
    [name(entry), entry["binary-type"], bytes(entry.size), element("code", { title: entry.digest }, entry.digest.slice(0, 12))]));
}

function callbacks(report) {
  if (!report.callbacks?.length) return [];
  const rows = report.callbacks.map((delivery) => [
    state(delivery.state), delivery.attempts, delivery.endedAt ? moment(delivery.endedAt) : "–",
    delivery.state === "PENDING" ? moment(delivery.dueAt) : "–", delivery.lastStatus ?? "–", element("bdi", {}, delivery.lastError ?? "–"),
  ]);
  return [section("Callback", grid(["State", "Attempts", "Ended", "Next attempt", "Last status", "Last error"], rows))];
}

/** A small table that does not change. */
export function grid(titles, rows) {
  return element("div", { class: "scroller" }, element("table", {},
    element("thead", {}, element("tr", {}, titles.map((title) => element("th", { scope: "col" }, title)))),
    element("tbody", {}, rows.map((cells) => element("tr", {}, cells.map((cell) => element("td", { class: "name" }, cell)))))));
}
