// What the panels share: a DOM widget that fits its content in either node renderer, elements, charts, colours.

/** Colours of data, the same in every panel and readable on both themes; --tri-1 is the first thing looked at. */
const STYLE = `
.trilora {
  --tri-1: #d9480f; --tri-2: #1d6fa5; --tri-3: #2b8a3e; --tri-4: #7b3fb5;
  --tri-ink: var(--fg-color, #222); --tri-soft: color-mix(in srgb, var(--tri-ink) 62%, transparent);
  --tri-line: color-mix(in srgb, var(--tri-ink) 14%, transparent);
  --tri-paper: color-mix(in srgb, var(--tri-ink) 5%, transparent);
  box-sizing: border-box; width: 100%; overflow: hidden; color: var(--tri-ink);
  font: 12px/1.4 system-ui, sans-serif; text-align: left; user-select: none;
}
.dark-theme .trilora { --tri-1: #ff7a45; --tri-2: #5ab0e6; --tri-3: #69c779; --tri-4: #b98be8; }
.trilora * { box-sizing: border-box; }
.trilora [hidden] { display: none !important; }
.trilora-content { padding: 4px 6px 6px; display: flow-root; }
.trilora svg { display: block; width: 100%; overflow: visible; }
.trilora svg text { font: 10px system-ui, sans-serif; fill: var(--tri-soft); }
.trilora button {
  font: inherit; color: inherit; cursor: pointer; padding: 3px 10px; border-radius: 6px;
  background: var(--tri-paper); border: 1px solid var(--tri-line);
}
.trilora button:hover:not(:disabled) { background: color-mix(in srgb, var(--tri-ink) 16%, transparent); }
.trilora button:disabled { opacity: 0.45; cursor: default; }
.trilora :focus-visible { outline: 2px solid var(--tri-2); outline-offset: 1px; }
`;

function addStyle(id, css) {
  if (document.getElementById(id)) return;
  const sheet = document.createElement("style");
  sheet.id = id;
  sheet.textContent = css;
  document.head.append(sheet);
}

/**
 * A panel at the foot of a node, as high as its content.
 *
 * @param node the node that is just created
 * @param name of the widget
 * @param label what a screen reader calls the panel
 * @param css rules of this panel alone, under `.trilora`
 * @returns {content, widget, live}: `content` is where to draw; `live(start)` calls `start()` when the node comes into a
 *   graph and what `start` returned when it leaves it, so that listeners never outlive the node
 */
export function addPanel(node, name, label, css = "") {
  addStyle("trilora-style", STYLE);
  if (css) addStyle(`trilora-style-${name}`, css);
  const content = element("div", { class: "trilora-content" });
  const root = element("div", { class: "trilora", role: "region", "aria-label": label }, content);
  const widget = node.addDOMWidget(name, "trilora", root, {
    serialize: false,
    hideOnZoom: false,
    getMinHeight: () => content.offsetHeight || 32,
  });
  widget.serialize = false; // neither in the prompt nor in the saved workflow
  const live = (start) => whileInGraph(node, start);
  live(() => followHeight(node, content));
  return { content, widget, live };
}

const ends = new Map(); // what ends something that was started -> the node that it was started for

/** Call `start` when the node is put into a graph, and what it returned when the node is taken out. */
function whileInGraph(node, start) {
  let stop;
  const end = () => {
    stop?.();
    stop = undefined;
    ends.delete(end);
  };
  chain(node, "onAdded", () => {
    for (const [other, its] of ends) if (isGone(its)) other();
    stop ??= start();
    ends.set(end, node);
  });
  chain(node, "onRemoved", end);
}

/** Whether a node was in a subgraph that is no more: where a whole graph is replaced, ComfyUI tells its inner nodes nothing. */
function isGone({ graph }) {
  return graph?.isRootGraph === false && graph.rootGraph.subgraphs.get(graph.id) !== graph;
}

/** The node grows and shrinks with its panel; the new renderer sees to that itself. */
function followHeight(node, content) {
  let height = content.offsetHeight;
  const observer = new ResizeObserver(() => {
    const grown = content.offsetHeight - height;
    if (!grown) return;
    height = content.offsetHeight;
    if (window.LiteGraph.vueNodesMode) return;
    const least = node.computeSize();
    if (node.size[1] < least[1] || grown < 0) node.setSize([node.size[0], least[1]]);
    node.setDirtyCanvas?.(true, true);
  });
  observer.observe(content);
  return () => observer.disconnect();
}

/** Call `fn` when an element gets another width; returns the function that ends it. */
export function watchWidth(element, fn) {
  let width = 0;
  const observer = new ResizeObserver(([entry]) => {
    if (entry.contentRect.width !== width) fn((width = entry.contentRect.width));
  });
  observer.observe(element);
  return () => observer.disconnect();
}

/** Call `fn` after what a node's own callback does. */
export function chain(node, name, fn) {
  const before = node[name];
  node[name] = function (...args) {
    const result = before?.apply(this, args);
    fn.apply(this, args);
    return result;
  };
}

/** Add a listener and get the function that removes it. */
export function listen(target, type, fn) {
  target.addEventListener(type, fn);
  return () => target.removeEventListener(type, fn);
}

/** An HTML element: attributes, `on...` listeners, children (elements or text). */
export function element(tag, attributes = {}, ...children) {
  return filled(document.createElement(tag), attributes, children);
}

/** An SVG element, likewise. Charts are drawn in CSS pixels, so that they are sharp at any zoom and density. */
export function svg(tag, attributes = {}, ...children) {
  return filled(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);
}

function filled(made, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (value === true) made.setAttribute(name, "");
    else if (value !== false && value != null) made.setAttribute(name, value);
  }
  made.append(...children.flat().filter((child) => child != null));
  return made;
}

/** A straight scale from a domain to pixels; it keeps its domain as `low` and `high`. */
export function scale([low, high], [from, to]) {
  const span = high - low || 1;
  return Object.assign((value) => from + ((value - low) / span) * (to - from), { low, high });
}

/** The `d` of a line through points [x, y]; a gap where y is no number. */
export function line(points) {
  let pen = "M";
  let path = "";
  for (const [x, y] of points) {
    if (!Number.isFinite(y)) {
      pen = "M";
      continue;
    }
    path += `${pen}${x.toFixed(1)} ${y.toFixed(1)}`;
    pen = "L";
  }
  return path;
}

/** Two to five round numbers between low and high. */
export function ticks(low, high, count = 3) {
  const raw = (high - low) / count || 1;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map((m) => m * power).find((s) => s >= raw);
  const found = [];
  for (let t = Math.ceil(low / step) * step; t <= high + step * 1e-6; t += step) found.push(Number(t.toPrecision(6)));
  return found;
}

/** m:ss, or h:mm:ss from an hour on. */
export function clock(seconds) {
  const whole = Math.round(seconds);
  const [h, m, s] = [Math.floor(whole / 3600), Math.floor(whole / 60) % 60, whole % 60];
  const two = (n) => String(n).padStart(2, "0");
  return h ? `${h}:${two(m)}:${two(s)}` : `${m}:${two(s)}`;
}
