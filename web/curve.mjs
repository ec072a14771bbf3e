// The value of one of ComfyUI's CURVE widgets as a chart whose points are moved by mouse and keys, in either renderer.
import { element, line, scale, svg } from "./panel.mjs";
import { heights } from "./spectrum.mjs";

const EDGE = { left: 26, right: 8, top: 8, bottom: 18 };
export const HINT = "double-click adds · right-click removes";
const SNAP = 0.02; // of the height: near a mark a dragged point is exactly on it
export const CSS = `
.trilora-chart { cursor: crosshair; touch-action: none; }
.trilora-chart .grid { stroke: var(--tri-line); }
.trilora-chart .curve { fill: none; stroke: var(--tri-1); stroke-width: 2; pointer-events: none; }
.trilora-chart .dot { fill: var(--tri-1); stroke: var(--comfy-menu-bg, #fff); stroke-width: 2; cursor: grab; }
.trilora-chart .dot:hover, .trilora-chart .dot:focus { stroke: var(--tri-ink); outline: none; }
.trilora .trilora-form { background: none; border-style: dashed; color: var(--tri-soft); padding: 2px 8px; font-size: 11px; }
.trilora-told { color: var(--tri-soft); font-size: 11px; white-space: nowrap; font-variant-numeric: tabular-nums; }
`;

/** One curve. `chart` and `form`, the button between straight and smooth, are put where the panel wants them. */
export class CurveEditor {
  /**
   * @param widget of ComfyUI's type CURVE, which is hidden: the curve is its value
   * @param label what a screen reader calls the chart
   * @param full what the chart's upper edge stands for
   */
  constructor(node, app, widget, { label, full, height }) {
    Object.assign(this, { node, app, curve: widget, full, height, dragging: false });
    widget.hidden = widget.options.hidden = true;
    this.form = element("button", { type: "button", class: "trilora-form", onclick: () => this.changeForm() });
    this.line = svg("path", { class: "curve" });
    this.dots = svg("g");
    this.frame = svg("g");
    this.behind = svg("g");
    this.chart = svg(
      "svg", { class: "trilora-chart", role: "group", "aria-label": label, style: `height: ${height}px` },
      this.frame, this.behind, this.line, this.dots,
    );
    this.listenTo(this.chart);
  }

  get value() {
    return this.curve.value;
  }

  // -- what a panel decides ------------------------------------------------------------------------------------------

  /** Where places and heights, both 0 to 1, lie in the chart, and how far the curve goes on at its ends. */
  scales() {
    const [from, to] = [EDGE.left, Math.max(this.chart.clientWidth, 120) - EDGE.right];
    return { x: scale([0, 1], [from + 7, to - 7]), y: scale([0, 1], [this.height - EDGE.bottom, EDGE.top]), from, to };
  }

  /** Where along the curve a point is, in words. */
  named(at) {
    return `${Math.round(100 * at)} % of the way`;
  }

  /** How far an arrow key moves a point sideways. */
  get side() {
    return 0.01;
  }

  /** What else there is to draw behind the curve, and to say about it. */
  drawn() {}

  // -- what is drawn -------------------------------------------------------------------------------------------------

  draw() {
    if (!this.chart.clientWidth) return;
    const scales = this.scales();
    const height = heights(this.value);
    this.drawFrame(scales);
    this.drawLine(scales, height);
    this.drawDots(scales);
    const smooth = this.value.interpolation !== "linear";
    this.form.textContent = smooth ? "smooth" : "straight";
    this.form.title = `Between its points the curve is ${smooth ? "smooth" : "straight"}. Press to change.`;
    this.drawn(scales, height);
  }

  drawFrame({ y, from, to }) {
    const marks = [0, 0.5, 1].map((h) => svg("text", { x: from - 5, y: y(h) + 3, "text-anchor": "end" }, `×${h * this.full}`));
    const lines = [0, 0.25, 0.5, 0.75, 1].map((h) => svg("line", { class: "grid", x1: from, x2: to, y1: y(h), y2: y(h) }));
    this.frame.replaceChildren(...lines, ...marks);
  }

  /** Words below the chart. */
  caption(x, words, anchor) {
    this.frame.append(svg("text", { x, y: this.height - 5, "text-anchor": anchor }, words));
  }

  drawLine({ x, y, from, to }, height) {
    const points = Array.from({ length: 161 }, (_, i) => [x(i / 160), y(height(i / 160))]);
    const corners = this.value.points.map(([at, gain]) => [x(at), y(gain)]); // first: of equal places the curve's own stay in order
    const edges = [[from, y(height(0))], [to, y(height(1))]];
    this.line.setAttribute("d", line([...corners, ...points, ...edges].sort((a, b) => a[0] - b[0])));
  }

  /** Points keep their elements while they are dragged, and with them the focus. */
  drawDots({ x, y }) {
    const { points } = this.value;
    while (this.dots.children.length > points.length) this.dots.lastChild.remove();
    points.forEach(([at, height], i) => {
      if (!this.dots.children[i]) this.dots.append(svg("circle", { class: "dot", r: 6, tabindex: 0, role: "slider" }));
      const gain = (this.full * height).toFixed(2);
      const told = {
        cx: x(at), cy: y(height), "aria-label": `Point ${i + 1} of ${points.length}`, "aria-valuemin": 0,
        "aria-valuemax": this.full, "aria-valuenow": gain, "aria-valuetext": `gain ${gain} at ${this.named(at)}`,
      };
      for (const [name, value] of Object.entries(told)) this.dots.children[i].setAttribute(name, value);
    });
  }

  // -- what the hand does --------------------------------------------------------------------------------------------

  listenTo(chart) {
    const own = (type, act) => chart.addEventListener(type, (event) => {
      event.stopPropagation();
      act(event);
    });
    own("pointerdown", (event) => this.grab(event));
    own("pointermove", (event) => this.hover(this.at(event)));
    own("pointerleave", () => this.hover(null));
    own("dblclick", (event) => this.dotOf(event.target) < 0 && this.addAt(this.at(event)));
    chart.addEventListener("keydown", (event) => this.key(event)); // keys that are not the chart's stay the page's
    own("contextmenu", (event) => {
      event.preventDefault();
      this.remove(this.dotOf(event.target));
    });
  }

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

  /** The pointer's place and height, or null when it has left. */
  hover() {}

  key(event) {
    const i = this.dotOf(event.target);
    const [at, height] = this.value.points[i] ?? [];
    if (i < 0 || event.ctrlKey || event.metaKey) return;
    const side = event.shiftKey ? 0.01 : this.side;
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
    event.stopPropagation();
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
}

const rounded = (value) => Number(value.toFixed(4));
