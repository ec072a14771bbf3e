// A gain curve and what it does to a spectrum: pure functions, no page.

/** Gain of the curve's full height; its middle is 1. */
export const FULL = 2;

/** Curves by name. Places run from a layer's strongest singular value, 0, to its weakest, 1. */
export const PRESETS = {
  flat: { tip: "every value as loaded", interpolation: "monotone_cubic", points: [[0, 0.5], [1, 0.5]] },
  soften: {
    tip: "the strongest values turned down: calmer, and the rest stays",
    interpolation: "monotone_cubic",
    points: [[0, 0.3], [0.35, 0.45], [1, 0.5]],
  },
  "style only": {
    tip: "the strongest values alone: the broad strokes",
    interpolation: "monotone_cubic",
    points: [[0, 0.5], [0.25, 0.5], [0.5, 0], [1, 0]],
  },
  "detail only": {
    tip: "without the strongest values: what is left of the detail",
    interpolation: "monotone_cubic",
    points: [[0, 0], [0.1, 0], [0.3, 0.5], [1, 0.5]],
  },
  "top half": {
    tip: "the first half of the values, and nothing of the rest",
    interpolation: "linear",
    points: [[0, 0.5], [0.5, 0.5], [0.501, 0], [1, 0]],
  },
};

/** The heights of a curve, as ComfyUI's own CURVE finds them: monotone cubic (Fritsch, Carlson 1980) or straight. */
export function heights({ points, interpolation }) {
  const sorted = [...points].sort((a, b) => a[0] - b[0]);
  const last = sorted.length - 1;
  const steep = sorted.slice(1).map(([x, y], i) => (x > sorted[i][0] ? (y - sorted[i][1]) / (x - sorted[i][0]) : 0));
  const slopes = interpolation === "linear" ? null : tangents(steep);
  return (place) => {
    if (last < 0) return 0;
    if (place >= sorted[last][0]) return sorted[last][1];
    if (slopes ? place <= sorted[0][0] : place < sorted[0][0]) return sorted[0][1];
    const i = sorted.findLastIndex(([x]) => x <= place);
    const [[x, y], [next, goal]] = [sorted[i], sorted[i + 1]];
    const [t, width] = [(place - x) / (next - x), next - x];
    if (!slopes) return y + t * (goal - y);
    const rise = t * t * (3 - 2 * t);
    return y + rise * (goal - y) + width * t * (1 - t) * ((1 - t) * slopes[i] - t * slopes[i + 1]);
  };
}

/** Slopes at the points, so that the curve never turns between two of them. */
function tangents(steep) {
  if (!steep.length) return [0];
  const slopes = [steep[0], ...steep.slice(1).map((s, i) => (s * steep[i] > 0 ? (s + steep[i]) / 2 : 0)), steep.at(-1)];
  steep.forEach((s, i) => {
    if (s === 0) {
      slopes[i] = slopes[i + 1] = 0;
      return;
    }
    const size = Math.hypot(slopes[i] / s, slopes[i + 1] / s);
    if (size > 3) {
      slopes[i] *= 3 / size;
      slopes[i + 1] *= 3 / size;
    }
  });
  return slopes;
}

/** Place, 0 to 1, of the singular value number i of a rank. */
export const place = (i, rank) => (rank > 1 ? i / (rank - 1) : 0);

/** Whether the server's `kept` holds for these widgets; for all and for top k it is known here as well. */
export function isKnown(spectrum, keep) {
  const was = spectrum.keep;
  return ["all", "top k"].includes(keep.keep) || (was.keep === keep.keep && was.k === keep.k && was.share === keep.share);
}

/**
 * What a curve and `keep` leave of a spectrum that the server has sent.
 *
 * @returns {bars, whole}: by bar and as a whole, the energy that is left, as a share of all that came in
 */
export function left(spectrum, curve, keep) {
  const height = heights(curve);
  const bars = spectrum.sigma.map(() => 0);
  for (const { rank, energy, kept } of spectrum.groups) {
    energy.forEach((all, i) => {
      const some = keep.keep === "all" ? all : keep.keep === "top k" ? (i < keep.k ? all : 0) : kept[i];
      bars[Math.round(place(i, rank) * (bars.length - 1))] += some * (FULL * height(place(i, rank))) ** 2;
    });
  }
  return { bars, whole: bars.reduce((sum, bar) => sum + bar, 0) };
}

/** One line for people: which of the singular values act, and how much of the energy that is. */
export function words(spectrum, curve, keep, strength) {
  if (!spectrum.layers) return "No singular values here: the strength alone acts.";
  if (!spectrum.share.some((share) => share > 0)) return "What is on the model has strength 0: nothing acts.";
  if (!isKnown(spectrum, keep)) return `${keep.keep} ${keep.k ?? keep.share}: queue once to see what is kept.`;
  const { bars, whole } = left(spectrum, curve, keep);
  const act = bars.flatMap((bar, i) => (bar > 1e-4 * spectrum.share[i] ? [i + 1] : []));
  const times = strength === 1 ? "" : `, then × ${Number(strength.toFixed(3))}`;
  return `${acting(act, bars.length, keep)}: ${percent(whole)} of energy${times}`;
}

function acting(act, count, keep) {
  const [first, last] = [act[0], act.at(-1)];
  if (!act.length) return `none of ${count}`;
  if (keep.keep === "top k of all layers") return `top ${keep.k} of all layers`;
  if (keep.keep === "energy") return `up to ${act.length} of ${count}`;
  if (act.length !== last - first + 1) return `${act.length} of ${count}`;
  if (first > 1) return first === last ? `value ${first} of ${count}` : `values ${first}–${last} of ${count}`;
  return last === count ? `all ${count}` : `top ${last} of ${count}`;
}

/** A share in percent, with as many digits as tell it from 0 and from 100. */
export function percent(share) {
  const value = 100 * share;
  if (value > 0 && value < 0.05) return "< 0.1 %";
  const near = value < 9.95 || (value >= 99.5 && Math.abs(value - 100) >= 0.05 && value < 100.5);
  return `${value === 0 || !near ? Math.round(value) : value.toFixed(1)} %`;
}
