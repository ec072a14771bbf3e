// The panel of TriLoRA Dataset: what is amiss, the buckets as bars, and each picture with its caption.
import { addPanel, chain, element } from "./panel.mjs";

const CSS = `
.trilora-lines { margin: 0; padding: 0; list-style: none; color: var(--tri-soft); }
.trilora-lines .problem { color: var(--tri-1); padding-left: 1.4em; text-indent: -1.4em; }
.trilora-lines .fine { color: var(--tri-3); }
.trilora-buckets { display: grid; grid-template-columns: max-content 1fr max-content; gap: 2px 8px; align-items: center; margin: 6px 0; font-variant-numeric: tabular-nums; }
.trilora-buckets i { height: 8px; border-radius: 2px; background: var(--tri-2); min-width: 2px; }
.trilora-sheet { display: grid; grid-template-columns: repeat(auto-fill, minmax(84px, 1fr)); gap: 8px 6px; margin: 8px 0 0; padding: 0 4px 0 0; max-height: 300px; overflow-y: auto; scrollbar-width: thin; list-style: none; }
.trilora-sheet .picture { width: 84px; height: 84px; display: grid; place-items: center; }
.trilora-sheet p { margin: 2px 0 0; font-size: 10px; line-height: 1.25; color: var(--tri-soft); display: -webkit-box; -webkit-box-orient: vertical; -webkit-line-clamp: 3; overflow: hidden; overflow-wrap: anywhere; user-select: text; }
.trilora-sheet p.problem { color: var(--tri-1); }
`;
const HINT = "Run the workflow: pictures, captions, buckets and whatever is amiss appear here.";
const SIDE = 84; // CSS pixels of the longer side of a picture

/** Give a node its panel; it shows what the node last said. */
export function attach(node, app, api) {
  const panel = addPanel(node, "pictures", "Pictures", CSS);
  const show = (output) => {
    const data = output?.trilora?.[0];
    panel.content.replaceChildren(...(data ? drawn(data, api) : [element("p", { class: "trilora-lines" }, HINT)]));
  };
  show();
  chain(node, "onExecuted", show);
  panel.live(() => {
    const known = setTimeout(() => show(app.nodeOutputs?.[locator(node)])); // of a run before the graph was loaded again
    return () => clearTimeout(known);
  });
}

/** What ComfyUI's page calls a node by: inside a subgraph, that one's id comes first. */
function locator({ graph, id }) {
  return graph?.isRootGraph === false ? `${graph.id}:${id}` : id;
}

function drawn(data, api) {
  return [words(data.lines), bars(data.buckets), sheet(data, api)];
}

/** What there is to say, problems first and marked; the buckets are drawn, not said. */
function words(lines) {
  const problems = lines.filter((line) => line.startsWith("!"));
  const facts = lines.filter((line) => !line.startsWith("!") && !line.startsWith("Buckets"));
  const list = element("ul", { class: "trilora-lines" }, facts.map((line) => element("li", {}, line)));
  if (problems.length) list.prepend(...problems.map((line) => element("li", { class: "problem" }, `⚠ ${line.slice(2)}`)));
  else list.append(element("li", { class: "fine" }, "✓ nothing amiss"));
  return list;
}

function bars(buckets) {
  const most = Math.max(...buckets.map(([, count]) => count));
  const rows = buckets.flatMap(([[width, height], count]) => [
    element("span", {}, `${width} × ${height}`),
    element("i", { style: `width: ${(100 * count) / most}%` }),
    element("span", {}, String(count)),
  ]);
  const said = buckets.map(([[width, height], count]) => `${count} of ${width} by ${height}`).join(", ");
  return element("div", { class: "trilora-buckets", role: "img", "aria-label": `Buckets: ${said}` }, rows);
}

function sheet(data, api) {
  if (!data.sheet) return "";
  const url = api.apiURL(`/view?${new URLSearchParams(data.sheet)}`);
  const cells = data.pictures.map((picture) => cell(picture, url, data.size));
  const more = data.total - data.pictures.length;
  const list = element("ul", { class: "trilora-sheet", tabindex: 0, "aria-label": "Pictures with captions" }, cells);
  list.addEventListener("wheel", (event) => list.scrollHeight > list.clientHeight && event.stopPropagation());
  return element("div", {}, list, more > 0 ? element("p", { class: "trilora-lines" }, `and ${more} more`) : null);
}

/** One picture, cut from the sheet, with its caption below. */
function cell({ name, caption, place: [left, top, width, height] }, url, [across, down]) {
  const zoom = SIDE / Math.max(width, height);
  const px = (...values) => values.map((value) => `${value * zoom}px`).join(" ");
  const style = `width: ${px(width)}; height: ${px(height)}; background: url("${url}") ${px(-left, -top)} / ${px(across, down)}; border-radius: 4px`;
  const picture = element("div", { role: "img", "aria-label": name, title: name, style });
  const text = element("p", { title: caption, class: caption ? "" : "problem" }, caption || "no caption");
  return element("li", {}, element("div", { class: "picture" }, picture), text);
}
