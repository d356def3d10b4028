// What is looked at: the view, the chosen runs, the filters. It is in the fragment of the address, so that a reload
// and the back button keep it. Numbers of runs and games are those of this start of the server.

const given = new URLSearchParams(location.hash.slice(1));
export const firstKey = given.get("key");

export const view = { tab: "", runs: [], game: null, filters: {}, smooth: 5, band: true, more: false };
export const FILTERS = ["words", "source", "kind", "suite", "verdict", "outcome", "agent", "first_step", "last_step", "order"];

export function read() {
  const said = new URLSearchParams(location.hash.slice(1));
  view.tab = said.get("view") || "runs";
  view.runs = (said.get("runs") || "").split(",").filter(Boolean).map(Number).filter(Number.isInteger);
  view.game = said.has("game") ? Number(said.get("game")) : null;
  view.filters = Object.fromEntries(FILTERS.filter((name) => said.has(name)).map((name) => [name, said.get(name)]));
  view.smooth = Number(said.get("smooth")) || 5;
  view.band = said.get("band") !== "no";
  view.more = said.has("more");
}

// fresh: a step that the back button goes back over.
export function write(fresh = false) {
  const said = new URLSearchParams({ view: view.tab });
  if (view.runs.length) said.set("runs", view.runs.join(","));
  if (view.tab === "games") {
    if (view.game !== null) said.set("game", view.game);
    for (const [name, value] of Object.entries(view.filters)) said.set(name, value);
  }
  if (view.smooth !== 5) said.set("smooth", view.smooth);
  if (!view.band) said.set("band", "no");
  if (view.more) said.set("more", "yes");
  history[fresh ? "pushState" : "replaceState"](null, "", `#${said}`);
}
