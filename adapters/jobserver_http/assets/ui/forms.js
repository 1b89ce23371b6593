// Labelled form fields.
import { element } from "./dom.js";

let count = 0;

/** An input with its label. */
export function field(label, attributes) {
  count += 1;
  const id = `field-${count}`;
  const input = element("input", { id, ...attributes });
  return { input, root: element("div", { class: "field" }, element("label", { for: id }, label), input) };
}

/** A select with its label. Options are values, or pairs of value and text. */
export function choice(label, options, chosen) {
  count += 1;
  const id = `field-${count}`;
  const input = element("select", { id }, options.map((option) => {
    const [value, text] = Array.isArray(option) ? option : [option, option];
    return element("option", { value, selected: value === chosen }, text);
  }));
  return { input, root: element("div", { class: "field" }, element("label", { for: id }, label), input) };
}

/** Call `action` when a form is submitted, and show that it works. */
export function onSubmit(form, action) {
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    const buttons = form.querySelectorAll("button");
    for (const button of buttons) button.disabled = true;
    try {
      await action();
    } finally {
      for (const button of buttons) button.disabled = false;
    }
  });
}
