// The settings of the chosen runs side by side.
import { shownIn } from "./curves.js";
import { $, call, element, query } from "./server.js";
import { view } from "./view.js";

const MOST = 12; // runs beside each other

export async function openRecipes(told) {
  if (!told) return;
  const outer = told.runs.filter((run) => !run.inner).map((run) => run.run);
  const wanted = view.runs.length ? shownIn(told) : outer, chosen = wanted.slice(0, MOST);
  const found = await call(`recipes?${query({ runs: chosen.join() })}`);
  const names = new Map(told.runs.map((run) => [run.run, run.name]));
  const alone = found.runs.length < 2, all = alone || $("all-settings").checked;
  const rows = found.rows.filter((row) => all || row.differs);
  const differ = found.rows.filter((row) => row.differs).length;
  $("recipes-hint").textContent = alone
    ? "One run: all of its settings. Choose several in the table (x) to see what differs."
    : `${differ} of ${found.rows.length} settings differ between ${wanted.length > MOST ? `the first ${MOST} of ${wanted.length}` : found.runs.length} runs.`;
  $("all-settings").parentElement.hidden = alone;
  const heads = element("tr");
  heads.append(element("th", "setting"), ...found.runs.map((run) => element("th", names.get(run) || "")));
  $("settings").tHead.replaceChildren(heads);
  $("settings").tBodies[0].replaceChildren(...rows.map((row) => line(row, alone)));
}

function line(row, alone) {
  const made = element("tr", undefined, row.differs || alone ? "" : "equal");
  const name = element("td", row.key);
  if (row.meaning) name.append(element("span", row.meaning));
  made.append(name, ...row.values.map((value) => element("td", value ?? "–", row.differs && value !== usual(row.values) ? "other" : "")));
  return made;
}

// The value that most runs have; of equally many the first.
function usual(values) {
  const counts = new Map();
  for (const value of values) counts.set(value, (counts.get(value) || 0) + 1);
  return [...counts].sort((a, b) => b[1] - a[1])[0][0];
}
