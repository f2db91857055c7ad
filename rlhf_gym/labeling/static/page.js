// The page: one item at a time, the next ones fetched ahead, answers into the outbox.

import { KINDS, element, showText } from "/cards.js";
import { Outbox } from "/outbox.js";

const AHEAD = 3; // items fetched ahead, so that the next one is there at once, even without a connection
const LONGEST = 900; // seconds: whoever takes longer was interrupted
const byId = (id) => document.getElementById(id);
const here = { token: "", annotator: "", session: null, outbox: null, buffer: [], item: null, view: null, history: [],
  progress: null, fetching: false, again: 0 };

// --- the server -----------------------------------------------------------------------------------------------------

class Refusal extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

async function call(path, body) {
  const headers = { Authorization: `Bearer ${here.token}` };
  if (body) headers["Content-Type"] = "application/json";
  const answer = await fetch(path, { method: body ? "POST" : "GET", headers, body: body && JSON.stringify(body),
    cache: "no-store", credentials: "omit", signal: AbortSignal.timeout(8000) });
  if (answer.ok) return answer.json();
  let reason = answer.statusText;
  try {
    reason = (await answer.json()).error;
  } catch { /* not ours: the status says it */ }
  throw new Refusal(answer.status, reason);
}

function identity() { // crypto.randomUUID is there on https and localhost alone
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

// --- entering -------------------------------------------------------------------------------------------------------

function remember(storage, name, value) {
  try {
    if (value !== undefined) storage.setItem(`rlhf-gym:${name}`, value);
    return storage.getItem(`rlhf-gym:${name}`) ?? "";
  } catch {
    return value ?? "";
  }
}

async function begin() {
  const given = new URLSearchParams(location.hash.slice(1)).get("token");
  const annotator = new URLSearchParams(location.search).get("annotator");
  here.token = remember(sessionStorage, "token", given ?? undefined);
  if (given) history.replaceState(null, "", location.pathname + location.search); // so that nobody sees it, or shares it by mistake
  here.annotator = (annotator ?? "").trim().slice(0, 60);
  byId("name").value = here.annotator || remember(localStorage, "annotator");
  if (!here.token) return welcome();
  if (here.annotator) return enter();
  try {
    if ((await call("/api/session")).annotator) return enter();
  } catch { /* said once a name is given */ }
  welcome();
}

function welcome(problem = "") {
  show("welcome");
  byId("token-row").hidden = Boolean(here.token) && !problem;
  byId("problem").textContent = problem;
  (byId("token-row").hidden || !byId("name").value ? byId("name") : byId("token")).focus();
}

async function enter() {
  try {
    here.session = await call("/api/session");
  } catch (error) {
    welcome(error.status === 401 ? "This token is wrong. The right one was printed when the page was started."
      : error.status ? error.message : "The server does not answer. Is it running?");
    return;
  }
  here.annotator = here.session.annotator || here.annotator; // a token of one's own says whose it is
  if (!here.annotator) return welcome();
  remember(sessionStorage, "token", here.token);
  remember(localStorage, "annotator", here.annotator);
  byId("title").textContent = here.session.title;
  document.title = `Labelling · ${here.session.title}`;
  byId("who").textContent = here.annotator;
  byId("who").setAttribute("aria-label", `You are ${here.annotator}. Change name`);
  byId("who").hidden = false;
  showGuidelines(here.session.guidelines);
  here.outbox = here.outbox ?? new Outbox(here.session.store, call, onOutbox);
  here.buffer = [];
  here.item = null;
  here.history = [];
  show("");
  await here.outbox.flush();
  await refill();
}

function showGuidelines(text) {
  const into = byId("guidelines-text");
  into.replaceChildren();
  for (const block of text.replaceAll("\r", "").split(/\n(?=[-*#] ?)|\n\s*\n/)) {
    const said = block.trim();
    if (!said) continue;
    const [, mark, words] = said.match(/^([-*]|#+)?\s*([\s\S]*)$/);
    if (mark === "-" || mark === "*") {
      if (into.lastChild?.tagName !== "UL") into.append(element("ul"));
      into.lastChild.append(element("li", { textContent: words }));
    } else into.append(element(mark ? "h3" : "p", { textContent: words }));
  }
  byId("guidelines").open = remember(localStorage, "guidelines") !== "closed";
}

// --- items ----------------------------------------------------------------------------------------------------------

async function refill() {
  if (here.fetching) { here.again++; return; }
  here.fetching = true;
  let wait = 400;
  for (;;) {
    const asked = here.again;
    const known = [here.item, ...here.buffer].filter(Boolean).map((item) => item.id);
    const unsent = here.outbox.records.map((record) => record.body.item).filter(Number.isInteger);
    const who = here.annotator;
    try {
      const answer = await call("/api/lease", { annotator: who, count: Math.max(0, AHEAD - here.buffer.length),
        exclude: [...new Set([...known, ...unsent])] });
      if (who !== here.annotator) continue;
      take(answer);
      if (here.again === asked) break;
    } catch (error) {
      if (error.status === 401) { welcome("The server was restarted with another token."); break; }
      if (error.status && error.status < 500) { over("Something is wrong", error.message); break; }
      noConnection();
      if (!here.item) over("The server does not answer", "Nothing is lost. This page continues by itself as soon as the server answers.");
      await new Promise((resolve) => setTimeout(resolve, wait));
      wait = Math.min(wait * 1.6, 5000);
    }
  }
  here.fetching = false;
}

function take(answer) {
  here.progress = answer.progress;
  const at_hand = new Set([here.item, ...here.buffer].filter(Boolean).map((item) => item.id));
  here.buffer.push(...answer.items.filter((item) => !at_hand.has(item.id)));
  if (here.outbox.size === 0 && byId("saved").className === "late") saved("", "Saved"); // the server is back
  showProgress();
  const enough = here.progress.labels >= here.progress.enough;
  if (enough) { here.buffer = []; here.item = null; }
  if (here.item) return;
  if (here.buffer.length) return next();
  if (here.outbox.size) return over("One moment", "Your last labels are being saved.");
  if (answer.waiting) {
    over("Nothing free at the moment", "Others are labelling what is left. This page asks again every few seconds.");
    setTimeout(refill, 4000);
  } else if (enough || here.progress.items > 0) {
    over(here.progress.mine ? "That is all. Thank you!" : "Everything is labelled", `${plural(here.progress.mine, "label")} of yours ` +
      `${here.progress.mine === 1 ? "is" : "are"} saved. You can close this page.`);
  } else over("Nothing to label", "There are no items in this store yet.");
}

function next() {
  display(here.buffer.shift());
}

function display(item) {
  here.item = item;
  byId("task").dataset.item = item.id;
  here.spent = 0;
  here.since = document.hidden ? null : performance.now();
  here.view = KINDS[item.kind](item, byId("cards"), submit, announce);
  byId("question").textContent = here.view.question;
  showText(byId("prompt"), item.prompt);
  byId("answers").replaceChildren(...here.view.answers);
  byId("answers").classList.toggle("single", here.view.answers.length === 1);
  byId("reason").value = "";
  show("task");
  showProgress();
  byId("cards").classList.remove("fresh");
  byId("prompt").scrollTop = Array.isArray(item.prompt) ? byId("prompt").scrollHeight : 0; // the turn to answer is the last
  void byId("cards").offsetWidth; // so that the animation begins again
  byId("cards").classList.add("fresh");
  scrollTo(0, 0);
}

function submit(action, value, words) {
  if (!here.item) return;
  const item = here.item;
  const body = { id: identity(), annotator: here.annotator, item: item.id, action, value,
    seconds: Math.round(Math.min(seconds(), LONGEST) * 100) / 100, reason: byId("reason").value.trim() };
  here.history.push({ item, action });
  here.item = null;
  if (byId("saved").className !== "late") saved("", "Saving");
  here.outbox.add("/api/judgements", body);
  byId("said").textContent = `Last: ${words[0].toLowerCase()}${words.slice(1)}`;
  announce(`${words}. ${here.buffer.length ? "Next one." : ""}`);
  if (document.activeElement && document.activeElement !== document.body) document.activeElement.blur();
  if (here.buffer.length) next();
  else over("One moment", "The next item is being loaded.");
  showProgress();
  refill();
}

async function undo() {
  byId("undo").disabled = true;
  const id = identity();
  let item = null;
  if (here.history.length) {
    item = here.history.pop().item;
    if (byId("saved").className !== "late") saved("", "Saving");
    here.outbox.add("/api/undo", { id, annotator: here.annotator, item: item.id });
  } else {
    try {
      item = (await call("/api/undo", { id, annotator: here.annotator })).item;
    } catch (error) {
      announce(error.status ? "There is nothing to undo" : "The server does not answer");
      byId("said").textContent = error.status === 409 ? "Nothing to undo" : "";
    }
  }
  byId("undo").disabled = false;
  if (!item) return;
  if (here.item) here.buffer.unshift(here.item);
  here.buffer = here.buffer.filter((other) => other.id !== item.id);
  display(item);
  byId("said").textContent = "Undone: judge it again";
  announce("Undone. Judge it again.");
  showProgress();
  refill();
}

function seconds() {
  return here.spent + (here.since === null ? 0 : (performance.now() - here.since) / 1000);
}

document.addEventListener("visibilitychange", () => { // time with the page out of sight does not count
  if (!here.item) return;
  if (document.hidden) { here.spent = seconds(); here.since = null; } else here.since = performance.now();
});

// --- what is shown --------------------------------------------------------------------------------------------------

function show(name) {
  for (const section of ["welcome", "task", "over"]) byId(section).hidden = section !== name;
  byId("actions").hidden = !["task", "over"].includes(name) || !here.session;
  byId("answers").hidden = name !== "task";
  byId("skip").hidden = name !== "task";
}

function over(title, text) {
  here.item = null;
  byId("over-title").textContent = title;
  byId("over-text").textContent = text;
  byId("pace").hidden = true;
  show("over");
  announce(`${title}. ${text}`);
}

function plural(count, word) {
  return `${count} ${word}${count === 1 ? "" : "s"}`;
}

function unsentLabels() {
  const records = here.outbox.records;
  const undone = records.filter((record) => record.path.endsWith("undo")).length;
  return records.filter((record) => !record.path.endsWith("undo") && record.body.action !== "skip").length - undone;
}

function showProgress() {
  const progress = here.progress;
  if (!progress) return;
  const done = Math.max(0, Math.min(progress.enough, progress.labels + unsentLabels()));
  byId("count").textContent = `${done} of ${progress.enough}`;
  byId("bar").value = done;
  byId("bar").max = Math.max(1, progress.enough);
  const pace = progress.seconds_per_label;
  byId("pace").hidden = !pace || progress.mine < 3 || !here.item;
  if (byId("pace").hidden) return;
  const rate = 60 / pace;
  const minutes = ((progress.enough - done) * pace) / 60;
  byId("rate").textContent = `${rate < 10 ? rate.toFixed(1) : Math.round(rate)} a minute${done < progress.enough ? ", " : ""}`;
  byId("left").textContent = done >= progress.enough ? "" : minutes < 1 ? "under a minute left"
    : minutes < 90 ? `${Math.round(minutes)} min left` : `${(minutes / 60).toFixed(1)} h left`;
}

function saved(kind, text) {
  if (kind === "late" && byId("saved").className !== "late") announce(text);
  byId("saved").className = kind;
  if (byId("saved").textContent !== text) byId("saved").textContent = text;
}

function noConnection() {
  const left = here.outbox.size;
  saved("late", left ? `No connection, ${plural(left, "label")} kept in this browser` : "No connection, trying again");
}

function announce(text) {
  byId("live").textContent = text;
}

function onOutbox(event, record, reason) {
  const left = here.outbox.size;
  if (event === "locked") welcome("The server was restarted with another token. Your labels are kept in this browser.");
  else if (event === "refused") saved("late", `Not saved: ${reason}`);
  else if (event === "waiting") noConnection();
  else if (left === 0) saved("", "Saved");
  if (event === "stored" && here.progress) { // until the server counts again
    const by = record.path.endsWith("undo") ? -1 : record.body.action === "skip" ? 0 : 1;
    here.progress.labels += by;
    here.progress.mine += by;
  }
  showProgress();
  if (event === "stored" && left === 0) refill();
}

// --- keys and buttons -----------------------------------------------------------------------------------------------

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.repeat || event.isComposing) return;
  const writing = event.target.matches("textarea, input:not([type=radio])");
  if (writing) {
    if (event.key === "Escape") event.target.blur();
    return;
  }
  if (!byId("welcome").hidden) return;
  if (event.target.matches("button, summary, input") && ["Enter", " "].includes(event.key)) return; // they answer by themselves
  const act = { u: undo, s: skip, g: toggleGuidelines, r: () => byId("reason").focus() }[event.key.toLowerCase()];
  if (act && (here.item || event.key.toLowerCase() === "u")) act();
  else if (!(here.item && here.view.keys(event))) return;
  event.preventDefault();
});

function skip() {
  submit("skip", [], "Skipped");
}

function toggleGuidelines() {
  byId("guidelines").open = !byId("guidelines").open;
}

byId("undo").addEventListener("click", undo);
byId("skip").addEventListener("click", skip);
byId("guidelines").addEventListener("toggle", () => {
  remember(localStorage, "guidelines", byId("guidelines").open ? "open" : "closed");
});
byId("reason").addEventListener("input", (event) => {
  event.target.style.height = "auto";
  event.target.style.height = `${event.target.scrollHeight + 2}px`;
});
byId("who").addEventListener("click", () => welcome());
byId("enter").addEventListener("submit", (event) => {
  event.preventDefault();
  here.annotator = byId("name").value.trim();
  if (byId("token").value.trim()) here.token = byId("token").value.trim().replace(/^.*#token=/, "");
  if (!here.annotator) { byId("problem").textContent = "Please give a name; any name will do."; return; }
  enter();
});
window.addEventListener("online", () => here.outbox?.flush());

begin();
