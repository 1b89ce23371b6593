// Binaries: the list with uploads, and the page of one binary.
import { json, may, send, upload } from "./api.js";
import { address, alert, announce, bdi, button, element, grid, nameLink, refill, section } from "./dom.js";
import { subscribe, throttled } from "./events.js";
import { bytes, moment } from "./format.js";
import { choice, confirm, field, onSubmit } from "./forms.js";
import { suggestion } from "./lookups.js";
import { jobLink, table } from "./tables.js";

const TYPES = [
  ["application/python-wheel", "Wheel", ".whl"],
  ["application/python-egg", "Egg", ".egg"],
  ["application/java-archive", "Jar", ".jar"],
];

export function binaries(page) {
  page.title("Binaries");
  const list = table({
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
  const load = () => page.rows(list, message, async () => {
    const found = await json(["binaries"], { signal: page.signal });
    return Object.entries(found).map(([name, binary]) => ({ name, ...binary }));
  });
  if (may("binaries:upload")) page.root.append(section("Upload", uploads(page, load)));
  page.root.append(section("Uploaded", message, list.root));
  loadNowAndAfterInterruptions(page, load);
}

/** No events tell of changes of binaries. What could not be loaded is, when the server responds again. */
function loadNowAndAfterInterruptions(page, load) {
  const refresh = throttled(load, page.signal);
  subscribe((event) => event === "connected" && refresh(), page.signal);
  refresh();
}

/** A place to drop files on, and a form for each file. */
function uploads(page, uploaded) {
  const pending = element("div");
  const remove = (form) => {
    form.remove();
    input.focus();
  };
  const add = (files) => pending.append(...[...files].map((file) => uploadForm(page, file, uploaded, remove)));
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

function uploadForm(page, file, uploaded, remove) {
  const kind = TYPES.find(([, , extension]) => file.name.toLowerCase().endsWith(extension));
  const doubt = { message: "By its name, this is no jar, egg or wheel (.jar, .egg, .whl). If it is one, choose its type." };
  const name = field("Name", { value: binaryName(file.name), required: true, autocomplete: "off" });
  const type = choice("Type", kind ? TYPES : [["", "Choose …"], ...TYPES], kind?.[0], { required: true });
  const bar = element("progress", { max: 1, value: 0, "aria-label": "Uploaded", hidden: true });
  const message = element("div", {}, kind ? null : alert(doubt));
  const form = element("form", { "aria-label": `Upload ${file.name}` },
    element("p", {}, bdi(file.name), ` (${bytes(file.size)})`),
    element("div", { class: "bar" }, name.root, type.root, element("button", {}, "Upload"),
      button("Remove", () => remove(form)), bar), message);
  onSubmit(form, async () => {
    bar.hidden = false;
    message.replaceChildren();
    bar.hidden = !await page.attempt(message, async () => {
      await upload(name.input.value, type.input.value, file, (part) => { bar.value = part; });
      form.before(element("p", {}, "Uploaded ", bdi(name.input.value), "."));
      remove(form);
      page.announce(`Uploaded ${name.input.value}`);
      await uploaded();
    }, `${file.name} was not uploaded`);
  });
  return form;
}

export function binary(page, name) {
  page.title(`Binary ${name}`);
  const load = () => page.load(async () => {
    const versions = await json(["binaries", name, "versions"], { signal: page.signal });
    const remove = may("binaries:delete") ? button("Delete", () => askToDelete(page, name, versions), { class: "danger" }) : null;
    const shown = grid("Versions", ["Uploaded", "Package", "Type", "Size", "SHA-256", "In use by"], versions.map(cells));
    refill(page.root, section("Versions", shown, remove && element("div", { class: "actions" }, remove)));
  }, [`There is no binary with the name ${name}`, address("binaries"), "All binaries"],
    async () => suggestion(name, Object.keys(await json(["binaries"])), (found) => address("binaries", found)));
  loadNowAndAfterInterruptions(page, load);
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
    text: versions.length === 1 ? `The only version of ${name} is deleted. This cannot be undone.`
      : `All ${versions.length} versions of ${name} are deleted. This cannot be undone.`,
    verb: "Delete the binary",
    failed: `Binary ${name} was not deleted`,
    action: async () => {
      await send(["binaries", name], { method: "DELETE" });
      window.addEventListener("hashchange", () => announce("The binary was deleted"), { once: true }); // on its page
      location.hash = "#/binaries";
    },
  });
}
