// Suggests names in place of those that do not exist, as the command line does.
import { json } from "./api.js";
import { bdi, element } from "./dom.js";

/** How many of the newest jobs are searched for similar names. */
export const RECENT = 1000;
const SUGGESTED = 3;
/** The part of a name that may differ from a similar one. */
const DIFFERENT = 0.4;

/** "Did you mean …?" with links to what is similar, or null. */
export function suggestion(name, known, href) {
  return hint("", similar(name, known), href);
}

function hint(text, found, href) {
  const links = found.flatMap((one, at) => [at ? " or " : "", element("a", { href: href(one) }, bdi(one))]);
  if (!text && links.length === 0) return null;
  return element("p", {}, text, links.length ? ["Did you mean ", ...links, "?"] : []);
}

/** A few known names that begin with this one, ignoring case, or else the nearest one, if any. */
function similar(name, known) {
  const given = name.toLowerCase();
  const names = [...new Set(known)];
  const beginning = names.filter((one) => one.toLowerCase().startsWith(given));
  if (beginning.length) return beginning.slice(0, SUGGESTED);
  const near = names.map((one) => [distance(given, one.toLowerCase()) / Math.max(given.length, one.length), one])
    .filter(([different]) => different <= DIFFERENT);
  return near.sort(([one], [other]) => one - other).slice(0, 1).map(([, one]) => one);
}

/** How many characters to insert, remove or replace to turn one string into another. */
function distance(one, other) {
  let row = Array.from({ length: other.length + 1 }, (_, at) => at);
  for (let i = 1; i <= one.length; i += 1) {
    const next = [i];
    for (let j = 1; j <= other.length; j += 1) {
      next.push(Math.min(row[j] + 1, next[j - 1] + 1, row[j - 1] + (one[i - 1] === other[j - 1] ? 0 : 1)));
    }
    row = next;
  }
  return row.at(-1);
}

/** Paragraphs about the names by which an empty list of jobs was filtered, and which the server lacks. */
export async function unknownFilters({ context, classPath }, href, signal) {
  const recent = await json(["jobs"], { query: { limit: RECENT }, signal });
  const hints = [];
  if (context && !await exists(["contexts", context], signal)) {
    const live = await json(["contexts"], { signal });
    const found = similar(context, [...live, ...recent.map((job) => job.context)]);
    hints.push(hint(`There is no context with the name ${context}. `, found, (name) => href({ context: name })));
  }
  const classes = recent.map((job) => job.classPath);
  if (classPath && !classes.includes(classPath)) {
    const shortName = (name) => name.split(".").at(-1);
    const byShortName = new Map(classes.map((name) => [shortName(name), name]));
    const whole = similar(classPath, classes);
    const found = whole.length ? whole : similar(classPath, byShortName.keys()).map((name) => byShortName.get(name));
    hints.push(hint(`None of the newest ${RECENT} jobs has the class ${classPath}. `, found, (name) => href({ classPath: name })));
  }
  return hints;
}

async function exists(path, signal) {
  try {
    await json(path, { signal });
  } catch (error) {
    if (error.status === 404) return false;
    throw error;
  }
  return true;
}
