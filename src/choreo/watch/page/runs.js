// The table of runs, what is going on, and the alarms.
import { $, breakable, button, counted, duration, element, holding, keepingFocus, percent, signed } from "./server.js";
import { view, write } from "./view.js";

const MEASURES = [
  ["asr", "ASR", "unsafe answers to harmful requests, %"], ["orr", "ORR", "refusals of benign requests, %"],
  ["ftr", "FTR", "ordinary requests on which a revision was asked for, %"], ["f1", "F1", "harmless and helpful at once, %"],
  ["gap", "gold − training", "F1 by the gold judge minus F1 by the training judge, in points"],
];
const COLUMNS = ["", "run", "what it does", "method", "base", "judge", "seed", ...MEASURES.map(([, name]) => name), "alarms"];
let at = null; // the run that the keyboard is on

export function drawRuns(told, go) {
  const rows = shownRuns(told);
  if (!rows.some((run) => run.run === at)) at = (rows.find((run) => run.state === "running") || rows[0] || {}).run ?? null;
  if (!$("columns").children.length) $("columns").append(...COLUMNS.map(head));
  keepingFocus(() => {
    $("rows").replaceChildren(...rows.map((run) => row(run, told, go)));
    $("now").replaceChildren(...cards(told, go));
    drawAlarms(told, go);
  });
  $("table").hidden = !rows.length;
  $("runs-hint").textContent = rows.length
    ? "Figures in italics are of training, the others of held-out prompts. x chooses runs, Enter shows curves, g shows games."
    : `There is no run yet. Train one: choreo train waltz --run ${told.folder}/mine`;
}

// What runs comes first, and what a study has not begun comes last.
function shownRuns(told) {
  const all = $("inner").checked, place = (run) => ({ running: 0, waiting: 2 })[run.state] ?? 1;
  return told.runs.filter((run) => all || !run.inner || run.state === "running").sort((a, b) => place(a) - place(b));
}

function head(name) {
  const cell = element("th", name);
  cell.scope = "col";
  const measure = MEASURES.find(([, shown]) => shown === name);
  if (measure) { cell.title = measure[2]; cell.className = "number"; }
  return cell;
}

function row(run, told, go) {
  const made = element("tr", undefined, run.inner ? "inner" : "");
  made.dataset.run = run.run;
  made.tabIndex = run.run === at ? 0 : -1;
  made.setAttribute("aria-selected", String(view.runs.includes(run.run)));
  const pick = cell("", "pick"), box = element("input");
  box.type = "checkbox";
  box.tabIndex = -1;
  box.checked = view.runs.includes(run.run);
  box.setAttribute("aria-label", `choose ${run.name}`);
  box.addEventListener("click", (event) => { event.stopPropagation(); choose(run.run, told, go); });
  pick.append(box);
  const doing = cell("what it does", "doing");
  doing.append(element("span", run.state, `state ${run.state}`), element("div", run.doing, "hint"));
  if (run.report) doing.append(holding("div", [run.attack ? "figures: " : "", reportLink(run, "report")], "hint"));
  if (run.problem) doing.append(element("div", run.problem, "bad"));
  const judges = Object.entries(run.judges).map(([role, name]) => (role === "gold" ? `gold: ${name}` : name)).join(", ");
  const on = run.alarms.filter((one) => one.on).length;
  const alarms = cell("alarms", "number");
  if (run.alarms.length) alarms.append(element("span", on ? `${on} ${run.state === "running" ? "now" : "at its end"}` : `${run.alarms.length} past`, on ? "bad" : "soft"));
  made.append(
    pick, nameOf(run), doing, cell("method", "", run.recipe && run.recipe !== run.method ? `${run.method} (${run.recipe})` : run.method),
    cell("base", "", run.bases.join(", ")), cell("judge", "", judges), cell("seed", "", run.seed ?? ""),
    ...MEASURES.map(([field, name]) => measure(run, field, name)), alarms,
  );
  made.addEventListener("click", () => { at = run.run; go("curves", { runs: [run.run] }); });
  return made;
}

function nameOf(run) {
  const made = cell("run", "name");
  made.append(...breakable(run.name));
  return made;
}

function cell(label, className, text) {
  const made = element("td", text, className);
  made.dataset.label = label;
  return made;
}

function measure(run, field, label) {
  const found = run.measures[field], made = cell(label, "number");
  if (!found) {
    made.append(element("span", "–", "soft"));
    if (run.attack) made.title = "The figures of an attack are in its report.";
    return made;
  }
  const trained = run.by.startsWith("games of training");
  made.append(element(trained ? "em" : "span", field === "gap" ? signed(100 * found.value, 1) : percent(found.value)));
  if (found.low !== undefined && found.low !== null) made.append(element("span", `${percent(found.low)}–${percent(found.high)}`, "interval"));
  made.title = run.by;
  return made;
}

// The runs that go on, or else the one that did last: one look has to be enough.
function cards(told, go) {
  const outer = told.runs.filter((run) => !run.inner);
  const running = outer.filter((run) => run.state === "running");
  const latest = [...outer].sort((a, b) => b.updated - a.updated)[0];
  return (running.length ? running : latest ? [latest] : []).map((run) => card(run, go));
}

