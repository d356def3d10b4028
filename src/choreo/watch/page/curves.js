// The curves of the chosen runs: of one run the fields of a figure in one plot; of several a plot for each field, the
// runs laid over each other, and those that differ in their seed alone as one line with a band.
import { chart, named, smoothed } from "./chart.js";
import { reportOf } from "./runs.js";
import { $, call, element, holding, query } from "./server.js";
import { view } from "./view.js";

const COLOURS = 8, DASHES = ["none", "6 3", "2 2", "8 3 2 3"];
let found = null, asked = "", known = "";

export function shownIn(told) {
  if (view.runs.length) return view.runs;
  const outer = told.runs.filter((run) => !run.inner && run.lines[1]);
  const running = outer.filter((run) => run.state === "running");
  const best = [...(running.length ? running : outer)].sort((a, b) => b.updated - a.updated)[0];
  return best ? [best.run] : [];
}

export async function readCurves(told) {
  const runs = shownIn(told);
  const lines = told.runs.filter((run) => runs.includes(run.run)).map((run) => [run.run, ...run.lines]).join();
  if (runs.join() !== asked || lines !== known || !found) {
    found = runs.length ? await call(`curves?${query({ runs: runs.join() })}`) : { figures: [], runs: [] };
    asked = runs.join();
    known = lines;
  }
  drawCurves(told);
}

export function drawCurves(told) {
  if (!found) return;
  $("smooth").value = String(view.smooth);
  $("more").checked = view.more;
  const runs = new Map(told.runs.map((run) => [run.run, run]));
  const groups = grouped(found.runs.filter((one) => runs.has(one.run)), runs);
  const bands = groups.some((group) => group.members.length > 1);
  $("band").checked = view.band;
  $("band-label").hidden = !alikeAmong(found.runs, runs);
  const several = found.runs.length > 1;
  $("legend").replaceChildren(...groups.map((group) => {
    const item = element("li");
    item.append(several ? named(group.name, group) : element("strong", group.name));
    return item;
  }));
  const marks = several ? [] : found.runs.flatMap((one) => runs.get(one.run)?.alarms.map((alarm) => [alarm.since, `alarm: ${alarm.text}`]) || []);
  const figures = found.figures.filter((figure) => view.more || !figure.more);
  $("figures").replaceChildren(...figures.flatMap((figure) => (several ? apart(figure, groups) : [together(figure, groups[0], marks)])).filter(Boolean));
  const spread = bands ? " A band goes from the lowest to the highest seed, its line is their mean." : "";
  const dashed = marks.length ? " A dashed red line: an alarm begins." : "";
  const attacks = found.runs.map((one) => runs.get(one.run)).filter((run) => run?.attack);
  const hints = attacks.map((run) => [`${run.name} is an attack: it has tries in place of steps, and no curves here. `, ...reportOf(run)]);
  if (!found.runs.length) hints.push(["No run is chosen (x in the table), and none has curves yet."]);
  else if (figures.length) hints.push([`Faint lines are single steps, bold ones means of ${view.smooth} steps.${spread}${dashed}`]);
  else if (attacks.length < found.runs.length) hints.push(["No step has been recorded yet."]);
  $("curves-hint").replaceChildren(...hints.map((hint) => holding("div", hint)));
}

function alikeAmong(some, runs) {
  const alike = some.map((one) => runs.get(one.run)?.alike).filter(Boolean);
  return new Set(alike).size < alike.length;
}

function grouped(some, runs) {
  const groups = new Map();
  for (const one of some) {
    const run = runs.get(one.run);
    const name = view.band && run.alike ? run.alike : `run ${one.run}`;
    groups.set(name, [...(groups.get(name) || []), one]);
  }
  return [...groups.values()].map((members, i) => {
    const seeds = members.map((one) => runs.get(one.run).seed).sort((a, b) => a - b);
    const first = runs.get(members[0].run);
    const name = members.length > 1 ? `${first.recipe || first.name}, seeds ${seeds.join(", ")}` : first.name;
    return { members, name, colour: `var(--c${i % COLOURS})`, dash: DASHES[Math.floor(i / COLOURS) % DASHES.length] };
  });
}

function points(one, field) {
  const values = one.values[field] || [];
  return values.map((value, i) => [one.steps[i], value]).filter(([, value]) => value !== null);
}

function together(figure, group, marks) {
  const lines = Object.entries(figure.fields).map(([field, name], i) => {
    const raw = points(group.members[0], field);
    return { name, colour: `var(--c${i % COLOURS})`, points: smoothed(raw, view.smooth), faint: view.smooth > 1 ? raw : [] };
  });
  const there = lines.filter((line) => line.points.length);
  return there.length ? chart({ title: figure.title, unit: figure.unit, lines: there, marks }) : null;
}

function apart(figure, groups) {
  const alone = Object.keys(figure.fields).length === 1;
  return Object.entries(figure.fields).map(([field, name]) => {
    const lines = groups.map((group) => line(group, field)).filter((one) => one.points.length);
    return lines.length ? chart({ title: alone ? figure.title : `${figure.title}: ${name}`, unit: figure.unit, lines, marks: [] }) : null;
  });
}

// The mean of a group's runs at each step that all of them have, from the lowest to the highest.
function line(group, field) {
  const each = group.members.map((one) => points(one, field)).filter((some) => some.length);
  if (each.length < 2) {
    const raw = each[0] || [];
    return { ...group, points: smoothed(raw, view.smooth), faint: view.smooth > 1 ? raw : [] };
  }
  const maps = each.map((some) => new Map(smoothed(some, view.smooth)));
  const steps = [...maps[0].keys()].filter((step) => maps.every((one) => one.has(step)));
  const at = (step) => maps.map((one) => one.get(step));
  return {
    ...group,
    points: steps.map((step) => [step, at(step).reduce((sum, value) => sum + value, 0) / maps.length]),
    band: steps.map((step) => [step, Math.min(...at(step)), Math.max(...at(step))]),
  };
}
