// The shell: shows the page that the fragment of the URL names, and asks for credentials when the API does.
import { authorization, clear, learnPermissions, send, setBasic, setBearer, watchServer } from "./api.js";
import { binaries, binary } from "./binaries.js";
import { context } from "./context.js";
import { endedContexts } from "./contexts.js";
import { alert, announce, bdi, element, say, showError } from "./dom.js";
import { connect, disconnect, publishConnected } from "./events.js";
import { minute, tick } from "./format.js";
import { field, onSubmit } from "./forms.js";
import { job } from "./job.js";
import { jobs } from "./jobs.js";
import { overview } from "./overview.js";

const PAGES = [
  [/^$/, overview],
  [/^jobs$/, jobs],
  [/^jobs\/([^/]+)$/, job],
  [/^contexts$/, endedContexts],
  [/^contexts\/([^/]+)$/, context],
  [/^binaries$/, binaries],
  [/^binaries\/([^/]+)$/, binary],
];
const main = document.getElementById("main");
const live = document.getElementById("live");
const signOut = document.getElementById("sign-out");
const unreachable = document.getElementById("unreachable");
const RETRY = 5000; // milliseconds
let leave = new AbortController();
let signingIn = false;
let outage = null;

function makePage() {
  leave.abort();
  leave = new AbortController();
  const { signal } = leave;
  const root = element("div");
  const heading = element("h1", { tabindex: -1 });
  const message = element("div");
  live.hidden = true;
  announce("");
  main.replaceChildren(heading, message, root);
  return {
    root,
    signal,
    announce,
    title(text, ...more) {
      document.title = `${text} – Job server`;
      heading.replaceChildren(bdi(text), ...more);
    },
    /** Say in the header whether the page updates itself; those that do not say nothing. */
    live(updates = true) {
      live.hidden = !updates;
    },
    /** Handle errors that mean the same everywhere; return whether it did. */
    failed(error) {
      if (signal.aborted || error.name === "AbortError" || error.unreachable) return true;
      if (error.status !== 401) return false;
      signIn(error);
      return true;
    },
    /**
     * Run `load`. Show its error above what was loaded before, until it succeeds. If what the page is about does not
     * exist, `missing` says so, and where to go: a sentence, a link's address, and its text. `suggest` returns a
     * suggestion of a similar name, or null.
     */
    load(load, missing, suggest) {
      const [text, href, where] = missing;
      return this.attempt(message, async () => {
        try {
          await load();
        } catch (error) {
          if (error.status !== 404 || signal.aborted) throw error;
          this.title(text);
          this.live(false);
          const suggestion = await suggest().catch(() => null);
          root.replaceChildren(...[suggestion, element("p", {}, element("a", { href }, where))].filter(Boolean));
        }
      }, `${heading.textContent} cannot be shown`);
    },
    /** Show the rows that `load` returns in a table, or its error above those that were loaded before. */
    async rows(list, place, load) {
      if (!await this.attempt(place, async () => list.update(await load()))) list.stopWaiting();
    },
    /**
     * Run `action`; return whether it succeeded. Show its error in `place`, with what has `failed`, unless it is handled
     * elsewhere.
     */
    async attempt(place, action, failed) {
      try {
        await action();
        place.replaceChildren();
        return true;
      } catch (error) {
        if (!this.failed(error)) showError(place, error, failed);
        return false;
      }
    },
  };
}

function open() {
  signingIn = false;
  const [path, query = ""] = location.hash.replace(/^#\/?/, "").split("?");
  const page = makePage();
  mark(path.split("/")[0]);
  for (const [pattern, show] of PAGES) {
    const match = pattern.exec(path);
    if (match) return show(page, ...match.slice(1).map(decoded), new URLSearchParams(query));
  }
  page.title("Page not found");
  page.root.append(element("p", {}, element("a", { href: "#/" }, "Go to the overview")));
}

function decoded(segment) {
  try {
    return decodeURIComponent(segment);
  } catch {
    return segment;
  }
}

/** Mark the current page in the navigation. */
function mark(part) {
  for (const link of document.querySelectorAll("nav a")) {
    const here = link.getAttribute("href") === `#/${part === "contexts" ? "" : part}`;
    if (here) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
}

function signIn(error) {
  if (signingIn) return;
  const page = makePage();
  signingIn = true;
  disconnect();
  live.textContent = "";
  signOut.hidden = true;
  page.title("Sign in");
  const user = field("User", { autocomplete: "username", autocapitalize: "off", spellcheck: "false" });
  const password = field("Password", { type: "password", autocomplete: "current-password" });
  const token = field("or token", { type: "password", autocomplete: "off" });
  const ended = { message: "You are signed out: your password or token is no longer valid." };
  const message = element("div", {}, authorization() ? alert(error.status === 401 ? ended : error) : null);
  const form = element("form", { class: "sign-in" }, message, user.root, password.root, token.root,
    element("button", {}, "Sign in"));
  onSubmit(form, async () => {
    if (token.input.value) setBearer(token.input.value);
    else setBasic(user.input.value, password.input.value);
    try {
      await send(["user"]);
    } catch (refusal) {
      // A server with other routes than these may not have this one.
      if (refusal.status !== 404) {
        clear();
        const wrong = token.input.value ? "This token is not valid." : "Wrong user or password.";
        message.replaceChildren(alert(refusal.status === 401 ? { message: wrong } : refusal));
        return;
      }
    }
    await start();
  });
  page.root.append(form);
  user.input.focus();
}

async function start() {
  signOut.hidden = !authorization();
  try {
    await learnPermissions();
  } catch (error) {
    if (error.status === 401) return signIn(error);
  }
  receive();
  open();
}

/** While the server cannot be reached, say so once for all of the page, and try again. */
watchServer(async (since) => {
  outage = since;
  unreachable.hidden = since === null;
  if (since === null) {
    await learnPermissions().catch(() => {});
    return publishConnected();
  }
  unreachable.textContent = `The server has not been reachable since ${minute(since)}; trying again.`;
  while (outage === since) {
    await new Promise((resume) => setTimeout(resume, RETRY));
    await send(["healthz"]).catch(() => {});
  }
});

function receive() {
  if (!document.hidden) connect((text) => say(live, text), signIn);
}

signOut.addEventListener("click", () => {
  clear();
  location.hash = "#/";
  start();
});
document.getElementById("skip").addEventListener("click", (event) => {
  event.preventDefault();
  main.focus();
});
window.addEventListener("hashchange", () => {
  open();
  main.querySelector("h1").focus();
  window.scrollTo(0, 0);
});
// Browsers allow few connections to one server, so a page in the background has none.
document.addEventListener("visibilitychange", () => {
  if (signingIn) return;
  if (document.hidden) {
    disconnect();
    live.textContent = "Paused";
  } else {
    receive();
  }
});
setInterval(tick, 1000);
start();
