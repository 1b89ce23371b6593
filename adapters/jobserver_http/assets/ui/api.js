// Calls the HTTP API. URLs are relative to where the UI is served, so any prefix works.
import { setServerTime } from "./format.js";

const BASE = new URL("..", import.meta.url);
const KEY = `jobserver.authorization:${BASE.pathname}`;

/** The user's credentials, kept for this browser tab. */
export function authorization() {
  return sessionStorage.getItem(KEY);
}

export function setBasic(user, password) {
  const bytes = new TextEncoder().encode(`${user}:${password}`);
  sessionStorage.setItem(KEY, "Basic " + btoa(String.fromCharCode(...bytes)));
}

export function setBearer(token) {
  sessionStorage.setItem(KEY, "Bearer " + token);
}

export function clear() {
  permissions = null;
  sessionStorage.removeItem(KEY);
}

/**
 * An error response of the API. `status` is 0 if there was no response. The server is `unreachable` then, and
 * if a proxy answered in its place.
 */
export class ApiError extends Error {
  constructor(message, status, { code = "", unreachable = false } = {}) {
    super(message);
    this.status = status;
    this.code = code;
    this.unreachable = unreachable;
  }
}

let lostSince = null;
let watcher = () => {};

/** Call `listener` with the time since when the server cannot be reached, and with null when it can be again. */
export function watchServer(listener) {
  watcher = listener;
}

function noteServer(reachable) {
  if (reachable === (lostSince === null)) return;
  lostSince = reachable ? null : new Date();
  watcher(lostSince);
}

let permissions = null;

/** Ask what the caller may do. Until then, and if the server does not say it, everything is offered. */
export async function learnPermissions() {
  try {
    permissions = new Set((await json(["user"])).permissions);
  } catch (error) {
    if (!error.unreachable) permissions = null;
    throw error;
  }
}

/** Whether an action may be offered to the caller. */
export function may(permission) {
  return permissions === null || permissions.has(permission);
}

/** The URL of a resource, such as `url("jobs", id)`. */
function url(segments, query = {}) {
  const made = new URL(segments.map(encodeURIComponent).join("/"), BASE);
  for (const [key, value] of Object.entries(query)) {
    if (value !== null && value !== undefined && value !== "") made.searchParams.set(key, value);
  }
  return made;
}

// With X-Requested-With, the browser shows no password dialog of its own if credentials are missing.
function headers() {
  const held = authorization();
  return { "X-Requested-With": "XMLHttpRequest", ...(held && { Authorization: held }) };
}

/** Send a request and return its response. Throws ApiError, or AbortError when `signal` is aborted. */
export async function send(segments, { query, method = "GET", signal } = {}) {
  let response;
  try {
    response = await fetch(url(segments, query), { method, signal, headers: headers(), cache: "no-store" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    noteServer(false);
    throw new ApiError("The server cannot be reached.", 0, { unreachable: true });
  }
  setServerTime(response.headers.get("date"));
  const error = response.ok ? null : asError(response.status, await response.text());
  noteServer(!error?.unreachable);
  if (error) throw error;
  return response;
}

export async function json(segments, options) {
  return (await send(segments, options)).json();
}

/** The error of a response body, in any of the API's shapes. */
function asError(status, text) {
  let message = "";
  let body = {};
  try {
    body = JSON.parse(text) ?? {};
    message = typeof body.result === "string" ? body.result : body.result?.message;
    if (body.detail) message += `: ${body.detail}`;
  } catch {
    // A proxy may have answered with something else.
  }
  if (!message && [502, 503, 504].includes(status)) {
    return new ApiError(`The server cannot be reached: the proxy answered with status ${status}.`, status, { unreachable: true });
  }
  return new ApiError(message || `The server answered with status ${status}.`, status, { code: body.code });
}

/** Upload a file. `report` gets the part that is sent, 0 to 1. */
export function upload(name, type, file, report) {
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();
    request.open("POST", url(["binaries", name]));
    for (const [key, value] of Object.entries({ ...headers(), "Content-Type": type })) request.setRequestHeader(key, value);
    request.upload.addEventListener("progress", (event) => event.lengthComputable && report(event.loaded / event.total));
    request.addEventListener("load", () =>
      request.status < 300 ? resolve() : reject(asError(request.status, request.responseText)));
    request.addEventListener("error", () => reject(new ApiError("The upload was interrupted.", 0)));
    request.send(file);
  });
}

/** Save a response as a file of the user. */
export async function download(segments, name, signal) {
  const blob = await (await send(segments, { signal })).blob();
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name.replace(/[^\w.-]+/g, "_");
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}
