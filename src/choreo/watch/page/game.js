// One game: its turns, what the judge said, its rewards by component, and what each token was worth.
import { $, button, call, element, query, short, signed, sourceName, svg } from "./server.js";

const LOOKS = [["plain", "changes"], ["advantages", "advantages"], ["logprobs", "log-probabilities"]];
let look = "plain", shown = null, where = null;

export function clearGame(text) {
  shown = null;
  $("game").dataset.game = "";
  $("game").replaceChildren(element("p", text, "hint"));
}

export async function showGame(id, told) {
  $("game").dataset.game = id;
  const found = await call(`game?${query({ game: id })}`);
  if ($("game").dataset.game !== String(id)) return; // another one was chosen meanwhile
  shown = found;
  where = told.runs.find((run) => run.run === found.run);
  draw();
  $("game").scrollTop = 0;
}

export function nextLook() {
  const names = LOOKS.map(([name]) => name);
  look = names[(names.indexOf(look) + 1) % names.length];
  if (shown) draw();
}

function draw() {
  const game = shown, prompt = game.prompt;
  const facts = [where ? where.name : "", game.step === null ? sourceName(game.source) : `step ${game.step}`, prompt.kind, prompt.suite, prompt.language, game.attack ? `try ${game.attack.try} of ${game.attack.system}${game.attack.won ? ", won" : ""}` : `sample ${game.sample}`];
  const choices = element("div", undefined, "choices");
  for (const [name, text] of LOOKS) {
    const one = button(text, () => { look = name; draw(); });
    one.setAttribute("aria-pressed", String(look === name));
    choices.append(one);
  }
  choices.append(element("span", { plain: "", advantages: "blue: above the baseline, orange: below; t goes on", logprobs: "the fainter, the less likely; t goes on" }[look], "hint"));
  const back = button("↑ to the list", () => $("found").scrollIntoView());
  back.className = "back";
  const made = [back, element("p", facts.filter(Boolean).join(" · "), "hint"), ...earlier(prompt), ...asked(game), choices];
  let before = null;
  for (const turn of game.turns) {
    made.push(turnOf(turn, before, game));
    if (turn.what !== "review") before = turn.text;
  }
  made.push(...rewards(game));
  made.push(element("p", game.file, "hint"));
  $("game").replaceChildren(...made);
}

// The prompt; of a try of an attack, what it was before the attack worded it, which is what the judge reads.
function asked(game) {
  const sent = game.prompt.text, request = game.attack ? game.attack.prompt : sent;
  if (request === sent) return [element("h3", "Prompt"), element("p", sent, "text")];
  return [element("h3", "Prompt of the suite, which the judge reads"), element("p", request, "text"), element("h3", "What the attack sent"), element("p", sent, "text")];
}

// What was said before the prompt.
function earlier(prompt) {
  return (prompt.earlier || []).flatMap((turn) => [element("h3", turn.role), element("p", turn.content, "text soft")]);
}

function turnOf(turn, before, game) {
  const state = turn.verdict ? turn.verdict[1] : turn.what === "review" ? "" : "soft";
  const made = element("section", undefined, `turn ${state}`), head = element("div", undefined, "head");
  head.append(element("h3", turn.what));
  if (turn.verdict) head.append(element("span", turn.verdict[0], state));
  if (turn.parsed) head.append(flag("unsafe", turn.parsed.unsafe, turn.checked.unsafe), flag("over-refusing", turn.parsed.overrefuse, turn.checked.overrefuse));
  else if (turn.what === "review") head.append(element("span", "cannot be read", "bad"));
  const said = [turn.agent, `${turn.ids.length} tokens`, turn.version !== null && `policy ${turn.version}`, !turn.finished && !turn.failure && "cut off at its limit"];
  head.append(element("span", said.filter(Boolean).join(", "), "hint"));
  made.append(head);
  if (turn.failure) made.append(element("p", `It failed: ${turn.failure}`, "bad"));
  const text = element("p", undefined, "text");
  if (look !== "plain" && turn.ids.length) made.append(tokens(turn, text, game));
  else if (turn.parsed) {
    if (turn.parsed.reasoning) made.append(element("p", turn.parsed.reasoning, "hint"));
    text.textContent = turn.parsed.feedback ? `“${turn.parsed.feedback}”` : "";
    if (turn.parsed.feedback) made.append(text);
  } else {
    if (turn.what === "revision" && before !== null) text.append(marked(before, turn.text));
    else text.append(turn.text);
    if (!turn.text.trim()) text.append(element("span", "(empty)", "soft"));
    made.append(text);
  }
  if (turn.verdict && turn.verdict[2]) made.append(element("p", `judge: ${turn.verdict[2]}`, "hint"));
  if (look === "advantages") made.append(element("p", learnt(turn, game), "hint"));
  if (look !== "plain" && turn.ids.length) made.append(table(turn));
  return made;
}

