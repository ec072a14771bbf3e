// TriLoRA Schedule: its curves over the sampling steps, one for the adapter or one for each band of singular values.
import { CSS as CURVE_CSS, CurveEditor, HINT } from "./curve.mjs";
import { addPanel, chain, element, watchWidth } from "./panel.mjs";

const HEIGHT = 116;
const CSS = `
${CURVE_CSS}
.trilora-over { display: flex; align-items: center; justify-content: space-between; margin: 2px 0; color: var(--tri-soft); font-size: 11px; }
.trilora-over b { color: var(--tri-ink); font-weight: 600; }
.trilora-elsewhere .trilora-chart, .trilora-elsewhere .trilora-form { display: none; }
`;
const ACTING = {
  curve: "the adapter",
  coarse: "strongest singular values",
  middle: "those in the middle",
  fine: "weakest singular values",
};

export function attach(node, app) {
  const panel = addPanel(node, "curves", "Strength over the sampling steps", CSS);
  const told = element("div", { class: "trilora-told" }, HINT);
  let editors = [];
  const show = () => {
    const widgets = node.widgets.filter(({ type }) => type === "curve");
    if (widgets.some((widget, i) => widget !== editors[i]?.curve) || widgets.length !== editors.length) {
      editors = widgets.map((widget) => new OverSteps(node, app, widget));
      panel.content.replaceChildren(...editors.map(({ root }) => root), told);
    }
    for (const editor of editors) editor.show();
    told.hidden = editors.every(({ linked }) => linked);
  };
  show();
  for (const event of ["onConfigure", "onConnectionsChange"]) chain(node, event, show);
  chain(node.widgets.find(({ name }) => name === "bands"), "callback", show); // other bands, other curves
  panel.live(() => watchWidth(panel.content, show));
}

/** One curve with its name; the upper edge is `strength`. */
class OverSteps extends CurveEditor {
  constructor(node, app, widget) {
    const acting = ACTING[widget.name.split(".").at(-1)];
    super(node, app, widget, { label: `Strength over the sampling steps: ${acting}`, full: 1, height: HEIGHT });
    this.source = element("span");
    const over = element("div", { class: "trilora-over" }, element("b", {}, acting), this.source, this.form);
    this.root = element("div", {}, over, this.chart);
  }

  show() {
    this.linked = this.node.inputs.some((input) => input.name === this.curve.name && input.link != null);
    this.root.classList.toggle("trilora-elsewhere", this.linked);
    this.source.textContent = this.linked ? "curve of another node" : "";
    this.draw();
  }

  drawFrame(scales) {
    super.drawFrame(scales);
    this.caption(scales.from, "first step", "start");
    this.caption(scales.to, "last step", "end");
  }

  named(at) {
    return `${Math.round(100 * at)} % of the steps`;
  }
}