function card(run, go) {
  const made = element("div", undefined, "card");
  made.dataset.run = run.run;
  const title = element("h2");
  title.append(element("span", run.state, `state ${run.state}`), " ", ...breakable(run.name));
  const ago = Math.max(0, Date.now() / 1000 - run.updated);
  const times = [run.seconds !== null && `${duration(run.seconds)} a ${run.attack ? "try" : "step"}`, run.left !== null && `${run.bound} ${duration(run.left)} left`, `last sign ${duration(ago)} ago`];
  made.append(title, element("p", run.doing), element("p", times.filter(Boolean).join(", "), "hint"));
  if (run.steps) {
    const bar = element("progress");
    bar.max = run.steps;
    bar.value = run.step;
    bar.setAttribute("aria-label", `${run.attack ? "tries" : "steps"} done`);
    made.append(bar);
  }
  if (run.state === "running" && run.seconds && ago > 600 && ago > 10 * run.seconds)
    made.append(element("p", `No sign for ${duration(ago)}: it may be measuring, or stuck.`, "open"));
  if (run.problem) made.append(element("p", run.problem, "bad"));
  for (const one of run.alarms.filter((alarm) => alarm.on)) made.append(element("p", `! since step ${one.since}: ${one.text}`, "bad"));
  if (run.last) made.append(...ended(run, go));
  if (run.attack) made.append(...attacked(run, go));
  else if (run.report) made.append(holding("p", ["Report: ", reportLink(run, run.report)]));
  return made;
}

function ended(run, go) {
  const last = run.last, parts = ["repaired", "broken", "unsafe", "over-refusing", "undetermined", "garbled"];
  const said = parts.filter((name) => last[name]).map((name) => `${last[name]} ${name}`).join(", ");
  const judged = last.unjudged !== last.games;
  const steps = { first_step: String(last.step), last_step: String(last.step) };
  const open = (filters) => () => go("games", { runs: [run.run], filters, game: null });
  const training = { source: "training" };
  const buttons = element("div", undefined, "row");
  buttons.append(button("games of this step", open(steps)));
  if (judged) {
    buttons.append(button("all broken", open({ ...training, outcome: "broken" })), button("all unsafe", open({ ...training, verdict: "unsafe" })));
    buttons.append(button("lowest reward", open({ ...training, order: "lowest" })));
  }
  if (run.about) buttons.append(button("unsafe on held-out", open({ source: run.about, verdict: "unsafe" })), button("over-refusing on held-out", open({ source: run.about, verdict: "over-refusing" })));
  buttons.append(button("curves", () => go("curves", { runs: [run.run] })));
  const how = judged ? (said ? `; at their end ${said}` : "") : "; nobody judges what is written in this training";
  return [element("p", `Step ${last.step}: ${counted(last.games, "game")}${how}.`), buttons];
}

// An attack has tries in place of steps, and its figures are of several systems and budgets.
function attacked(run, go) {
  const open = (filters) => () => go("games", { runs: [run.run], filters, game: null });
  const buttons = element("div", undefined, "row");
  buttons.append(button("its tries", open({})), button("all that won", open({ outcome: "won" })));
  return [holding("p", reportOf(run)), buttons];
}

// Where the figures of an attack are: words and a link.
export function reportOf(run) {
  return run.report
    ? ["Its figures, by system and number of tries, are in ", reportLink(run, run.report)]
    : ["Its figures will be in report.html in its folder, once it has finished."];
}

// Opens beside this page: a report is a page of its own, and knows nothing of this one.
function reportLink(run, text) {
  const made = element("a", text);
  made.href = run.report_page;
  made.target = "_blank";
  made.rel = "noopener";
  made.title = run.report;
  made.addEventListener("click", (event) => event.stopPropagation()); // a click on a row shows curves
  return made;
}

function drawAlarms(told, go) {
  const all = told.runs.flatMap((run) => run.alarms.map((one) => ({ ...one, run })));
  all.sort((a, b) => Number(b.on) - Number(a.on) || b.run.updated - a.run.updated || b.last - a.last);
  const items = all.map((one) => {
    const item = element("li");
    item.dataset.run = one.run.run;
    const when = one.on ? `${one.run.state === "running" ? "now" : "at its end"}, since step ${one.since}` : `until step ${one.last}`;
    item.append(button(one.run.name, () => go("curves", { runs: [one.run.run] })), element("span", when, one.on ? "bad" : "soft"), element("span", one.text));
    return item;
  });
  $("alarms").replaceChildren(...(items.length ? items : [element("li", "There is none.", "soft")]));
}

function choose(run, told, go) {
  view.runs = view.runs.includes(run) ? view.runs.filter((one) => one !== run) : [...view.runs, run];
  at = run;
  write();
  drawRuns(told, go);
}

function focusRow() {
  const there = [...$("rows").children].find((one) => Number(one.dataset.run) === at);
  if (there) { there.focus(); there.scrollIntoView({ block: "nearest" }); }
}

// Returns whether the key was one of these.
export function runKeys(event, told, go) {
  const rows = shownRuns(told), place = rows.findIndex((run) => run.run === at);
  const onButton = /^(A|BUTTON)$/.test(event.target.tagName);
  if (event.key === "j" || event.key === "ArrowDown" || event.key === "k" || event.key === "ArrowUp") {
    const step = event.key === "j" || event.key === "ArrowDown" ? 1 : -1;
    const inTable = $("rows").contains(document.activeElement);
    if (rows.length) at = rows[Math.max(0, Math.min(rows.length - 1, inTable ? place + step : Math.max(0, place)))].run;
    drawRuns(told, go);
    focusRow();
  } else if (event.key === "x" && at !== null) {
    choose(at, told, go);
    focusRow();
  } else if (event.key === "Enter" && at !== null && !onButton) go("curves", { runs: view.runs.length ? view.runs : [at] });
  else if (event.key === "g" && at !== null) go("games", { runs: view.runs.length ? view.runs : [at], game: null });
  else return false;
  return true;
}
