// Questions before something cannot be undone.
import { alert, button, element } from "./dom.js";

/**
 * Ask before `action` is run; an error of the action is shown in the dialog. `option` is the label of a
 * checkbox whose value the action gets.
 */
export function confirm({ title, text, verb, option, action }) {
  const message = element("div");
  const checkbox = element("input", { type: "checkbox", id: "dialog-option" });
  const cancel = button("Cancel", () => dialog.close());
  const perform = button(verb, run, { class: "danger" });
  const dialog = element("dialog", { "aria-labelledby": "dialog-title" },
    element("h2", { id: "dialog-title" }, title), element("p", {}, text),
    option ? element("p", {}, checkbox, " ", element("label", { for: "dialog-option" }, option)) : null,
    message, element("div", { class: "actions" }, perform, cancel));

  async function run() {
    perform.disabled = true;
    perform.textContent = "Please wait …";
    try {
      await action(checkbox.checked);
      dialog.close();
    } catch (error) {
      message.replaceChildren(alert(error));
      perform.disabled = false;
      perform.textContent = verb;
    }
  }

  dialog.addEventListener("close", () => dialog.remove());
  document.body.append(dialog);
  dialog.showModal();
  cancel.focus();
}
