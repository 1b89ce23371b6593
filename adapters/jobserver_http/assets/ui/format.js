// Turns values of the API into text and small elements.
import { element } from "./dom.js";

let skew = 0;

/** Remember how far the server's clock is ahead of the browser's, from a response's Date header. */
export function setServerTime(date) {
  const server = Date.parse(date);
  if (Number.isNaN(server)) return;
  skew = Math.abs(server - Date.now()) > 2000 ? server - Date.now() : 0; // the header has whole seconds
}

const UNITS = [["d", 86400], ["h", 3600], ["min", 60], ["s", 1]];

/**
 * Seconds as "2 h 5 min", "3 min 20 s", "4.2 s" or "30 ms", by the rule of the command line (`records.py`). Lines are
 * not broken between a number and its unit.
 */
export function duration(seconds) {
  if (seconds < 0.001) return "<\u00a01\u00a0ms";
  if (seconds < 1) return amount(Math.min(999, Math.floor(seconds * 1000 + 0.5)), "ms");
  if (seconds < 60) return amount(seconds < 10 ? Math.floor(seconds * 100 + 0.5) / 100 : Math.floor(seconds), "s");
  const at = UNITS.findIndex(([, size]) => seconds >= size);
  const [[unit, size], [nextUnit, nextSize]] = UNITS.slice(at, at + 2);
  const rest = Math.floor((seconds % size) / nextSize);
  return amount(Math.floor(seconds / size), unit) + (rest ? ` ${amount(rest, nextUnit)}` : "");
}

function amount(number, unit) {
  return `${number}\u00a0${unit}`;
}

/** A job record's duration, or for a job that has not ended, the time since its submission. */
export function jobDuration(record) {
  const ended = /^([\d.]+) secs$/.exec(record.duration);
  return ended ? duration(Number(ended[1])) : elapsed(record.startTime);
}

/** The time since a moment, which `tick` keeps current. */
export function elapsed(time) {
  const shown = element("span", { "data-since": time });
  update(shown);
  return shown;
}

function update(shown) {
  const seconds = Math.floor((Date.now() + skew - Date.parse(shown.dataset.since)) / 1000);
  const text = seconds < 1 ? amount(0, "s") : duration(seconds);
  if (shown.textContent !== text) shown.textContent = text;
}

/** Update all elapsed times of the page. */
export function tick() {
  for (const shown of document.querySelectorAll("[data-since]")) update(shown);
}

const TODAY = new Intl.DateTimeFormat(undefined, { timeStyle: "medium" });
const MINUTE = new Intl.DateTimeFormat(undefined, { timeStyle: "short" });
const LONG = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "medium" });

/** A time in the browser's time zone; the full time is its title. */
export function moment(time) {
  const date = new Date(time);
  const today = date.toDateString() === new Date().toDateString();
  return element("time", { datetime: time, title: time }, (today ? TODAY : LONG).format(date));
}

/** A time of today as "12:03", in the browser's language. */
export function minute(date) {
  return MINUTE.format(date);
}

/** A number of bytes as "12 bytes", "3.4 kB" or "5.6 MB". */
export function bytes(count) {
  const units = ["bytes", "kB", "MB", "GB", "TB"];
  let at = 0;
  let value = count;
  for (; value >= 1000 && at < units.length - 1; at += 1) value /= 1000;
  return at ? `${value.toPrecision(3)} ${units[at]}` : plural(count, "byte");
}

/** What is shown for a job or context that has not begun, in place of STARTED or RESTARTING. */
export const WAITING = "WAITING";

/** The state of a job or context as it is shown. For a context, STARTED means that its start was requested. */
export function stateName(record) {
  if (record.waiting) return WAITING;
  return record.state === "STARTED" ? "STARTING" : record.status ?? record.state;
}

/** A state with its colour. Its text alone says everything. */
export function state(value) {
  return element("span", { class: `state state-${value.toLowerCase().replace(/[^a-z]/g, "")}` }, value);
}

/** The state of a job, which is WAITING if it waits for a slot or a context, and whether it is being killed. */
export function jobState(record) {
  return element("span", {}, state(stateName(record)), record.killRequested ? " being killed" : "");
}

/** A job's progress in tasks, or null if there is none to show. */
export function progress(record, { short = false } = {}) {
  const { tasksDone, tasksTotal, stagesDone, stagesTotal } = record.progress ?? {};
  if (!tasksTotal) return null;
  const text = short ? `${tasksDone}/${tasksTotal}` : `${tasksDone} of ${tasksTotal} tasks, ${stagesDone} of ${stagesTotal} stages`;
  return element("span", { class: "progress" },
    element("progress", { value: tasksDone, max: tasksTotal, "aria-label": "Progress of the job" }), text);
}

export function plural(count, one, many = `${one}s`) {
  return `${count.toLocaleString("en")} ${count === 1 ? one : many}`;
}
