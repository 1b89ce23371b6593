"use strict";
// Draws openapi.json and lets its calls be tried. Text goes in as text, never as markup. All URLs are relative
// to where this page is served: what else is on this host must not get its calls, let alone their credentials.

const BASE = new URL("..", document.currentScript.src);
/** Where the web UI keeps the credentials of this browser tab. */
const SIGNED_IN = `jobserver.authorization:${BASE.pathname}`;

function element(name, properties = {}, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
}

function authorization() {
  const value = (id) => document.getElementById(id).value;
  if (value("token")) return { Authorization: "Bearer " + value("token") };
  if (!value("user")) {
    const held = sessionStorage.getItem(SIGNED_IN);
    return held ? { Authorization: held } : {};
  }
  const bytes = new TextEncoder().encode(value("user") + ":" + value("password"));
  return { Authorization: "Basic " + btoa(String.fromCharCode(...bytes)) };
}

/** Say whose credentials the calls have as long as no others are entered. */
function credentialsText() {
  const [scheme, value] = (sessionStorage.getItem(SIGNED_IN) ?? "").split(" ");
  if (!value) return "Credentials";
  if (scheme !== "Basic") return "Credentials: those of the web UI, a token";
  const bytes = Uint8Array.from(atob(value), (letter) => letter.charCodeAt(0));
  return `Credentials: those of the web UI, user ${new TextDecoder().decode(bytes).split(":")[0]}`;
}

function schemaText(schema) {
  if (!schema) return "";
  if (schema.enum) return schema.enum.join(" | ");
  const range = schema.minimum === undefined ? "" : ` ${schema.minimum} … ${schema.maximum}`;
  return (schema.format || schema.type || "") + range;
}

function row(...cells) {
  return element("tr", {}, ...cells.map((cell) => element("td", {}, cell)));
}

function parameterRow(parameter, inputs) {
  const field = element("input", { placeholder: schemaText(parameter.schema) });
  field.setAttribute("aria-label", parameter.name);
  inputs.push({ parameter, field });
  const name = element("code", { textContent: parameter.name + (parameter.required ? " *" : "") });
  return row(name, parameter.in, parameter.description || "", field);
}

function bodyFields(body) {
  const types = Object.keys(body.content);
  const type = element("select", {}, ...types.map((value) => element("option", { value, textContent: value })));
  const text = element("textarea", { placeholder: body.description });
  const file = element("input", { type: "file" });
  for (const [field, name] of [[type, "content type"], [text, "body"], [file, "file"]]) field.setAttribute("aria-label", name);
  return { type, text, file, box: element("div", {}, type, text, file) };
}

function requestOf(base, path, method, inputs, body) {
  const query = new URLSearchParams();
  const headers = authorization();
  let target = path;
  for (const { parameter, field } of inputs) {
    if (parameter.in === "path") target = target.replace(`{${parameter.name}}`, encodeURIComponent(field.value));
    else if (field.value && parameter.in === "query") query.set(parameter.name, field.value);
    else if (field.value) headers[parameter.name] = field.value;
  }
  const options = { method: method.toUpperCase(), headers };
  if (body) {
    headers["Content-Type"] = body.type.value;
    options.body = body.file.files[0] || body.text.value;
  }
  const url = base.href.replace(/\/$/, "") + target + (query.toString() ? "?" + query : "");
  return { url, options };
}

async function show(response, output, signal) {
  output.textContent = `${response.status} ${response.statusText}\n`;
  const location = response.headers.get("Location") || response.headers.get("Link");
  if (location) output.textContent += location + "\n";
  if ((response.headers.get("Content-Type") || "").startsWith("application/json")) {
    const text = await response.text();
    try { output.textContent += JSON.stringify(JSON.parse(text), null, 2); } catch { output.textContent += text; }
    return;
  }
  if (!response.body) return;
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  for (let part = await reader.read(); !part.done && !signal.aborted; part = await reader.read()) {
    output.textContent = (output.textContent + part.value).slice(-200000);
  }
}

function callBox(base, path, method, operation) {
  const inputs = [];
  const body = operation.requestBody ? bodyFields(operation.requestBody) : null;
  const output = element("pre", { hidden: true });
  const send = element("button", { textContent: "Send" });
  const stop = element("button", { textContent: "Stop", disabled: true });
  let running = null;
  stop.onclick = () => running && running.abort();
  send.onclick = async () => {
    running = new AbortController();
    stop.disabled = false;
    output.hidden = false;
    output.className = "";
    const { url, options } = requestOf(base, path, method, inputs, body);
    try {
      await show(await fetch(url, { ...options, signal: running.signal }), output, running.signal);
    } catch (error) {
      output.className = "wrong";
      output.textContent += `\n${error}`;
    }
    stop.disabled = true;
  };
  const rows = (operation.parameters || []).map((parameter) => parameterRow(parameter, inputs));
  const responses = Object.entries(operation.responses).map(([status, response]) => row(status, response.description));
  const spans = [["method", method.toUpperCase()], ["path", path], ["summary", operation.summary],
    ["mark", operation["x-extension"] && "extension"], ["mark", operation["x-permission"]]];
  const summary = element("summary", {}, ...spans.filter(([, textContent]) => textContent)
    .map(([className, textContent]) => element("span", { className, textContent })));
  const inside = element("div", {});
  if (rows.length) inside.append(element("table", {}, ...rows));
  if (body) inside.append(body.box);
  inside.append(send, stop, output, element("table", {}, ...responses));
  return element("details", { className: "call", id: operation.operationId }, summary, inside);
}

async function main() {
  const calls = document.getElementById("calls");
  const address = new URL("openapi.json", BASE);
  const description = await (await fetch(address)).json();
  const server = new URL(description.servers[0].url, address);
  document.getElementById("title").textContent = `${description.info.title} ${description.info.version}`;
  document.getElementById("about").textContent = description.info.description;
  document.getElementById("login").hidden = !description.components.securitySchemes;
  document.getElementById("credentials").textContent = credentialsText();
  document.getElementById("back").hidden = !("/" in description.paths);
  const groups = {};
  for (const [path, methods] of Object.entries(description.paths)) {
    for (const [method, operation] of Object.entries(methods)) {
      (groups[operation.tags[0]] ??= []).push(callBox(server, path, method, operation));
    }
  }
  calls.replaceChildren();
  for (const [tag, boxes] of Object.entries(groups)) calls.append(element("h2", { textContent: tag === "ui" ? "Web UI" : tag }), ...boxes);
}

main().catch((error) => {
  const note = document.getElementById("note");
  if (note) { note.className = "wrong"; note.textContent = `The description cannot be read: ${error}`; }
});
