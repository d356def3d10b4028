// One figure: lines over steps, bands around them, marks of alarms. It follows its card's width.
import { element, percent, short, svg } from "./server.js";

const WIDTH = 400, HEIGHT = 200, LEFT = 54, RIGHT = 8, TOP = 8, BOTTOM = 22;
const POINTS = 400; // more than these are drawn as means

// The mean of each value and those before it; nothing where nothing is known.
export function smoothed(points, over) {
  if (over <= 1) return points;
  return points.map((_, i) => {
    const window = points.slice(Math.max(0, i - over + 1), i + 1);
    return [points[i][0], window.reduce((sum, [, y]) => sum + y, 0) / window.length];
  });
}

export function thinned(points) {
  const size = Math.ceil(points.length / POINTS);
  if (size <= 1) return points;
  const made = [];
  for (let i = 0; i < points.length; i += size) {
    const part = points.slice(i, i + size);
    made.push(part[0].map((_, column) => part.reduce((sum, point) => sum + point[column], 0) / part.length));
  }
  return made;
}

// lines: {name, colour, dash, points: [[x, y]], faint: [[x, y]], band: [[x, low, high]]}. marks: [[x, text]].
export function chart({ title, unit, lines, marks }) {
  const made = element("figure", undefined, "figure");
  const drawn = lines.map((line) => ({ ...line, points: thinned(line.points), faint: thinned(line.faint || []), band: thinned(line.band || []) }));
  const all = drawn.flatMap((line) => [...line.points, ...line.faint, ...line.band.flatMap(([x, low, high]) => [[x, low], [x, high]])]);
  const [x0, x1] = ends(all.map(([x]) => x)), [low, high] = ends(all.map(([, y]) => y));
  const { from, to, ticks } = scale(unit === "%" ? Math.min(0, low) : low, high);
  const x = (step) => LEFT + (x1 > x0 ? (step - x0) / (x1 - x0) : 0.5) * (WIDTH - LEFT - RIGHT);
  const y = (value) => HEIGHT - BOTTOM - ((value - from) / (to - from)) * (HEIGHT - TOP - BOTTOM);
  const digits = ticks.every((tick) => Math.abs(100 * tick - Math.round(100 * tick)) < 1e-6) ? 0 : 1;
  const say = (value) => (unit === "%" ? `${percent(value)} %` : short(value));

  const plot = svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, class: "plot", role: "img", "aria-label": `${title}: ${lines.map((line) => `${line.name} ${say(last(line))}`).join(", ")}` });
  for (const tick of ticks) {
    plot.append(svg("line", { x1: LEFT, x2: WIDTH - RIGHT, y1: y(tick), y2: y(tick), class: "grid" }));
    plot.append(svg("text", { x: LEFT - 5, y: y(tick) + 4, "text-anchor": "end" }, unit === "%" ? percent(tick, digits) : short(tick)));
  }
  for (const step of x1 > x0 ? [x0, Math.round((x0 + x1) / 2), x1] : [x0])
    plot.append(svg("text", { x: x(step), y: HEIGHT - 6, "text-anchor": step === x0 && x1 > x0 ? "start" : step === x1 && x1 > x0 ? "end" : "middle" }, String(step)));
  for (const [step, text] of marks) {
    if (step < x0 || step > x1) continue;
    const mark = svg("line", { x1: x(step), x2: x(step), y1: TOP, y2: HEIGHT - BOTTOM, class: "mark" });
    mark.append(svg("title", {}, text));
    plot.append(mark);
  }
  for (const line of drawn) {
    if (line.band.length > 1) {
      const edge = [...line.band.map(([step, , top]) => [step, top]), ...line.band.map(([step, bottom]) => [step, bottom]).reverse()];
      plot.append(svg("path", { d: `${path(edge, x, y)}Z`, fill: line.colour, "fill-opacity": 0.17 }));
    }
    if (line.faint.length > 1) plot.append(svg("path", { d: path(line.faint, x, y), fill: "none", stroke: line.colour, "stroke-opacity": 0.28, "stroke-width": 1 }));
    if (line.points.length === 1) plot.append(svg("circle", { cx: x(line.points[0][0]), cy: y(line.points[0][1]), r: 3, fill: line.colour }));
    else plot.append(svg("path", { d: path(line.points, x, y), fill: "none", stroke: line.colour, "stroke-width": 1.8, "stroke-dasharray": line.dash || "none", "stroke-linejoin": "round" }));
  }
  const values = element("figcaption", undefined, "values");
  const cursor = svg("line", { y1: TOP, y2: HEIGHT - BOTTOM, class: "cursor", visibility: "hidden" });
  plot.append(cursor);
  const tell = (step) => values.replaceChildren(
    element("span", step === null ? "last" : `step ${step}`, "soft"),
    ...lines.map((line) => {
      const point = step === null ? line.points[line.points.length - 1] : line.points.find(([at]) => at === step);
      return named(`${line.name} ${point ? say(point[1]) : "–"}`, line);
    }),
  );
  const steps = [...new Set(lines.flatMap((line) => line.points.map(([step]) => step)))].sort((a, b) => a - b);
  plot.addEventListener("pointermove", (event) => {
    const box = plot.getBoundingClientRect();
    const wanted = x0 + (((event.clientX - box.left) / box.width) * WIDTH - LEFT) / (WIDTH - LEFT - RIGHT) * (x1 - x0);
    const step = steps.reduce((best, one) => (Math.abs(one - wanted) < Math.abs(best - wanted) ? one : best), steps[0]);
    cursor.setAttribute("x1", x(step));
    cursor.setAttribute("x2", x(step));
    cursor.setAttribute("visibility", "visible");
    tell(step);
  });
  plot.addEventListener("pointerleave", () => { cursor.setAttribute("visibility", "hidden"); tell(null); });
  tell(null);
  made.append(element("h3", unit && unit !== "%" ? `${title} (${unit})` : title), plot, values);
  return made;
}

export function named(text, line) {
  const made = element("span", undefined, "key");
  const sample = svg("svg", { viewBox: "0 0 20 8", "aria-hidden": "true" });
  sample.append(svg("line", { x1: 0, x2: 20, y1: 4, y2: 4, stroke: line.colour, "stroke-width": 3, "stroke-dasharray": line.dash || "none" }));
  made.append(sample, element("span", text));
  return made;
}

const last = (line) => (line.points.length ? line.points[line.points.length - 1][1] : null);
const path = (points, x, y) => points.map(([step, value], i) => `${i ? "L" : "M"}${x(step).toFixed(1)} ${y(value).toFixed(1)}`).join("");

// Without spreading: a run may have more steps than a call may have arguments.
function ends(values) {
  return values.reduce(([low, high], value) => [Math.min(low, value), Math.max(high, value)], [Infinity, -Infinity]);
}

// Round ends around the values, and the ticks between them.
function scale(low, high) {
  if (high - low < 1e-12) { const pad = Math.abs(high) * 0.1 || 0.1; low -= low === 0 ? 0 : pad; high += pad; }
  const rough = (high - low) / 4, power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 2.5, 5, 10].map((one) => one * power).find((one) => one >= rough);
  const from = Math.floor(low / step + 1e-9) * step, to = Math.ceil(high / step - 1e-9) * step;
  const ticks = [];
  for (let i = 0; from + i * step <= to + step / 2; i++) ticks.push(Number((from + i * step).toPrecision(10)));
  return { from, to, ticks };
}
