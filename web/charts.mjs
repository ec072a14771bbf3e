// The charts of a training, as SVG drawn in CSS pixels.
import { line, scale, svg, ticks } from "./panel.mjs";

const LEFT = 38; // room for the numbers of the vertical axis
const SMOOTH = 0.05; // share of the steps so far that the strong line averages over
const FEWEST = 10; // steps that it averages over
const LINES = 40; // spectra that are drawn at most

/** Running mean over the steps before each step. */
export function smoothed(curve, key) {
  const window = Math.max(FEWEST, (curve.at(-1)?.step ?? 0) * SMOOTH);
  let [sum, count, first] = [0, 0, 0];
  return curve.map((point) => {
    if (point[key] != null) [sum, count] = [sum + point[key], count + 1];
    while (curve[first].step <= point.step - window) {
      if (curve[first][key] != null) [sum, count] = [sum - curve[first][key], count - 1];
      first += 1;
    }
    return { step: point.step, value: count ? sum / count : NaN };
  });
}

/** At most `columns` points of a curve: the lowest and the highest of each column of pixels. */
function thinned(points, columns) {
  if (points.length <= 2 * columns) return points;
  const size = points.length / columns;
  return Array.from({ length: columns }, (_, i) => {
    const part = points.slice(Math.floor(i * size), Math.floor((i + 1) * size));
    const sorted = [...part].sort((a, b) => a.value - b.value);
    return [sorted[0], sorted.at(-1)].sort((a, b) => a.step - b.step);
  }).flat();
}

/**
 * Loss over steps: each step faint, the running mean strong, held-out losses as dots, the best of them ringed; below it,
 * on a scale of its own, the distance to the base where that is learned on.
 *
 * @param run as of runs.mjs
 * @param width in CSS pixels
 */
export function lossChart(run, width) {
  const raw = run.curve.filter((p) => p.loss != null).map((p) => ({ step: p.step, value: p.loss }));
  const mean = smoothed(run.curve, "loss");
  const distance = smoothed(run.curve, "preservation").filter((p) => Number.isFinite(p.value));
  const held = [...run.held].filter(([, v]) => v != null).map(([step, value]) => ({ step, value }));
  const [top, bottom] = [8, 118];
  const height = distance.length ? 190 : 140;
  const x = scale([0, horizon(run)], [LEFT, width - 6]);
  const y = scale(range(raw, mean, held), [bottom, top]);
  const picture = svg("svg", { viewBox: `0 0 ${width} ${height}`, height, role: "img", "aria-label": said(run, mean) });
  const draw = (...made) => picture.append(...made);
  draw(...grid(y, ticks(y.low, y.high, 4), width));
  draw(path(thinned(raw, width), x, y, "--tri-1", 1, 0.35, [top, bottom]));
  draw(path(thinned(mean, width), x, y, "--tri-1", 2.2));
  draw(path(held, x, y, "--tri-3", 1.5));
  for (const { step, value } of held) draw(dot(x(step), y(value), step === run.best && step > 0));
  if (distance.length) draw(...band(distance, x, width, 144, 170));
  const floor = height - 4;
  for (const step of ticks(0, horizon(run), 4)) draw(svg("text", { x: x(step), y: floor, "text-anchor": "middle" }, String(step)));
  return picture;
}

/** The last step of the horizontal axis: some room ahead of the run, and never beyond its end. */
function horizon(run) {
  return Math.max(2, Math.min(run.total, Math.max(20, Math.ceil(run.step * 1.15))));
}

function range(raw, mean, held) {
  const sorted = raw.map((p) => p.value).sort((a, b) => a - b);
  const calm = [...mean, ...held].map((p) => p.value).filter(Number.isFinite);
  const low = Math.min(...calm, sorted[Math.floor(sorted.length * 0.05)] ?? Infinity);
  const high = Math.max(...calm, sorted[Math.floor(sorted.length * 0.95)] ?? -Infinity);
  if (!Number.isFinite(low)) return [0, 1];
  const margin = (high - low || high || 1) * 0.08;
  return [Math.max(0, low - margin), high + margin];
}

