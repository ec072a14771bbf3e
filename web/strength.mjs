// TriLoRA Strength: the gain curve over the spectrum that it shapes.
import { addPanel, chain, element, line, scale, svg } from "./panel.mjs";
import { FULL, PRESETS, heights, isKnown, left, percent, place, words } from "./spectrum.mjs";

const HEIGHT = 176;
const EDGE = { left: 26, right: 8, top: 8, bottom: 18 };
const SNAP = 0.02; // of the height: near 0, 1 and 2 a dragged gain is exactly that
const KEEPS = ["strength", "keep", "keep.k", "keep.share"];
const HINT = "double-click adds · right-click removes";
const CSS = `
.trilora-presets { display: grid; grid-template-columns: repeat(auto-fit, minmax(72px, 1fr)); gap: 4px; margin-bottom: 4px; }
.trilora-presets button { padding: 2px 4px; font-size: 11px; white-space: nowrap; }
.trilora-presets button[aria-pressed="true"] { border-color: var(--tri-1); box-shadow: inset 0 0 0 1px var(--tri-1); }
.trilora-presets .trilora-form { background: none; border-style: dashed; color: var(--tri-soft); }
.trilora-chart { cursor: crosshair; touch-action: none; height: ${HEIGHT}px; }
.trilora-chart .grid { stroke: var(--tri-line); }
.trilora-chart .one { stroke: var(--tri-soft); stroke-dasharray: 3 3; }
.trilora-chart .came { fill: var(--tri-2); opacity: 0.22; }
.trilora-chart .stays { fill: var(--tri-2); opacity: 0.85; }
.trilora-chart .seen .came { opacity: 0.5; }
.trilora-chart .curve { fill: none; stroke: var(--tri-1); stroke-width: 2; pointer-events: none; }
.trilora-chart .guide { stroke: var(--tri-ink); stroke-width: 1; fill: var(--tri-ink); pointer-events: none; }
.trilora-chart line.guide { opacity: 0.35; }
.trilora-chart .dot { fill: var(--tri-1); stroke: var(--comfy-menu-bg, #fff); stroke-width: 2; cursor: grab; }
.trilora-chart .dot:hover, .trilora-chart .dot:focus { stroke: var(--tri-ink); outline: none; }
.trilora-kept { font-weight: 600; margin-top: 2px; }
.trilora-meter { height: 4px; border-radius: 2px; background: var(--tri-line); margin: 3px 0; overflow: hidden; }
.trilora-meter div { height: 100%; background: var(--tri-2); }
.trilora-told { color: var(--tri-soft); font-size: 11px; white-space: nowrap; font-variant-numeric: tabular-nums; }
`;

export function attach(node, app) {
  const panel = new StrengthPanel(node, app);
  chain(node, "onExecuted", (output) => panel.executed(output));
  chain(node, "onConfigure", () => panel.configured());
}

/** The panel of one node. Its curve is the value of ComfyUI's own widget, which it hides. */
class StrengthPanel {
  constructor(node, app) {
    Object.assign(this, { node, app, seen: null, dragging: false, watched: new WeakSet() });
    this.curve = node.widgets.find(({ name }) => name === "curve");
    this.curve.hidden = this.curve.options.hidden = true;
    const { content, live } = addPanel(node, "sigma", "Gain curve over the spectrum", CSS);
    this.build(content);
    this.watch();
    live(() => this.followWidth());
  }

  build(content) {
    this.presets = Object.entries(PRESETS).map(([name, { tip }]) => {
      const press = () => this.set({ points: PRESETS[name].points, interpolation: PRESETS[name].interpolation });
      return element("button", { type: "button", title: tip, onclick: press }, name);
    });
    this.form = element("button", { type: "button", class: "trilora-form", onclick: () => this.changeForm() });
    this.bars = svg("g");
    this.line = svg("path", { class: "curve" });
    this.guide = svg("line", { class: "guide" });
    this.ring = svg("circle", { class: "guide", r: 3.5 });
    this.dots = svg("g");
    this.frame = svg("g");
    this.chart = svg(
      "svg",
      { class: "trilora-chart", role: "group", "aria-label": "Gain by singular value, strongest on the left" },
      this.frame, this.bars, this.guide, this.line, this.ring, this.dots,
    );
    this.listenTo(this.chart);
    this.kept = element("div", { class: "trilora-kept", role: "status", "aria-live": "polite" });
    this.meter = element("div");
    this.told = element("div", { class: "trilora-told" });
    content.append(
      element("div", { class: "trilora-presets", role: "toolbar", "aria-label": "Curves" }, this.presets, this.form),
      this.chart, this.kept, element("div", { class: "trilora-meter" }, this.meter), this.told,
    );
  }

