import { drawCurves, readCurves } from "./curves.js";
import { gameKeys, openGames, refreshGames } from "./games.js";
import { openRecipes } from "./recipes.js";
import { drawRuns, runKeys } from "./runs.js";
import { $, call, counted, element, useKey } from "./server.js";
import { firstKey, read, view, write } from "./view.js";

const EVERY = 2000; // milliseconds between two looks
const KEYS = [
  ["1 2 3 4", "runs, curves, recipes, games"], ["j k", "next, previous run or game (also ↓ ↑)"],
  ["x", "choose a run, or let it go; several are laid over each other"], ["Enter", "the curves of the run"],
  ["g", "the games of the run"], ["/", "look for words in games"], ["b", "games that a revision broke"],
  ["u", "games that end unsafe; after b, those that are both: filters add up, and the same key again drops its own"],
  ["l", "lowest reward first"], ["c", "all games again, without filters"],
  ["t", "advantages, log-probabilities or changes, on the words"], ["s", "smooth curves more, or less"], ["?", "these keys"],
];
let told = null;

if (firstKey) {
  useKey(firstKey);
  history.replaceState(null, "", location.pathname);
}
read();

async function look() {
  try {
    const before = told;
    told = await call("runs");
    $("key-form").hidden = true;
    $("error").textContent = told.problem;
    $("error").hidden = !told.problem;
    if (!before) unveil();
    if (told !== before) await show(before);
    else about();
  } catch (error) {
    $("key-form").hidden = error.status !== 401;
    if (error.status === 401) {
      $("about").textContent = "This page wants its key.";
      if (document.activeElement !== $("key")) $("key").focus();
    } else {
      $("error").textContent = error.status ? error.message : "The server does not answer. Is choreo watch still running?";
      $("error").hidden = false;
    }
  }
}

function about() {
  const running = told.runs.filter((run) => run.state === "running" && !run.inner).length;
  const games = `${counted(told.games, "game")}${told.waiting ? `, ${counted(told.waiting, "file")} to read` : ""}`;
  $("about").textContent = `${told.folder}: ${counted(told.runs.filter((run) => !run.inner).length, "run")}, ${running} running, ${games}`;
  document.title = `${running ? "● " : ""}choreo watch`;
}

async function show(before) {
  about();
  if (before) alarmed(before);
  const known = new Set(told.runs.map((run) => run.run));
  view.runs = view.runs.filter((run) => known.has(run));
  drawRuns(told, go);
  if (view.tab === "curves") await readCurves(told);
  if (view.tab === "recipes") await openRecipes(told);
  if (view.tab === "games") await refreshGames(told);
}

// An alarm that begins while one looks at something else.
function alarmed(before) {
  const on = (all) => new Map(all.runs.flatMap((run) => run.alarms.filter((one) => one.on).map((one) => [`${run.name}: ${one.text}`, one])));
  const earlier = on(before);
  const fresh = [...on(told)].filter(([text]) => !earlier.has(text));
  if (!fresh.length) return;
  $("alarm").replaceChildren(...fresh.map(([text, one]) => element("div", `step ${one.since}, ${text}`)));
  $("alarm").hidden = false;
  setTimeout(() => { $("alarm").hidden = true; }, 30000);
}

// Shows a view. changes: of what is looked at.
export async function go(tab, changes = {}) {
  Object.assign(view, changes, { tab });
  write(true);
  await turn();
}

// Shows the chosen view, and none before the server has told anything, as without a key.
function unveil() {
  for (const name of ["runs", "curves", "recipes", "games"]) $(name).hidden = !told || name !== view.tab;
  for (const tab of document.querySelectorAll("#tabs [data-tab]")) tab.setAttribute("aria-current", String(tab.dataset.tab === view.tab));
}

async function turn() {
  unveil();
  if (!told) return;
  drawRuns(told, go);
  try {
    if (view.tab === "curves") await readCurves(told);
    if (view.tab === "recipes") await openRecipes(told);
    if (view.tab === "games") await openGames(told);
  } catch (error) {
    $("error").textContent = error.message;
    $("error").hidden = false;
  }
}

document.addEventListener("keydown", (event) => {
  const field = /^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName) && event.target.type !== "checkbox";
  if (event.ctrlKey || event.metaKey || event.altKey || $("help").open || !told) return;
  if (field) {
    if (event.key === "Escape") event.target.blur();
    return;
  }
  const tab = ["runs", "curves", "recipes", "games"][Number(event.key) - 1];
  if (tab) go(tab);
  else if (event.key === "?") $("help").showModal();
  else if (event.key === "/") { go("games"); $("words").focus(); } // at once, so that no letter is lost
  else if (event.key === "s" && view.tab === "curves") smoother();
  else if (view.tab === "games" ? !gameKeys(event) : view.tab !== "runs" || !runKeys(event, told, go)) return;
  event.preventDefault();
});

function smoother() {
  const options = [...$("smooth").options].map((option) => Number(option.value));
  view.smooth = options[(options.indexOf(view.smooth) + 1) % options.length];
  write();
  drawCurves(told);
}

for (const [id, name] of [["band", "band"], ["more", "more"]])
  $(id).addEventListener("change", () => { view[name] = $(id).checked; write(); drawCurves(told); });
$("smooth").addEventListener("change", () => { view.smooth = Number($("smooth").value); write(); drawCurves(told); });
$("all-settings").addEventListener("change", () => openRecipes(told));
$("inner").addEventListener("change", () => drawRuns(told, go));
for (const tab of document.querySelectorAll("#tabs [data-tab]")) tab.addEventListener("click", () => go(tab.dataset.tab));
$("help-open").addEventListener("click", () => $("help").showModal());
$("keys").append(...KEYS.flatMap(([keys, what]) => {
  const term = element("dt");
  term.append(...keys.split(" ").map((one) => element("kbd", one)));
  return [term, element("dd", what)];
}));
$("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  useKey($("key").value);
  look();
});
addEventListener("popstate", () => {
  const again = new URLSearchParams(location.hash.slice(1)).get("key");
  if (again) location.reload(); // another link in the same tab
  read();
  turn();
});

turn();
look();
setInterval(() => { if (!document.hidden) look(); }, EVERY);
