// Labelled form fields, and questions before something cannot be undone.
import { alert, button, catchFocus, element } from "./dom.js";

let count = 0;

function labelled(label, name, attributes, options) {
  count += 1;
  const id = `field-${count}`;
  const input = element(name, { id, ...attributes }, options);
  return { input, root: element("div", { class: "field" }, element("label", { for: id }, label), input) };
}

/** An input with its label. */
export function field(label, attributes) {
  return labelled(label, "input", attributes, []);
}

/** A select with its label. Options are lists of a value and its text, which is by default the value. */
export function choice(label, options, chosen, attributes = {}) {
  return labelled(label, "select", attributes, options.map(([value, text = value]) =>
    element("option", { value, selected: value === chosen }, text)));
}

/** Call `action` when a form is submitted, and show that it works. */
export function onSubmit(form, action) {
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    const buttons = form.querySelectorAll("button");
    const held = document.activeElement;
    for (const button of buttons) button.disabled = true;
    try {
      await action();
    } finally {
      for (const button of buttons) button.disabled = false;
      if (held.isConnected) catchFocus(true, held);
    }
  });
}

/**
 * Ask before `action` is run. If it fails, the dialog shows what has not happened, `failed`, and why. `option` is the
 * label of a checkbox whose value the action gets.
 */
export function confirm({ title, text, verb, failed, option, action }) {
  const message = element("div");
  const checkbox = element("input", { type: "checkbox", id: "dialog-option" });
  const cancel = button("Cancel", () => dialog.close());
  const perform = button(verb, run, { class: "danger" });
  const dialog = element("dialog", { "aria-labelledby": "dialog-title", "aria-describedby": "dialog-text" },
    element("h2", { id: "dialog-title" }, title), element("p", { id: "dialog-text" }, text),
    option ? element("p", {}, checkbox, " ", element("label", { for: "dialog-option" }, option)) : null,
    message, element("div", { class: "actions" }, perform, cancel));

  async function run() {
    perform.disabled = true;
    perform.textContent = "Please wait …";
    try {
      await action(checkbox.checked);
      dialog.close();
    } catch (error) {
      message.replaceChildren(alert(error, failed));
      perform.disabled = false;
      perform.textContent = verb;
      perform.focus();
    }
  }

  // The page may have been refreshed below the dialog: then what opened it is gone.
  dialog.addEventListener("close", () => {
    dialog.remove();
    catchFocus(true);
  });
  document.body.append(dialog);
  dialog.showModal();
  cancel.focus();
}