  listenTo(chart) {
    const own = (type, act) => chart.addEventListener(type, (event) => {
      event.stopPropagation();
      act(event);
    });
    own("pointerdown", (event) => this.grab(event));
    own("pointermove", (event) => this.hover(this.at(event)));
    own("pointerleave", () => this.hover(null));
    own("dblclick", (event) => this.dotOf(event.target) < 0 && this.addAt(this.at(event)));
    own("keydown", (event) => this.key(event));
    own("contextmenu", (event) => {
      event.preventDefault();
      this.remove(this.dotOf(event.target));
    });
  }

  // -- what is drawn -------------------------------------------------------------------------------------------------

  get spectrum() {
    return this.node.properties.trilora_spectrum;
  }

  get value() {
    return this.curve.value;
  }

  widget(name) {
    return this.node.widgets.find((each) => each.name === name)?.value;
  }

  get keep() {
    return { keep: this.widget("keep"), k: this.widget("keep.k"), share: this.widget("keep.share") };
  }

  /** Places are centred on the first and the last bar. */
  scales() {
    const [from, to] = [EDGE.left, Math.max(this.chart.clientWidth, 120) - EDGE.right];
    const count = this.spectrum?.sigma?.length ?? 1;
    const half = this.spectrum?.layers ? Math.min((to - from) / (2 * Math.max(count, 2)), 22) : 7;
    return {
      x: scale([0, 1], [from + half, to - half]),
      y: scale([0, 1], [HEIGHT - EDGE.bottom, EDGE.top]),
      from, to, half,
    };
  }

  draw() {
    if (!this.chart.clientWidth) return;
    const scales = this.scales();
    this.drawFrame(scales);
    this.drawBars(scales);
    const height = heights(this.value);
    const points = Array.from({ length: 161 }, (_, i) => [scales.x(i / 160), scales.y(height(i / 160))]);
    const corners = this.value.points.map(([at, gain]) => [scales.x(at), scales.y(gain)]);
    const edges = [[scales.from, scales.y(height(0))], [scales.to, scales.y(height(1))]];
    this.line.setAttribute("d", line([...points, ...corners, ...edges].sort((a, b) => a[0] - b[0])));
    this.drawGuide(scales, height);
    this.drawDots(scales);
    this.tell();
  }