function grid(y, marks, width) {
  return marks.flatMap((mark) => [
    svg("line", { x1: LEFT, x2: width - 6, y1: y(mark), y2: y(mark), style: "stroke: var(--tri-line)" }),
    svg("text", { x: LEFT - 5, y: y(mark) + 3, "text-anchor": "end" }, mark && mark < 0.001 ? Number(mark.toPrecision(2)).toExponential() : String(mark)),
  ]);
}

function path(points, x, y, colour, width, opacity = 1, [top, bottom] = [-Infinity, Infinity]) {
  const inside = (value) => Math.min(bottom, Math.max(top, y(value)));
  const d = line(points.map((p) => [x(p.step), inside(p.value)]));
  const style = `stroke: var(${colour}); stroke-width: ${width}; opacity: ${opacity}; fill: none; stroke-linejoin: round`;
  return svg("path", { d, style });
}

function dot(cx, cy, best) {
  const plain = { cx, cy, r: 2.5, style: "fill: var(--tri-3)" };
  if (!best) return svg("circle", plain);
  return svg("g", { class: "best" }, svg("circle", plain), svg("circle", { cx, cy, r: 6, style: "fill: none; stroke: var(--tri-3); stroke-width: 1.5" }));
}

function band(distance, x, width, top, bottom) {
  const high = Math.max(...distance.map((p) => p.value)) || 1;
  const y = scale([0, high], [bottom, top]);
  return [
    svg("line", { x1: LEFT, x2: width - 6, y1: bottom, y2: bottom, style: "stroke: var(--tri-line)" }),
    svg("text", { x: LEFT - 5, y: top + 5, "text-anchor": "end" }, brief(high)),
    svg("text", { x: LEFT + 2, y: top - 6 }, "distance to the base"),
    path(thinned(distance, width), x, y, "--tri-2", 1.8),
  ];
}

function said(run, mean) {
  const loss = mean.at(-1)?.value;
  const best = run.best ? `, best on held-out pictures at step ${run.best}` : "";
  return `Loss over ${run.step} steps, now ${loss?.toFixed(4) ?? "unknown"}${best}`;
}

/** A number in few characters: 0.02, 5e-6. */
function brief(value) {
  return value < 0.001 ? value.toExponential(0) : value.toPrecision(1);
}

/** Singular values, strongest first: bars now, thin lines at earlier scores, the oldest faintest. */
export function spectrumChart(run, width) {
  const height = 84;
  const [top, bottom] = [8, 68];
  const every = Math.ceil(run.sigmas.size / LINES);
  const entries = [...run.sigmas].sort(([a], [b]) => b - a).filter((_, i) => i % every === 0).reverse(); // the last is one of them
  const [step, now] = entries.at(-1);
  const high = Math.max(...entries.flatMap(([, values]) => values)) || 1;
  const x = scale([0, now.length], [LEFT, width - 6]);
  const y = scale([0, high * 1.05], [bottom, top]);
  const gap = Math.min(3, (x(1) - x(0)) * 0.2);
  const label = `Singular values of the adapter at step ${step}, the strongest ${now[0].toPrecision(2)}`;
  const picture = svg("svg", { viewBox: `0 0 ${width} ${height}`, height, role: "img", "aria-label": label });
  picture.append(...grid(y, ticks(0, high, 2), width));
  now.forEach((value, i) => {
    const size = { x: x(i) + gap / 2, y: y(value), width: x(i + 1) - x(i) - gap, height: Math.max(0, bottom - y(value)) };
    picture.append(svg("rect", { ...size, rx: 1.5, style: "fill: var(--tri-4); opacity: 0.75" }));
  });
  entries.slice(0, -1).forEach(([, values], i) => {
    const points = values.map((value, k) => [x(k + 0.5), y(value)]);
    const opacity = 0.15 + (0.45 * (i + 1)) / entries.length;
    picture.append(svg("path", { d: line(points), style: `stroke: var(--tri-ink); opacity: ${opacity}; fill: none` }));
  });
  const ends = [[0, "strongest"], [now.length, "weakest"]];
  for (const [i, word] of ends) {
    picture.append(svg("text", { x: x(i), y: height - 4, "text-anchor": i ? "end" : "start" }, word));
  }
  return picture;
}
