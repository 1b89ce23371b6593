// The table of live contexts.
import { address, element } from "./dom.js";
import { elapsed, state } from "./format.js";
import { table } from "./tables.js";

function slots({ load }) {
  if (!load) return "–";
  const text = `${load.running} of ${load.slots}`;
  return element("span", { class: "progress" },
    element("meter", { value: load.running, max: load.slots, "aria-label": "Slots in use" }), text);
}

/** A context's memory settings: of each executor, and of the driver if that is set. */
export function memory({ settings = {} }) {
  const executor = settings["memory-per-node"] ?? settings["spark.executor.memory"] ?? settings["passthrough.spark.executor.memory"];
  const driver = settings["launcher.spark.driver.memory"] ?? settings["spark.driver.memory"];
  const parts = [executor && `${executor} per executor`, driver && `${driver} driver`].filter(Boolean);
  return parts.join(", ") || "default";
}

export function contextState(context) {
  return element("span", {}, state(context.state), context.waiting ? " waiting to start" : "");
}

export function contextTable() {
  return table({
    label: "Contexts",
    empty: "No context is running. One starts when a job needs it.",
    key: (context) => context.id,
    columns: [
      {
        title: "Context",
        show: ({ name }) => element("a", { class: "name", href: address("contexts", name) }, element("bdi", {}, name)),
      },
      { title: "State", show: contextState },
      { title: "Slots in use", show: slots },
      { title: "Queue", class: "number", show: ({ load }) => load?.waiting ?? "–" },
      { title: "Memory", class: "wide", show: (context) => element("bdi", {}, memory(context)) },
      { title: "Up for", class: "number wide", show: ({ startTime }) => elapsed(startTime) },
    ],
  });
}