  drawFrame({ x, y, from, to }) {
    const rank = this.spectrum?.sigma?.length;
    this.frame.replaceChildren(
      ...[0, 0.25, 0.5, 0.75, 1].map((h) =>
        svg("line", { class: h === 0.5 ? "one" : "grid", x1: from, x2: to, y1: y(h), y2: y(h) })),
      ...[0, 1, 2].map((gain) =>
        svg("text", { x: from - 5, y: y(gain / FULL) + 3, "text-anchor": "end" }, `×${gain}`)),
      svg("text", { x: rank ? x(0) : from, y: HEIGHT - 5, "text-anchor": rank ? "middle" : "start" }, rank ? "σ1" : "strongest"),
      svg("text", { x: rank ? x(1) : to, y: HEIGHT - 5, "text-anchor": rank ? "middle" : "end" }, rank > 1 ? `σ${rank}` : rank ? "" : "weakest"),
      svg("text", { x: (from + to) / 2, y: HEIGHT - 5, "text-anchor": "middle" }, rank ? "strongest → weakest" : ""),
    );
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

  /** Points keep their elements while they are dragged, and with them the focus. */
  drawDots({ x, y }) {
    const { points } = this.value;
    while (this.dots.children.length > points.length) this.dots.lastChild.remove();
    points.forEach(([at, height], i) => {
      if (!this.dots.children[i]) this.dots.append(svg("circle", { class: "dot", r: 6, tabindex: 0, role: "slider" }));
      const gain = (FULL * height).toFixed(2);
      const told = {
        cx: x(at), cy: y(height), "aria-label": `Point ${i + 1} of ${points.length}`, "aria-valuemin": 0,
        "aria-valuemax": FULL, "aria-valuenow": gain, "aria-valuetext": `gain ${gain} at ${this.named(at)}`,
      };
      for (const [name, value] of Object.entries(told)) this.dots.children[i].setAttribute(name, value);
    });
  }

  named(at) {
    const rank = this.spectrum?.sigma?.length;
    return rank > 1 ? `value ${(1 + at * (rank - 1)).toFixed(1).replace(".0", "")} of ${rank}` : `${Math.round(100 * at)} % of the way`;
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
    const smooth = value.interpolation !== "linear";
    this.form.textContent = smooth ? "smooth" : "straight";
    this.form.title = `Between its points the curve is ${smooth ? "smooth" : "straight"}. Press to change.`;
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

  // -- what the hand does --------------------------------------------------------------------------------------------

  /** Place and height under the pointer, whatever the canvas is zoomed to. */
  at(event) {
    const box = this.chart.getBoundingClientRect();
    const zoom = box.width / this.chart.clientWidth || 1;
    const { x, y } = this.scales();
    const within = (value, [low, high]) => Math.min(1, Math.max(0, (value - low) / (high - low)));
    return [
      within((event.clientX - box.left) / zoom, [x(0), x(1)]),
      within((event.clientY - box.top) / zoom, [y(0), y(1)]),
    ];
  }

  dotOf(target) {
    return [...this.dots.children].indexOf(target);
  }

  grab(event) {
    const i = this.dotOf(event.target);
    if (i < 0 || event.button !== 0) return;
    const dot = event.target;
    dot.focus();
    dot.setPointerCapture(event.pointerId);
    const move = (moved) => this.move(i, this.at(moved), !moved.altKey);
    const end = () => {
      dot.removeEventListener("pointermove", move);
      this.dragging = false;
      this.remember();
    };
    this.dragging = true;
    dot.addEventListener("pointermove", move);
    dot.addEventListener("lostpointercapture", end, { once: true });
  }

  hover(at) {
    const count = this.spectrum?.sigma?.length;
    const seen = at && count ? Math.round(at[0] * (count - 1)) : null;
    if (seen === this.seen) return;
    this.seen = seen;
    this.draw();
  }

  key(event) {
    const i = this.dotOf(event.target);
    const [at, height] = this.value.points[i] ?? [];
    if (i < 0 || event.ctrlKey || event.metaKey) return;
    const rank = this.spectrum?.sigma?.length ?? 0;
    const side = rank > 1 && !event.shiftKey ? 1 / (rank - 1) : 0.01;
    const up = event.shiftKey ? 0.005 : 0.025;
    const act = {
      ArrowUp: () => this.move(i, [at, height + up]),
      ArrowDown: () => this.move(i, [at, height - up]),
      ArrowRight: () => this.move(i, [at + side, height]),
      ArrowLeft: () => this.move(i, [at - side, height]),
      Delete: () => this.remove(i),
      Backspace: () => this.remove(i),
      Enter: () => this.addAfter(i),
    }[event.key];
    if (!act) return;
    event.preventDefault();
    act();
  }

  // -- the value -----------------------------------------------------------------------------------------------------

  /** Move a point between its neighbours. */
  move(i, [at, height], snap = false) {
    const points = this.value.points.map((point) => [...point]);
    const [low, high] = [points[i - 1]?.[0] ?? 0, points[i + 1]?.[0] ?? 1];
    const near = [0, 0.5, 1].find((mark) => snap && Math.abs(height - mark) < SNAP);
    points[i] = [rounded(Math.min(high, Math.max(low, at))), near ?? rounded(Math.min(1, Math.max(0, height)))];
    this.set({ ...this.value, points });
  }

  addAt([at, height]) {
    const points = [...this.value.points, [rounded(at), rounded(height)]].sort((a, b) => a[0] - b[0]);
    this.set({ ...this.value, points });
    this.dots.children[points.findIndex(([x]) => x === rounded(at))]?.focus();
  }

  /** A point in the middle of the way to the next one. */
  addAfter(i) {
    const [from, to] = i + 1 < this.value.points.length ? [i, i + 1] : [i - 1, i];
    const at = (this.value.points[from][0] + this.value.points[to][0]) / 2;
    this.addAt([at, heights(this.value)(at)]);
  }

  remove(i) {
    if (i < 0 || this.value.points.length <= 2) return;
    this.set({ ...this.value, points: this.value.points.filter((_, each) => each !== i) });
    this.dots.children[Math.min(i, this.dots.children.length - 1)].focus();
  }

  changeForm() {
    this.set({ ...this.value, interpolation: this.value.interpolation === "linear" ? "monotone_cubic" : "linear" });
  }

  /** The widget's value in the form that ComfyUI's CURVE has, a new object each time. */
  set({ points, interpolation }) {
    this.curve.value = { points: points.map((point) => [...point]), interpolation };
    this.curve.callback?.(this.curve.value, this.app.canvas, this.node);
    if (this.node.graph) this.node.graph._version++;
    this.draw();
    if (!this.dragging) this.remember();
  }

  /** A step that ComfyUI's undo goes back; a whole drag is one. */
  remember() {
    this.app.extensionManager?.workflow?.activeWorkflow?.changeTracker?.captureCanvasState?.();
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

  followWidth() {
    const observer = new ResizeObserver(() => this.draw());
    observer.observe(this.chart);
    return () => observer.disconnect();
  }
}

const rounded = (value) => Number(value.toFixed(4));
