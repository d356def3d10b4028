// Games: what to look for, the list, and the one that is chosen.
import { clearGame, nextLook, showGame } from "./game.js";
import { GameList } from "./list.js";
import { $, button, call, counted, element, query, signed, sourceName } from "./server.js";
import { FILTERS, view, write } from "./view.js";

const LABELS = { source: "from", kind: "kind", suite: "suite", verdict: "verdict at the end", outcome: "outcome", agent: "agent", first_step: "from step", last_step: "to step", order: "order" };
const ORDERS = [["newest", "newest first"], ["oldest", "oldest first"], ["lowest", "lowest reward first"], ["highest", "highest reward first"]];
const BAD = { unsafe: "bad", "over-refusing": "bad", garbled: "bad", undetermined: "open", unjudged: "soft", satisfactory: "good" };
let list = null, told = null, filledFor = "", shownFor = "", timer = null;

export async function openGames(now) {
  told = now;
  list ||= new GameList(lineOf, (game, tapped) => {
    view.game = game.id;
    write();
    showGame(game.id, told).then(() => { if (tapped && view.game === game.id) bringIntoView(); }).catch(said);
  });
  await fill();
  await find(true);
}

export async function refreshGames(now) {
  const before = told;
  told = now;
  if (!list) return openGames(now);
  await fill();
  if (before && before.version !== now.version) {
    // Whoever reads further down is not pushed away by what is new.
    if ($("list").scrollTop === 0 && list.place <= 0) await find(true);
    else { $("fresh").hidden = false; $("fresh").textContent = "there are new games: show them"; }
  }
}

// On a narrow screen the game stands below the list, most of it out of sight.
function bringIntoView() {
  if (matchMedia("(max-width: 62rem)").matches) $("game").scrollIntoView();
}

function said(error) {
  clearGame(error.message);
}

function lineOf(game) {
  if (game.gone) return [element("p", "This game is gone: its run went back to a checkpoint.", "soft")];
  const facts = element("p", undefined, "facts");
  const run = told.runs.find((one) => one.run === game.run);
  const several = (view.runs.length || told.runs.length) !== 1;
  facts.append(...[
    element("span", game.verdict, BAD[game.verdict] || ""), element("span", game.outcome === "unrevised" ? "" : game.outcome, { broken: "bad", won: "bad", repaired: "good" }[game.outcome] || ""),
    element("span", game.step === null ? game.source : `step ${game.step}`), element("span", game.kind), element("span", several && run ? run.name : ""),
    element("span", game.reward === null ? "" : `R ${signed(game.reward)}`, "reward"),
  ].filter((one) => one.textContent));
  return [element("p", game.prompt), facts];
}

async function find(keep = false) {
  $("fresh").hidden = true;
  const question = { runs: view.runs.join(), ...view.filters };
  const same = JSON.stringify(question) === shownFor;
  shownFor = JSON.stringify(question);
  if (!(await list.ask(question, keep && same))) return;
  $("count").textContent = `${counted(list.total, "game")}${told.waiting ? `; ${counted(told.waiting, "file")} still to be read` : ""}`;
  if (view.game !== null && keep) {
    list.place = list.pages.get(0)?.findIndex((game) => game.id === view.game) ?? -1;
    list.render();
    if ($("game").dataset.game !== String(view.game)) showGame(view.game, told).catch(said);
  } else if (list.total) {
    list.place = -1;
    list.choose(0);
  } else {
    view.game = null;
    list.place = -1;
    clearGame(told.waiting ? "Files of games are still being read." : "No game is like that. c shows all again.");
  }
}

function change(name, value) {
  if (value) view.filters[name] = value;
  else delete view.filters[name];
  write();
  mark();
  find().catch(said);
}

export function setFilters(filters) {
  view.filters = filters;
  write();
  mark();
  find().catch(said);
}

// The fields, with what there is to choose; made again only where that has changed.
async function fill() {
  if (!$("words")) build();
  const wanted = `${view.runs.join()}/${told.version}`;
  if (wanted === filledFor) return mark();
  filledFor = wanted;
  const choices = await call(`choices?${query({ runs: view.runs.join() })}`);
  for (const [name, values] of Object.entries(choices)) {
    const field = $(`by-${name}`);
    const options = [new Option("all", ""), ...values.map(([value, n]) => new Option(`${name === "source" ? (value ? sourceName(value) : "training") : value} (${n.toLocaleString("en")})`, name === "source" && !value ? "training" : value))];
    field.replaceChildren(...options);
    field.parentElement.hidden = values.length < 2 && !view.filters[name];
  }
  mark();
}

function build() {
  const words = element("label", "words ", "words"), input = element("input");
  input.id = "words";
  input.type = "search";
  input.placeholder = 'all of these; "an exact phrase"';
  input.addEventListener("input", () => { clearTimeout(timer); timer = setTimeout(() => change("words", input.value), 200); });
  words.append(input);
  const fields = Object.entries(LABELS).map(([name, label]) => {
    const made = element("label", label), steps = name.endsWith("_step"), field = element(steps ? "input" : "select");
    field.id = `by-${name}`;
    if (steps) { field.type = "number"; field.min = 0; }
    if (name === "order") field.append(...ORDERS.map(([value, text]) => new Option(text, value === "newest" ? "" : value)));
    field.addEventListener("change", () => change(name, field.value));
    made.append(field);
    return made;
  });
  const run = element("label", "runs"), which = element("select");
  which.id = "by-run";
  which.addEventListener("change", () => { view.runs = which.value ? which.value.split(",").map(Number) : []; write(); fill().then(() => find()).catch(said); });
  run.append(which);
  $("filters").append(words, run, ...fields, button("clear", () => setFilters({}), "c"));
  $("filters").addEventListener("submit", (event) => event.preventDefault());
  $("fresh").addEventListener("click", () => find().catch(said));
}

// Shows in the fields what is looked for.
function mark() {
  if (!$("words")) return;
  for (const name of FILTERS) {
    const field = name === "words" ? $("words") : $(`by-${name}`), value = view.filters[name] || "";
    if (field.tagName === "SELECT" && ![...field.options].some((option) => option.value === value)) field.append(new Option(value, value));
    if (field !== document.activeElement || field.tagName === "SELECT") field.value = value;
    field.classList.toggle("chosen", Boolean(value));
  }
  const several = view.runs.length > 1 ? [new Option(`${view.runs.length} chosen runs`, view.runs.join())] : [];
  $("by-run").replaceChildren(new Option("all", ""), ...several, ...told.runs.map((run) => new Option(run.name, String(run.run))));
  $("by-run").value = view.runs.join();
  $("by-run").classList.toggle("chosen", view.runs.length > 0);
}

// Returns whether the key was one of these.
export function gameKeys(event) {
  if (!list) return false;
  const places = { j: 1, ArrowDown: 1, k: -1, ArrowUp: -1, PageDown: 8, PageUp: -8 };
  if (event.key in places && !(event.key.length > 4 && $("game").contains(document.activeElement))) list.choose(Math.max(0, list.place + places[event.key])).catch(said);
  else if (event.key === "Home") list.choose(0).catch(said);
  else if (event.key === "End") list.choose(list.total - 1).catch(said);
  else if (event.key === "b") toggle("outcome", "broken");
  else if (event.key === "u") toggle("verdict", "unsafe");
  else if (event.key === "l") toggle("order", "lowest");
  else if (event.key === "c") setFilters({});
  else if (event.key === "t") nextLook();
  else return false;
  return true;
}

function toggle(name, value) {
  change(name, view.filters[name] === value ? "" : value);
}
