// The live panel of Train TriLoRA and Repair LoRA: curves, previews, spectrum, and the two buttons.
import { lossChart, smoothed, spectrumChart } from "./charts.mjs";
import { CSS as FILM_CSS, filmStrip } from "./film.mjs";
import { addPanel, clock, element, watchWidth } from "./panel.mjs";
import { follow, post } from "./runs.mjs";

const CSS = `
.trilora-bar { height: 4px; border-radius: 2px; background: var(--tri-line); overflow: hidden; margin: 2px 0 6px; }
.trilora-bar div { height: 100%; background: var(--tri-1); transition: width 0.25s linear; }
.trilora-now { display: flex; flex-wrap: wrap; gap: 0 12px; color: var(--tri-soft); font-variant-numeric: tabular-nums; }
.trilora-now strong { color: var(--tri-ink); margin-right: auto; font-weight: 600; }
.trilora-legend { display: flex; flex-wrap: wrap; gap: 0 12px; margin: 6px 0 2px; color: var(--tri-soft); font-variant-numeric: tabular-nums; }
.trilora-legend b { color: var(--tri-ink); font-weight: 600; }
.trilora-legend i { display: inline-block; width: 9px; height: 9px; border-radius: 50%; margin-right: 4px; }
.trilora-buttons { display: flex; gap: 6px; margin-top: 8px; }
.trilora-note { margin: 6px 0 0; color: var(--tri-soft); overflow-wrap: anywhere; }
.trilora-note.failed { color: var(--tri-1); }
.trilora details { margin-top: 6px; color: var(--tri-soft); }
.trilora summary { cursor: pointer; color: var(--tri-ink); }
.trilora details p { margin: 2px 0 0 14px; }
${FILM_CSS}`;
const HINT = "Run the workflow: loss, pictures and spectrum grow here while it learns.";
const ENDED = { ended: "done", cancelled: "cancelled", failed: "failed" };

/** Give a node its panel; it shows the last run of the node, if the server still knows it. */
export function attach(node, app, api) {
  const panel = addPanel(node, "training", "Training", CSS);
  const view = build(panel.content, api);
  let run;
  let due = 0;
  const draw = () => {
    due = 0;
    if (run) view.update(run, panel.content.clientWidth - 12);
  };
  const drawSoon = () => (due ||= requestAnimationFrame(draw));
  panel.live(() => {
    const ends = [
      follow(node, app, api, (news) => {
        run = news;
        drawSoon();
      }),
      watchWidth(panel.content, drawSoon),
    ];
    return () => ends.forEach((end) => end());
  });
  return view;
}

function build(content, api) {
  const parts = {
    hint: element("p", { class: "trilora-note" }, HINT),
    bar: element("div", { class: "trilora-bar", role: "progressbar", "aria-label": "Steps", hidden: true }, element("div")),
    now: element("div", { class: "trilora-now" }),
    legend: element("div", { class: "trilora-legend" }),
    loss: element("div", { class: "trilora-loss" }),
    film: filmStrip(api),
    sigmaTitle: element("div", { class: "trilora-legend", hidden: true }),
    sigma: element("div", { class: "trilora-sigma" }),
    note: element("p", { class: "trilora-note", "aria-live": "polite" }),
    about: element("details", { hidden: true }, element("summary", {}, "About this run"), element("div")),
  };
  const state = { run: undefined, asked: "" };
  const buttons = [button("Stop and keep", "stop", "Ends the run after its present step and hands the adapter on"), button("Save now", "save", "Writes state and adapter to disk after the present step and goes on")];
  function button(text, route, title) {
    const onclick = async () => {
      const { node, workflow } = state.run;
      state.asked = route;
      refresh();
      if (!(await post(api, route, { node_id: node, workflow }))) state.asked = "";
      refresh();
    };
    return element("button", { type: "button", title, onclick, disabled: true }, text);
  }
  const refresh = () => show(parts, buttons, state);
  content.append(
    parts.hint, parts.bar, parts.now, parts.legend, parts.loss, parts.film.strip, parts.sigmaTitle, parts.sigma,
    element("div", { class: "trilora-buttons" }, buttons), parts.note, parts.about,
  );
  return {
    update(run, width) {
      if (state.asked === "save" && run.saved?.at !== state.run?.saved?.at) state.asked = "";
      if (run.run !== state.run?.run || !run.learning) state.asked = "";
      state.run = run;
      if (width > 0) charts(parts, run, width);
      refresh();
    },
  };
}

