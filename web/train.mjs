import { addPanel, element } from "./panel.mjs";

export function attach(node) {
  const { content } = addPanel(node, "training", "Training");
  content.append(element("p", {}, "Queue the workflow: loss, pictures and spectrum appear here."));
}
