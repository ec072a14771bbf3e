// TriLoRA Strength: the gain curve over the spectrum that it shapes.
import { CSS as CURVE_CSS, CurveEditor, HINT } from "./curve.mjs";
import { addPanel, chain, element, scale, svg, watchWidth } from "./panel.mjs";
import { FULL, PRESETS, heights, isKnown, left, percent, place, words } from "./spectrum.mjs";

const HEIGHT = 176;
const KEEPS = ["strength", "keep", "keep.k", "keep.share"];
const CSS = `
${CURVE_CSS}
.trilora-presets { display: grid; grid-template-columns: repeat(auto-fit, minmax(72px, 1fr)); gap: 4px; margin-bottom: 4px; }
.trilora-presets button { padding: 2px 4px; font-size: 11px; white-space: nowrap; }
.trilora-presets button[aria-pressed="true"] { border-color: var(--tri-1); box-shadow: inset 0 0 0 1px var(--tri-1); }
.trilora-chart .one { stroke: var(--tri-soft); stroke-dasharray: 3 3; }
.trilora-chart .came { fill: var(--tri-2); opacity: 0.22; }
.trilora-chart .stays { fill: var(--tri-2); opacity: 0.85; }
.trilora-chart .seen .came { opacity: 0.5; }
.trilora-chart .guide { stroke: var(--tri-ink); stroke-width: 1; fill: var(--tri-ink); pointer-events: none; }
.trilora-chart line.guide { opacity: 0.35; }
.trilora-kept { font-weight: 600; margin-top: 2px; }
.trilora-meter { height: 4px; border-radius: 2px; background: var(--tri-line); margin: 3px 0; overflow: hidden; }
.trilora-meter div { height: 100%; background: var(--tri-2); }
`;

export function attach(node, app) {
  const panel = new StrengthPanel(node, app);
  chain(node, "onExecuted", (output) => panel.executed(output));
  chain(node, "onConfigure", () => panel.configured());
}

/** The panel of one node. */
class StrengthPanel extends CurveEditor {
  constructor(node, app) {
    const curve = node.widgets.find(({ name }) => name === "curve");
    super(node, app, curve, { label: "Gain by singular value, strongest on the left", full: FULL, height: HEIGHT });
    Object.assign(this, { seen: null, watched: new WeakSet() });
    const { content, live } = addPanel(node, "sigma", "Gain curve over the spectrum", CSS);
    this.build(content);
    this.watch();
    live(() => watchWidth(content, () => this.draw()));
  }

  build(content) {
    this.presets = Object.entries(PRESETS).map(([name, { tip }]) => {
      const press = () => this.set({ points: PRESETS[name].points, interpolation: PRESETS[name].interpolation });
      return element("button", { type: "button", title: tip, onclick: press }, name);
    });
    this.guide = svg("line", { class: "guide" });
    this.ring = svg("circle", { class: "guide", r: 3.5 });
    this.bars = svg("g");
    this.behind.append(this.bars, this.guide, this.ring);
    this.kept = element("div", { class: "trilora-kept", role: "status", "aria-live": "polite" });
    this.meter = element("div");
    this.told = element("div", { class: "trilora-told" });
    content.append(
      element("div", { class: "trilora-presets", role: "toolbar", "aria-label": "Curves" }, this.presets, this.form),
      this.chart, this.kept, element("div", { class: "trilora-meter" }, this.meter), this.told,
    );
  }

  // -- what is drawn -------------------------------------------------------------------------------------------------

  get spectrum() {
    return this.node.properties.trilora_spectrum;
  }

  widget(name) {
    return this.node.widgets.find((each) => each.name === name)?.value;
  }

  get keep() {
    return { keep: this.widget("keep"), k: this.widget("keep.k"), share: this.widget("keep.share") };
  }

  /** Places are centred on the first and the last bar. */
  scales() {
    const { from, to, y } = super.scales();
    const count = this.spectrum?.sigma?.length ?? 1;
    const half = this.spectrum?.layers ? Math.min((to - from) / (2 * Math.max(count, 2)), 22) : 7;
    return { x: scale([0, 1], [from + half, to - half]), y, from, to, half };
  }

  drawFrame(scales) {
    super.drawFrame(scales);
    const { x, from, to } = scales;
    const rank = this.spectrum?.sigma?.length;
    this.frame.children[2].setAttribute("class", "one");
    this.caption(rank ? x(0) : from, rank ? "σ1" : "strongest", rank ? "middle" : "start");
    this.caption(rank ? x(1) : to, rank > 1 ? `σ${rank}` : rank ? "" : "weakest", rank ? "middle" : "end");
    this.caption((from + to) / 2, rank ? "strongest → weakest" : "", "middle");
  }

