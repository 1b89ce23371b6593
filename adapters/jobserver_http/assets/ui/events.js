// One stream of server-sent events for the whole page. EventSource cannot send credentials, so it is read here.
import { send } from "./api.js";

const subscribers = new Set();
const SILENCE = 45_000; // milliseconds; the server sends at least a comment every 15 seconds
const RETRY = [1000, 2000, 5000, 10_000];
let stream = null;

/** Call `listener(name, data)` for each event, and with "connected" when events may have been missed. */
export function subscribe(listener, signal) {
  subscribers.add(listener);
  signal.addEventListener("abort", () => subscribers.delete(listener));
}

/** Let pages load what they show again, because events may have been missed. */
export function publishConnected() {
  publish("connected", {});
}

function publish(name, data) {
  for (const listener of [...subscribers]) listener(name, data);
}

/**
 * Receive events until `disconnect`, reconnecting when the stream breaks. `show` gets the state in words,
 * `refused` the error if the server asks for credentials.
 * Calling it again replaces the stream.
 */
export async function connect(show, refused) {
  disconnect();
  const mine = new AbortController();
  stream = mine;
  for (let failures = 0; !mine.signal.aborted;) {
    try {
      const response = await send(["events"], { signal: mine.signal });
      show("Live");
      failures = 0;
      publishConnected();
      await read(response.body, mine.signal);
    } catch (error) {
      if (mine.signal.aborted) return;
      if (error.status === 401) return refused(error);
      if ([403, 404].includes(error.status)) return show("No live updates");
    }
    if (mine.signal.aborted) return;
    show("Reconnecting …");
    failures += 1;
    await new Promise((resume) => setTimeout(resume, RETRY[Math.min(failures, RETRY.length) - 1]));
  }
}

export function disconnect() {
  stream?.abort();
  stream = null;
}

async function read(body, signal) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const silent = setTimeout(() => reader.cancel(), SILENCE);
    const { value, done } = await reader.read().finally(() => clearTimeout(silent));
    if (done || signal.aborted) return;
    const messages = (rest + value).split("\n\n");
    rest = messages.pop();
    messages.forEach(parse);
  }
}

function parse(message) {
  const fields = Object.fromEntries(message.split("\n").map((line) => line.split(/: (.*)/s)));
  if (fields.event && fields.data) publish(fields.event, JSON.parse(fields.data));
}

/**
 * Return a function that calls `load` soon: at most once at a time and once a second, and less often
 * when loading is slow, so that a busy server is not made busier.
 */
export function throttled(load, signal) {
  let running = false;
  let wanted = false;
  let earliest = 0;
  const run = async () => {
    if (signal.aborted) return;
    running = true;
    wanted = false;
    const began = performance.now();
    await load();
    const now = performance.now();
    earliest = now + Math.max(1000, 5 * (now - began));
    running = false;
    if (wanted) schedule();
  };
  const schedule = () => setTimeout(run, Math.max(0, earliest - performance.now()));
  const trigger = () => {
    if (!running && !wanted) schedule();
    wanted = true;
  };
  return trigger;
}
