// Binaries: the list with uploads, and the page of one binary.
import { json, send, upload } from "./api.js";
import { bdi, button, element, grid, nameLink, section } from "./dom.js";
import { bytes, moment } from "./format.js";
import { choice, confirm, field, onSubmit } from "./forms.js";
import { jobLink, table } from "./tables.js";

const TYPES = [
  ["application/python-wheel", "Wheel", ".whl"],
  ["application/python-egg", "Egg", ".egg"],
  ["application/java-archive", "Jar", ".jar"],
];

export function binaries(page) {
  page.title("Binaries");
  const { root, update } = table({
    label: "Binaries",
    empty: "No binaries yet.",
    key: ({ name }) => name,
    columns: [
      { title: "Name", show: ({ name }) => nameLink("binaries", name) },
      { title: "Type", show: (binary) => binary["binary-type"] },
      { title: "Package", class: "name", show: carried },
      { title: "Newest upload", show: (binary) => moment(binary["upload-time"]) },
    ],
  });
  const message = element("div");
  const load = () => page.attempt(message, async () => {
    const found = await json(["binaries"], { signal: page.signal });
    update(Object.entries(found).map(([name, binary]) => ({ name, ...binary })));
  });
  page.root.append(section("Upload", uploads(page, load)), section("Uploaded", message, root));
  load();
}

/** A place to drop files on, and a form for each file. */
function uploads(page, uploaded) {
  const pending = element("div");
  const add = (files) => pending.append(...[...files].map((file) => uploadForm(page, file, uploaded)));
  const { input, root } = field("Drop jars, eggs or wheels here, or choose files", { type: "file", multiple: true, accept: ".jar,.egg,.whl" });
  input.addEventListener("change", () => {
    add(input.files);
    input.value = "";
  });
  const drop = element("div", { class: "drop" }, root);
  for (const name of ["dragenter", "dragover", "dragleave", "drop"]) {
    drop.addEventListener(name, (event) => {
      event.preventDefault();
      drop.classList.toggle("over", name.startsWith("drage") || name === "dragover");
      if (name === "drop") add(event.dataTransfer.files);
    });
  }
  return element("div", {}, drop, pending);
}

/** The name that a file probably has as a binary: without directory, version and extension. */
export function binaryName(file) {
  return file.replace(/\.(jar|egg|whl)$/i, "").replace(/[-_]v?\d.*$/, "") || file;
}

function uploadForm(page, file, uploaded) {
  const kind = TYPES.find(([, , extension]) => file.name.toLowerCase().endsWith(extension)) ?? TYPES[0];
  const name = field("Name", { value: binaryName(file.name), required: true, autocomplete: "off" });
  const type = choice("Type", TYPES, kind[0]);
  const bar = element("progress", { max: 1, value: 0, "aria-label": "Uploaded", hidden: true });
  const message = element("div");
  const form = element("form", { "aria-label": `Upload ${file.name}` },
    element("p", {}, bdi(file.name), ` (${bytes(file.size)})`),
    element("div", { class: "bar" }, name.root, type.root, element("button", {}, "Upload"),
      button("Remove", () => form.remove()), bar), message);
  onSubmit(form, async () => {
    bar.hidden = false;
    bar.hidden = !await page.attempt(message, async () => {
      await upload(name.input.value, type.input.value, file, (part) => { bar.value = part; });
      form.replaceWith(element("p", { role: "status" }, "Uploaded ", bdi(name.input.value), "."));
      await uploaded();
    });
  });
  return form;
}

export function binary(page, name) {
  page.title(`Binary ${name}`);
  page.load(async () => {
    const versions = await json(["binaries", name, "versions"], { signal: page.signal });
    const remove = button("Delete", () => askToDelete(page, name, versions), { class: "danger" });
    page.root.append(section("Versions", grid(["Uploaded", "Package", "Type", "Size", "SHA-256", "In use by"], versions.map(cells)),
      element("div", { class: "actions" }, remove)));
  });
}

/** The name and version that a package carries in itself. */
function carried(binary) {
  return bdi(binary.package ?? "–");
}

function cells(version) {
  const users = version.usedBy ?? [];
  const shown = users.slice(0, 10).flatMap((id) => [jobLink(id), " "]);
  return [
    moment(version["upload-time"]), carried(version), version["binary-type"], bytes(version.size),
    element("code", { title: version.digest }, version.digest.slice(0, 12)),
    element("span", {}, users.length ? shown : "–", users.length > 10 ? `and ${users.length - 10} more` : null),
  ];
}

function askToDelete(page, name, versions) {
  confirm({
    title: "Delete this binary?",
    text: `All ${versions.length} versions of ${name} are deleted. This cannot be undone.`,
    verb: "Delete the binary",
    action: async () => {
      await send(["binaries", name], { method: "DELETE" });
      page.announce("The binary was deleted");
      location.hash = "#/binaries";
    },
  });
}