  drawn(scales, height) {
    this.drawBars(scales);
    this.drawGuide(scales, height);
    this.tell();
  }

  /** A faint bar for each value as it came, a strong one for what the curve leaves; σ1 as loaded reaches to ×1. */
  drawBars({ x, y, half }) {
    const { sigma = [], share } = this.spectrum ?? {};
    const known = sigma.length && isKnown(this.spectrum, this.keep);
    const stays = known ? left(this.spectrum, this.value, this.keep).bars : [];
    const most = Math.max(...sigma, 1e-30) * FULL;
    const width = Math.max(2 * half * (half > 4 ? 0.7 : 0.9), 1);
    const bar = (kind, i, height) =>
      svg("rect", { class: kind, x: x(place(i, sigma.length)) - width / 2, y: y(height), width, height: y(0) - y(height), rx: Math.min(2, width / 4) });
    this.bars.replaceChildren(...sigma.map((size, i) => {
      const rest = share[i] ? Math.sqrt((stays[i] ?? 0) / share[i]) : 0;
      return svg("g", { class: i === this.seen ? "bar seen" : "bar" },
        bar("came", i, size / most), rest > 0 ? bar("stays", i, Math.min(1, (size / most) * rest)) : null);
    }));
  }

  /** Where the pointer is: the value under it, and the gain that it gets. */
  drawGuide({ x, y }, height) {
    const at = this.seen === null ? 0 : place(this.seen, this.spectrum.sigma.length);
    const there = { x1: x(at), x2: x(at), y1: y(1), y2: y(0), visibility: this.seen === null ? "hidden" : "visible" };
    for (const [name, value] of Object.entries(there)) this.guide.setAttribute(name, value);
    this.ring.setAttribute("cx", x(at));
    this.ring.setAttribute("cy", y(height(at)));
    this.ring.setAttribute("visibility", there.visibility);
  }

  named(at) {
    const rank = this.spectrum?.sigma?.length;
    return rank > 1 ? `value ${(1 + at * (rank - 1)).toFixed(1).replace(".0", "")} of ${rank}` : super.named(at);
  }

  /** An arrow key goes from value to value. */
  get side() {
    const rank = this.spectrum?.sigma?.length ?? 0;
    return rank > 1 ? 1 / (rank - 1) : super.side;
  }

  /** The words under the chart, and which preset is on. */
  tell() {
    const { spectrum, keep, value } = this;
    this.kept.textContent = spectrum
      ? words(spectrum, value, keep, this.widget("strength") ?? 1)
      : "Queue once: the spectrum appears behind the curve.";
    const known = spectrum?.layers && isKnown(spectrum, keep);
    this.meter.parentNode.style.visibility = known ? "visible" : "hidden";
    if (known) this.meter.style.width = `${Math.min(100, 100 * left(spectrum, value, keep).whole)}%`;
    this.told.textContent = this.seen === null ? HINT : this.ofBar(this.seen);
    for (const button of this.presets) {
      const { points, interpolation } = PRESETS[button.textContent];
      const same = JSON.stringify(points) === JSON.stringify(value.points);
      button.setAttribute("aria-pressed", same && (interpolation === value.interpolation || button.textContent === "flat"));
    }
  }

  ofBar(i) {
    const { sigma, share } = this.spectrum;
    const gain = FULL * heights(this.value)(place(i, sigma.length));
    return `σ${i + 1} = ${Number(sigma[i].toPrecision(3))} · gain ${gain.toFixed(2)} · ${percent(share[i])} of energy`;
  }

  hover(at) {
    const count = this.spectrum?.sigma?.length;
    const seen = at && count ? Math.round(at[0] * (count - 1)) : null;
    if (seen === this.seen) return;
    this.seen = seen;
    this.draw();
  }

  // -- what ComfyUI does ---------------------------------------------------------------------------------------------

  executed(output) {
    const [spectrum] = output?.spectrum ?? [];
    if (!spectrum || JSON.stringify(spectrum) === JSON.stringify(this.spectrum)) return;
    this.node.properties.trilora_spectrum = spectrum; // saved with the workflow: there again after a reload
    this.seen = null;
    this.draw();
    this.remember();
  }

  configured() {
    this.seen = null;
    this.watch();
    this.draw();
  }

  /** Draw again when a widget changes that the words depend on; those under `keep` come and go. */
  watch() {
    for (const widget of this.node.widgets) {
      if (!KEEPS.includes(widget.name) || this.watched.has(widget)) continue;
      this.watched.add(widget);
      chain(widget, "callback", () => {
        this.watch();
        this.draw();
      });
    }
  }
}
