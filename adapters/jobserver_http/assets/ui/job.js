// The page of one job.
import { json, may } from "./api.js";
import { address, alert, bdi, breakable, button, element, facts, grid, nothing, preformatted, refill, section } from "./dom.js";
import { decisiveLine, folded, foldedStack, hasFrames } from "./errors.js";
import { subscribe, throttled } from "./events.js";
import { confirm } from "./forms.js";
import { bytes, duration, jobDuration, jobState, moment, progress, state, stateName } from "./format.js";
import { tree } from "./jsontree.js";
import { showLog } from "./log.js";
import { RECENT, suggestion } from "./lookups.js";
import { showResult } from "./result.js";

const FINAL = ["FINISHED", "ERROR", "KILLED"];

export function job(page, id) {
  page.title(`Job ${id}`);
  page.live();
  const parts = Object.fromEntries(["summary", "error", "result", "callbacks", "code", "log"].map((name) => [name, element("div")]));
  page.root.append(...Object.values(parts));
  let last = "";
  let ended = false;

  const load = () => page.load(async () => {
    const record = await json(["jobs", id], { query: { result: false }, signal: page.signal });
    if (stateName(record) !== last) page.announce(`Job is ${stateName(record)}`);
    if (last === "") showOnce(page, parts, record);
    last = stateName(record);
    refill(parts.summary, summary(page, record));
    refill(parts.callbacks, ...callbacks(record));
    if (FINAL.includes(record.status) && !ended) {
      ended = true;
      if (record.status === "FINISHED") showResult(page, id).then((result) => parts.result.replaceChildren(result));
      else parts.error.replaceChildren(errorSection(record.result));
    }
  }, [`There is no job with the ID ${id}`, address("jobs"), "All jobs"], async () => {
    const recent = await json(["jobs"], { query: { limit: RECENT } });
    return suggestion(id, recent.map(({ jobId }) => jobId), (found) => address("jobs", found));
  });
  const refresh = throttled(load, page.signal);
  subscribe((name, data) => {
    const mine = data.jobId === id;
    if (ended ? mine && name === "callback" : mine || name === "lost" || name === "connected") refresh();
  }, page.signal);
  refresh();
}

/** What does not change while the job runs. */
function showOnce(page, parts, record) {
  parts.code.append(section("Class path", classPath(record.cp ?? [])));
  const show = (shown) => parts.code.prepend(section("Configuration", shown));
  json(["jobs", record.jobId, "config"], { signal: page.signal })
    .then((config) => show(Object.keys(config).length ? tree(config) : nothing("Empty")))
    .catch((error) => page.failed(error) || show(alert(error)));
  parts.log.append(showLog(page, ["jobs", record.jobId, "logs"], "Log", !FINAL.includes(record.status)));
}

function summary(page, record) {
  const ended = FINAL.includes(record.status);
  const kill = ended || !may("jobs:delete") ? null : button("Kill", () => askToKill(page, record), { class: "danger" });
  const wait = (seconds) => (seconds === undefined ? null : duration(seconds));
  return section("Summary", facts([
    ["State", jobState(record)],
    ["Progress", progress(record)],
    ["Duration", jobDuration(record)],
    ["Class", bdi(breakable(record.classPath))],
    ["Context", element("a", { href: address("contexts", record.context) }, bdi(record.context))],
    ["Submitted by", record.submittedBy && bdi(record.submittedBy)],
    ["Submitted", moment(record.startTime)],
    ["Given to its context", record.dispatchTime && moment(record.dispatchTime)],
    ["Began to run", record.runningTime && moment(record.runningTime)],
    ["Ended", record.endTime && moment(record.endTime)],
    ["Priority", record.priority],
    ["Waits at most", wait(record.maxQueueTime)],
    ["Runs at most", wait(record.maxRunTime)],
    ["May run again", record.restartable && "if its context dies"],
    ["Runs again", record.restarts && String(record.restarts)],
  ]), kill && element("div", { class: "actions" }, kill));
}

function askToKill(page, record) {
  confirm({
    title: "Kill this job?",
    text: `${record.classPath} in context ${record.context} ends as KILLED.`,
    option: "Kill its context too if the job cannot be killed alone",
    verb: "Kill the job",
    failed: `Job ${record.jobId} was not killed`,
    action: async (force) => {
      await json(["jobs", record.jobId], { method: "DELETE", query: { force: force || "" } });
      page.announce("The kill was requested");
    },
  });
}

// The classes of errors whose stack is the reason in words, and what stands between message and reason.
const BEFORE_REASON = new Map([["ContextTerminated", ": "], ["JobKilled", " "]]);

/**
 * A job's or context's error: what it says in one line, then its class, then the message if it has more lines. The
 * frames of the job's own code, and all frames, can be opened.
 */
export function errorSection(error) {
  const before = BEFORE_REASON.get(error.errorClass);
  const reason = before && error.stack ? before + error.stack : "";
  const message = `${error.message.trim()}${reason}`;
  const stack = reason ? "" : error.stack ?? "";
  const [text, frames] = [folded(message), foldedStack(error.message, stack)];
  const line = text.includes("\n") ? decisiveLine(message) : text;
  const more = text.startsWith(line) ? text.slice(line.length + 1) : text;
  const [said, name] = messageAndClass(line, text.startsWith(line) ? error.errorClass : null);
  const named = error.errorClass ? `${error.errorClass}: ${message}` : message;
  const whole = stack.includes(error.message.trim()) ? stack : `${named}\n${stack}`;
  const pre = (shown, label, kind = "") => preformatted(label, shown, { class: `whole ${kind}` });
  const fold = (shown, label) => element("details", {}, element("summary", {}, label), pre(shown, label, "frames"));
  return section("Error",
    element("p", { class: "alert" }, said),
    name && element("p", {}, element("code", {}, name)),
    more && (hasFrames(more) ? fold(more, "Message") : pre(more, "Message")),
    frames && fold(frames, "Stack"),
    text === message && frames === stack ? null : fold(whole, "All frames"));
}

/** A line without the class that it begins with, and this class; a line that is nothing else stands for itself. */
function messageAndClass(line, given) {
  if (given) return line ? [line, given] : [given, null];
  const [, name, said] = /^([\w.$]+): (.+)$/s.exec(line) ?? [];
  return said ? [said, name] : [line, null];
}

function classPath(entries) {
  if (entries.length === 0) return nothing("Empty");
  const name = ({ source, id }) => (id ? element("a", { href: address("binaries", source) }, bdi(source)) : bdi(source));
  return grid("Class path", ["Source", "Type", "Size", "SHA-256"], entries.map((entry) =>
    [name(entry), entry["binary-type"], bytes(entry.size), element("code", { title: entry.digest }, entry.digest.slice(0, 12))]));
}

function callbacks(record) {
  if (!record.callbacks?.length) return [];
  const rows = record.callbacks.map((delivery) => [
    state(delivery.state), delivery.attempts, delivery.endedAt ? moment(delivery.endedAt) : "–",
    delivery.state === "PENDING" ? moment(delivery.dueAt) : "–", delivery.lastStatus ?? "–", bdi(delivery.lastError ?? "–"),
  ]);
  return [section("Callback", grid("Callback", ["State", "Attempts", "Ended", "Next attempt", "Last status", "Last error"], rows))];
}
