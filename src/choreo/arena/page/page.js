"use strict";
// The key comes in the fragment of the address, which no browser sends, and stays in this tab.

const $ = (id) => document.getElementById(id);
const MODES = {
  pairs: {
    question: "Which answer is better?",
    choices: [["left", "Left", "1", "ArrowLeft"], ["tie", "Equally good", "2"], ["both bad", "Both bad", "3"], ["right", "Right", "4", "ArrowRight"]],
  },
  labels: {
    question: "What is this answer?",
    choices: [["unsafe", "Unsafe", "1"], ["over-refusal", "Over-refusal", "2"], ["fine", "Fine", "3"]],
  },
};
const ARROWS = { ArrowLeft: "←", ArrowRight: "→" };
let key = sessionStorage.getItem("choreo-arena-key") || "";
let mode = "", state = null, degenerate = false, busy = false;

const given = new URLSearchParams(location.hash.slice(1)).get("key");
if (given) {
  key = given;
  sessionStorage.setItem("choreo-arena-key", key);
  history.replaceState(null, "", location.pathname);
}

// Another link in the same tab is another rater, or a new key.
addEventListener("hashchange", () => location.reload());

function element(name, text, className) {
  const made = document.createElement(name);
  if (text !== undefined) made.textContent = text;
  if (className) made.className = className;
  return made;
}

async function call(path, body) {
  const headers = { Authorization: `Bearer ${key}` };
  const answer = await fetch(path, body ? { method: "POST", headers, body: JSON.stringify(body) } : { headers });
  const found = await answer.json();
  if (!answer.ok) throw Object.assign(new Error(found.error.message), { status: answer.status });
  return found;
}

// As much of Markdown as guidelines need: headings, lists, paragraphs, **bold** and `code`. Never markup of others.
function markdown(text) {
  const made = document.createDocumentFragment();
  let list = null, paragraph = null;
  for (const line of text.split(/\r?\n/)) {
    const head = /^(#{1,6}) +(.*)$/.exec(line), point = /^\s*(?:[-*]|\d+[.)]) +(.*)$/.exec(line);
    if (head) { made.append(inline(element(head[1].length < 3 ? "h2" : "h3"), head[2])); list = paragraph = null; }
    else if (point) {
      if (!list) { list = element("ul"); made.append(list); }
      paragraph = inline(element("li"), point[1]);
      list.append(paragraph);
    } else if (!line.trim()) { paragraph = null; if (list) list = null; }
    else if (paragraph) inline(paragraph, ` ${line.trim()}`);
    else { list = null; paragraph = inline(element("p"), line.trim()); made.append(paragraph); }
  }
  return made;
}

function inline(into, text) {
  for (const part of text.split(/(\*\*[^*]+\*\*|`[^`]+`)/)) {
    if (part.startsWith("**") && part.length > 4) into.append(element("strong", part.slice(2, -2)));
    else if (part.startsWith("`") && part.length > 2) into.append(element("code", part.slice(1, -1)));
    else into.append(part);
  }
  return into;
}

async function connect() {
  try {
    const about = await call("guidelines");
    mode = about.mode;
    $("about").textContent = `as ${about.rater}`;
    $("key-form").hidden = true;
    $("guidelines-text").replaceChildren(markdown(about.guidelines));
    $("choices").replaceChildren(...buttons());
    $("more").hidden = $("progress").hidden = false;
    show(await call("next"));
    if (state.done === 0) $("guidelines").showModal();
  } catch (error) {
    const wanted = key
      ? "This key is not known here. Ask whoever gave you the link for a new one." : "This page wants your key.";
    $("about").textContent = error.status === 401 ? wanted : `No server: ${error.message}`;
    $("key-form").hidden = error.status !== 401;
    if (error.status === 401) $("key").focus();
  }
}

function buttons() {
  const made = MODES[mode].choices.map(([choice, name, digit, arrow]) => {
    const button = element("button");
    button.append(element("kbd", arrow ? `${digit} ${ARROWS[arrow]}` : digit), name);
    button.addEventListener("click", () => rate(choice));
    return button;
  });
  if (mode === "labels") {
    const button = element("button");
    button.id = "degenerate";
    button.append(element("kbd", "d"), "Degenerate");
    button.addEventListener("click", toggle);
    made.unshift(button);
  }
  return made;
}

function toggle() {
  degenerate = !degenerate;
  $("degenerate").setAttribute("aria-pressed", String(degenerate));
}

function show(next) {
  state = next;
  const item = state.item;
  $("work").hidden = $("choices").hidden = !item;
  $("end").hidden = Boolean(item);
  $("bar").max = state.total;
  $("bar").value = state.done;
  $("count").textContent = `${state.done} of ${state.total}`;
  $("undo").disabled = state.last === null;
  if (mode === "labels") { degenerate = true; toggle(); }
  if (!item) return;
  $("question").textContent = MODES[mode].question;
  $("earlier").replaceChildren(...item.earlier.flatMap((turn) => [element("h3", turn.role), element("p", turn.content, "text")]));
  $("prompt").textContent = item.prompt;
  $("kind").textContent = item.kind ? ` (${item.kind})` : "";
  const names = mode === "pairs" ? ["Left", "Right"] : ["Answer"];
  $("answers").replaceChildren(...item.answers.map((text, index) => {
    const card = element("article");
    const words = element("p", text.trim() ? text : "(an empty answer)", text.trim() ? "text" : "text hint");
    card.append(element("h3", names[index]), words);
    return card;
  }));
  window.scrollTo(0, 0);
  $("question").focus({ preventScroll: true });
}

// One thing at a time: the next item comes when the server says that this one is on its disk.
async function tell(path, body, said) {
  if (busy) return;
  busy = true;
  try {
    show(await call(path, body));
    $("error").hidden = true;
    $("said").textContent = said;
  } catch (error) {
    $("error").textContent = error.status
      ? error.message : "The server did not answer, so this may not be saved. Press the key again.";
    $("error").hidden = false;
    if (error.status === 409) show(await call("next").catch(() => state));
  }
  busy = false;
}

function rate(choice) {
  const marked = mode === "labels" && degenerate;
  if (state && state.item)
    tell("rate", { item: state.item.id, choice, degenerate: mode === "labels" ? degenerate : null },
      `saved: ${choice}${marked ? ", degenerate" : ""}`);
}

function undo() {
  if (state && state.last !== null) tell("undo", { item: state.last }, "undone");
}

document.addEventListener("keydown", (event) => {
  const typing = event.target.tagName === "INPUT", asked = event.ctrlKey || event.metaKey || event.altKey;
  if (!mode || typing || asked || event.repeat || $("guidelines").open) return;
  const pressed = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  const choice = MODES[mode].choices.find(([, , ...keys]) => keys.includes(pressed));
  if (choice) rate(choice[0]);
  else if (pressed === "d" && mode === "labels" && state.item) toggle();
  else if (pressed === "u") undo();
  else if (pressed === "g") $("guidelines").showModal();
  else return;
  event.preventDefault();
});
$("undo").addEventListener("click", undo);
$("guide").addEventListener("click", () => $("guidelines").showModal());
$("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  key = $("key").value.trim();
  sessionStorage.setItem("choreo-arena-key", key);
  connect();
});
connect();
