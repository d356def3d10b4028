"use strict";
// The key comes in the fragment of the address, which no browser sends, and stays in this tab.

const $ = (id) => document.getElementById(id);
const REFUSAL = "(the safeguard replaces this answer by a refusal)";
const WITHHELD = {
  feedback: "the feedback agent failed", timeout: "time was up before its review",
  unparsable: "its review cannot be read", revision: "the revision failed, repeats what was flagged, or was flagged too",
  segment: "the rest was called unsafe after a checked part had left",
};
const COUNTERS = [
  ["answers", "answers_total"], ["reviewed", "reviewed_total"], ["revised", "revised_total"],
  ["withheld", "blocked_total"], ["let through", "bypassed_total"], ["unchecked", "unchecked_total"],
  ["failures", "failed_total"],
];
let key = sessionStorage.getItem("choreo-key") || "";
let model = "";

const given = new URLSearchParams(location.hash.slice(1)).get("key");
if (given) {
  key = given;
  sessionStorage.setItem("choreo-key", key);
  history.replaceState(null, "", location.pathname);
}

function element(name, text, className) {
  const made = document.createElement(name);
  if (text !== undefined) made.textContent = text;
  if (className) made.className = className;
  return made;
}

async function get(path) {
  const answer = await fetch(path, { headers: { Authorization: `Bearer ${key}` } });
  if (!answer.ok) throw Object.assign(new Error((await answer.json()).error.message), { status: answer.status });
  return answer;
}

async function connect() {
  try {
    const about = await (await get("ready")).json();
    model = about.model;
    $("about").textContent = `${model}, ${about.fingerprint}; mode ${about.mode}, rounds ${about.rounds}`;
    $("key-form").hidden = true;
    $("prompt").value ||= about.example;
    if ([...$("mode").options].some((option) => option.value === about.mode)) $("mode").value = about.mode;
    count();
  } catch (error) {
    $("about").textContent = error.status === 401 ? "This server wants a key." : `No server: ${error.message}`;
    $("key-form").hidden = error.status !== 401;
    if (error.status === 401) $("key").focus();
  }
}

async function count() {
  let text;
  try { text = await (await get("metrics")).text(); } catch { return; }
  const sums = {};
  for (const line of text.split("\n")) {
    const found = /^choreo:(\w+)(?:\{[^}]*\})? (\S+)$/.exec(line);
    if (found) sums[found[1]] = (sums[found[1]] || 0) + Number(found[2]);
  }
  const rows = COUNTERS.map(([name, metric]) => [name, String(sums[metric] || 0)]);
  const reviewed = sums.reviewed_total || 0;
  rows.splice(2, 0, ["asked to revise", reviewed ? `${(100 * (sums.triggered_total || 0) / reviewed).toFixed(1)} %` : "–"]);
  const added = sums.added_latency_seconds_count;
  rows.push(["added, mean", added ? `${(1000 * sums.added_latency_seconds_sum / added).toFixed(0)} ms` : "–"]);
  rows.push(["in play", String(sums.num_requests_running || 0)]);
  $("counters").replaceChildren(...rows.map(([name, value]) => {
    const box = element("div");
    box.append(element("dt", name), element("dd", value));
    return box;
  }));
}

function label(name, value) {
  return element("span", `${name}: ${value ? "yes" : "no"}`, `label ${value ? "yes" : "no"}`);
}

function show(move, earlier) {
  const item = element("li");
  const head = element("div", undefined, "move");
  const sign = move.stage === "draft" ? "" : "+";
  head.append(element("h3", move.stage), element("span", `${sign}${Math.round(move.ms)} ms, ${move.tokens} tokens`, "hint"));
  item.append(head);
  if (move.stage !== "feedback") {
    const text = element("p", undefined, "text");
    if (move.stage === "revision") text.append(marked(earlier, move.text));
    else text.textContent = move.text;
    item.append(text);
  } else if (!move.parsed) {
    item.append(element("p", "This review cannot be read."));
  } else {
    const labels = element("p");
    labels.append(label("unsafe", move.unsafe), label("over-refusing", move.overrefuse));
    item.append(labels, element("p", move.reasoning, "hint"));
    if (move.feedback) item.append(element("p", `“${move.feedback}”`, "text"));
  }
  if ($("waltz").querySelector(".hint:only-child") || $("waltz").children.length === 0) $("waltz").replaceChildren();
  $("waltz").append(item);
}

function beside(moves, text, withheld, cut) {
  const draft = moves[0], review = moves.find((move) => move.stage === "feedback");
  const added = moves.slice(1).reduce((sum, move) => sum + move.ms, 0);
  $("alone").textContent = draft.text;
  $("alone-hint").textContent = `${Math.round(draft.ms)} ms`;
  const blocks = review && review.parsed && review.unsafe;
  const unreviewed = !review && withheld;  // a safeguard would have had no review either
  $("blocked").textContent = blocks || unreviewed ? REFUSAL : draft.text;
  $("blocked-hint").textContent = review ? `+${Math.round(review.ms)} ms`
    : withheld ? WITHHELD[withheld] : "no review in this mode";
  $("final").textContent = text;
  const remark = withheld ? `; withheld: ${WITHHELD[withheld]}` : cut ? "; cut off at the most tokens of an answer" : "";
  $("final-hint").textContent = `+${Math.round(added)} ms${remark}`;
  $("beside").hidden = false;
}

async function ask(event) {
  event.preventDefault();
  $("error").hidden = true;
  $("send").disabled = true;
  $("waltz").replaceChildren();
  $("waltz").setAttribute("aria-busy", "true");
  $("beside").hidden = true;
  try {
    const body = {
      model, messages: [{ role: "user", content: $("prompt").value }], stream: true,
      choreo: { trace: true, mode: $("mode").value },
    };
    const answer = await fetch("v1/chat/completions", {
      method: "POST", body: JSON.stringify(body),
      headers: { Authorization: `Bearer ${key}`, "Content-Type": "application/json" },
    });
    if (!answer.ok) throw new Error((await answer.json()).error.message);
    const moves = [];
    let text = "", rest = "", last = "", over = false, withheld = null, cut = false;
    const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
    for (let part = await reader.read(); !part.done; part = await reader.read()) {
      const events = (rest + part.value).split("\n\n");
      rest = events.pop();
      for (const line of events) {
        if (line === "data: [DONE]") { over = true; continue; }
        const data = JSON.parse(line.slice("data: ".length));
        if (data.error) throw new Error(data.error.message);
        for (const choice of data.choices) {
          text += choice.delta.content || "";
          cut ||= choice.finish_reason === "length";
        }
        if (data.choreo && data.choreo.choices) withheld = data.choreo.choices[0].withheld;
        if (data.choreo && data.choreo.move) {
          show(data.choreo.move, last);
          moves.push(data.choreo.move);
          last = data.choreo.move.text || last;
        }
      }
    }
    if (!over) throw new Error("the stream ended early");
    beside(moves, text, withheld, cut);
  } catch (error) {
    $("error").textContent = error.message;
    $("error").hidden = false;
  }
  $("waltz").setAttribute("aria-busy", "false");
  $("send").disabled = false;
  count();
}

$("ask").addEventListener("submit", ask);
$("prompt").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) $("ask").requestSubmit();
});
$("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  key = $("key").value.trim();
  sessionStorage.setItem("choreo-key", key);
  connect();
});
setInterval(() => { if (model && !document.hidden) count(); }, 5000);
connect();
