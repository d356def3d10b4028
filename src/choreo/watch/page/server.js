// The server's answers, and small helpers. The key comes in the fragment of the address, which no browser sends.

export const $ = (id) => document.getElementById(id);

let key = sessionStorage.getItem("choreo-watch-key") || "";
const kept = new Map(); // path → [tag, what was answered]

export function useKey(given) {
  key = given.trim();
  sessionStorage.setItem("choreo-watch-key", key);
}

export async function call(path, signal) {
  const headers = { Authorization: `Bearer ${key}` };
  const before = kept.get(path);
  if (before) headers["If-None-Match"] = before[0];
  const answer = await fetch(path, { headers, signal });
  if (answer.status === 304) return before[1];
  const found = await answer.json();
  if (!answer.ok) throw Object.assign(new Error(found.error.message), { status: answer.status });
  if (answer.headers.get("ETag")) kept.set(path, [answer.headers.get("ETag"), found]);
  return found;
}

export function query(asked) {
  return new URLSearchParams(Object.entries(asked).filter(([, value]) => value !== "" && value !== null && value !== undefined));
}

// Everything from outside becomes text, never markup.
export function element(name, text, className) {
  const made = document.createElement(name);
  if (text !== undefined && text !== null) made.textContent = text;
  if (className) made.className = className;
  return made;
}

// parts: texts and elements.
export function holding(name, parts, className) {
  const made = element(name, undefined, className);
  made.append(...parts);
  return made;
}

// A name that may break after - _ . and /, and nowhere else.
export function breakable(name) {
  return name.split(/(?<=[-_./])/).flatMap((part, i) => (i ? [document.createElement("wbr"), part] : [part]));
}

// Draws anew, and gives the focus to what stands for what had it: of the same run, of the same kind, with the same text.
export function keepingFocus(draw) {
  const had = document.activeElement || document.body, known = described(had);
  draw();
  if (had === document.body || had.isConnected) return;
  const same = [...document.querySelectorAll(had.tagName)].find((one) => described(one) === known);
  if (same) same.focus({ preventScroll: true });
}
const described = (one) => [one.closest("[data-run]")?.dataset.run, one.tagName, one.tagName === "TR" || one.textContent].join();

export function button(text, work, key) {
  const made = element("button");
  made.type = "button";
  if (key) made.append(element("kbd", key));
  made.append(text);
  made.addEventListener("click", work);
  return made;
}

export function svg(name, attributes = {}, text) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [attribute, value] of Object.entries(attributes)) made.setAttribute(attribute, value);
  if (text !== undefined) made.textContent = text;
  return made;
}

// Where games that training did not sample come from. That of an attack's tries is "SYSTEM, ATTACK".
export const sourceName = (source) => `${source.includes(", ") ? "attack" : "held out"}: ${source}`;

export const counted = (n, what) => `${n.toLocaleString("en")} ${what}${n === 1 ? "" : "s"}`;
export const percent = (value, digits = 1) => (100 * value).toFixed(digits);
export const signed = (value, digits = 2) => `${value < 0 ? "−" : "+"}${Math.abs(value).toFixed(digits)}`;

export function short(value) {
  if (value === null || value === undefined) return "–";
  if (value !== 0 && (Math.abs(value) < 0.001 || Math.abs(value) >= 1e5)) return value.toExponential(1).replace("-", "−");
  return String(Number(value.toPrecision(3))).replace("-", "−");
}

export function duration(seconds) {
  if (seconds < 90) return `${seconds < 10 ? Number(seconds.toFixed(1)) : Math.round(seconds)} s`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min`;
  return seconds < 172800 ? `${(seconds / 3600).toFixed(1)} h` : `${Math.round(seconds / 86400)} days`;
}