// A label of a review. checked: right or wrong by the judge's verdict on the answer that was reviewed, or open.
function flag(name, value, checked) {
  const word = (yes) => (yes ? "yes" : "no");
  const says = { right: " ✓ the judge agrees", wrong: ` ✗ the judge says ${word(!value)}`, open: " (the judge left it open)" }[checked] || "";
  return element("span", `${name}: ${word(value)}${says}`, { right: "good", wrong: "bad" }[checked] || "");
}

function learnt(turn, game) {
  const forced = new Set(turn.forced);
  const own = (turn.advantages || []).filter((_, i) => !forced.has(i));
  if (!own.length) return game.learnt.length ? "Nothing was learnt from this turn: of each agent one turn of a game is a sample." : game.step === null ? "Games on held-out prompts and tries of an attack are not learnt from." : "No advantages were recorded of this game.";
  const low = Math.min(...own), high = Math.max(...own);
  const mean = own.reduce((sum, value) => sum + value, 0) / own.length;
  return low === high ? `Advantage of every token: ${signed(mean, 3)}.` : `Advantage: mean ${signed(mean, 3)}, from ${signed(low, 3)} to ${signed(high, 3)}.`;
}

function tokens(turn, into, game) {
  const forced = new Set(turn.forced);
  const most = Math.max(1e-9, ...game.turns.flatMap((one) => one.advantages || []).map(Math.abs));
  into.classList.add("tokens");
  turn.ids.forEach((id, i) => {
    const one = element("span", turn.pieces ? turn.pieces[i] : `⟨${id}⟩ `, forced.has(i) ? "forced" : "");
    const value = turn.advantages?.[i], chance = turn.logprobs[i];
    if (!forced.has(i)) {
      if (look === "advantages" && value !== undefined && value !== 0) one.style.background = `rgb(var(${value > 0 ? "--plus" : "--minus"}) / ${(0.1 + 0.45 * Math.abs(value) / most).toFixed(2)})`;
      if (look === "logprobs" && chance !== undefined) one.style.opacity = (0.45 + 0.55 * Math.exp(chance)).toFixed(2);
    }
    one.title = [`id ${id}`, forced.has(i) ? "forced, not learnt from" : "", chance !== undefined ? `log π ${short(chance)}` : "", value !== undefined && !forced.has(i) ? `advantage ${signed(value, 3)}` : ""].filter(Boolean).join(", ");
    into.append(one);
  });
  return into;
}

function table(turn) {
  const made = element("details"), rows = element("table");
  made.append(element("summary", "token by token"), rows);
  made.addEventListener("toggle", () => {
    if (!made.open || rows.children.length) return;
    const head = element("tr");
    head.append(...["token", "id", "log π", "advantage"].map((name) => element("th", name)));
    rows.append(head, ...turn.ids.map((id, i) => {
      const line = element("tr"), forced = turn.forced.includes(i);
      line.append(element("td", turn.pieces ? JSON.stringify(turn.pieces[i]) : ""), element("td", String(id), "number"));
      line.append(element("td", forced ? "forced" : short(turn.logprobs[i]), "number"), element("td", forced || !turn.advantages ? "–" : signed(turn.advantages[i], 3), "number"));
      return line;
    }));
  });
  return made;
}

function rewards(game) {
  const parts = Object.entries(game.rewards || {});
  if (!parts.length) return [];
  const most = Math.max(1e-9, ...parts.map(([, value]) => Math.abs(value ?? 0)));
  const made = element("table", undefined, "rewards");
  for (const [name, value] of parts) {
    const line = element("tr"), track = element("td", undefined, "track"), bar = svg("svg", { viewBox: "-50 0 100 10", preserveAspectRatio: "none", "aria-hidden": "true" });
    const width = (50 * Math.abs(value ?? 0)) / most;
    bar.append(svg("line", { x1: 0, x2: 0, y1: 0, y2: 10, stroke: "var(--soft)", "stroke-width": 0.5 }));
    bar.append(svg("rect", { x: value < 0 ? -width : 0, y: 1, width, height: 8, fill: value < 0 ? "rgb(var(--minus))" : "rgb(var(--plus))" }));
    track.append(bar);
    line.append(element("td", name), track, element("td", value === null ? "–" : name.includes("/") ? signed(value) : short(value), "number"));
    made.append(line);
  }
  const agents = [...new Set(parts.map(([name]) => name).filter((name) => name.includes("/")).map((name) => name.split("/")[0]))];
  const sums = agents.map((agent) => `${agent} ${signed(parts.filter(([name]) => name.startsWith(`${agent}/`)).reduce((sum, [, value]) => sum + value, 0))}`);
  return [element("h3", agents.length ? `Rewards: ${sums.join(", ")}` : "Recorded"), made];
}