function charts(parts, run, width) {
  if (run.curve.length || run.held.size) parts.loss.replaceChildren(lossChart(run, width));
  else parts.loss.replaceChildren();
  parts.sigma.replaceChildren(...(run.sigmas.size ? [spectrumChart(run, width)] : []));
  parts.film.update(run);
}

function show(parts, [stop, save], { run, asked }) {
  parts.hint.hidden = true;
  stop.disabled = !run.learning || asked === "stop";
  save.disabled = !run.learning || asked !== "";
  progress(parts.bar, run);
  parts.now.replaceChildren(...now(run));
  parts.legend.replaceChildren(...legend(run));
  const scored = Math.max(0, ...run.sigmas.keys());
  parts.sigmaTitle.hidden = !scored;
  parts.sigmaTitle.replaceChildren(entry("--tri-4", "singular values of the adapter", `step ${scored}`));
  const [text, failed] = note(run, asked);
  parts.note.textContent = text;
  parts.note.classList.toggle("failed", failed);
  parts.about.hidden = !run.said.length;
  parts.about.lastChild.replaceChildren(...run.said.map((line) => element("p", {}, line)));
}

function progress(bar, run) {
  bar.hidden = false;
  bar.firstChild.style.width = `${(100 * run.step) / run.total}%`;
  for (const [name, value] of [["min", 0], ["max", run.total], ["now", run.step]]) bar.setAttribute(`aria-value${name}`, value);
}

/** Step, and either what is going on or how fast it goes. */
function now(run) {
  const facts = [element("strong", {}, `step ${run.step} of ${run.total}`)];
  const add = (text) => facts.push(element("span", {}, text));
  if (ENDED[run.stage]) add(ENDED[run.stage]);
  else if (run.stage === "working") add(run.text.split("\n")[0]);
  else {
    if (run.rate) add(run.rate >= 1 ? `${run.rate.toFixed(1)} it/s` : `${(1 / run.rate).toFixed(1)} s/it`);
    if (run.rate) add(`${clock(run.left)} left`);
    if (run.learning_rate != null) add(`rate ${Number(run.learning_rate.toPrecision(2)).toExponential().replace("e-", "e−")}`);
  }
  return facts;
}

function legend(run) {
  const entries = [];
  const mean = smoothed(run.curve, "loss").at(-1)?.value;
  if (Number.isFinite(mean)) entries.push(entry("--tri-1", "loss", mean > 0 && mean < 0.001 ? mean.toExponential(1) : mean.toFixed(4)));
  const held = [...run.held].sort(([a], [b]) => a - b).at(-1);
  if (held) entries.push(entry("--tri-3", "held out", held[1]?.toFixed(4), run.best ? ` best: step ${run.best}` : ""));
  const distance = smoothed(run.curve, "preservation").at(-1)?.value;
  if (Number.isFinite(distance)) entries.push(entry("--tri-2", "to the base", distance < 0.001 ? distance.toExponential(1) : distance.toPrecision(2)));
  return entries;
}

function entry(colour, name, value, more = "") {
  return element("span", {}, element("i", { style: `background: var(${colour})` }), `${name} `, element("b", {}, value ?? ""), more);
}

/** One sentence on what was asked for or has happened, and whether it is bad news. */
function note(run, asked) {
  if (run.stage === "failed") return [run.text, true];
  if (asked === "stop") return ["Stopping after this step; the adapter is handed on.", false];
  if (asked === "save") return ["Saving after this step …", false];
  if (run.saved?.problem) return [`Not saved: ${run.saved.problem}`, true];
  if (run.saved) return [`Saved, step ${run.saved.step}: models/loras/${run.saved.file}`, false];
  return ["", false];
}
