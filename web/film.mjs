// The strip of preview pictures, each with its step; one is enlarged on a click and walked from with the arrow keys.
import { element } from "./panel.mjs";

export const CSS = `
.trilora-film { display: flex; gap: 6px; overflow-x: auto; padding: 2px 2px 6px; margin: 6px 0 2px; scrollbar-width: thin; }
.trilora .trilora-film button { flex: none; padding: 0; border: 0; background: none; display: grid; gap: 2px; justify-items: center; }
.trilora-film > div { flex: none; }
.trilora-film img { height: 72px; min-width: 48px; border-radius: 4px; display: block; background: var(--tri-paper); }
.trilora-film span { font-size: 10px; color: var(--tri-soft); font-variant-numeric: tabular-nums; }
.trilora-large { border: 0; padding: 0; background: none; max-width: none; max-height: none; color: #fff; text-align: center; outline: none; box-shadow: none; }
.trilora-large::backdrop { background: rgb(0 0 0 / 0.8); }
.trilora-large img { display: block; height: min(80vh, 80vw, 1024px); max-width: 90vw; object-fit: contain; border-radius: 6px; }
.trilora-large p { margin: 10px 0; font: 15px system-ui, sans-serif; }
.trilora-large button { font: inherit; color: inherit; background: none; border: 1px solid #fff6; border-radius: 6px; padding: 4px 14px; margin: 0 10px; cursor: pointer; }
.trilora-large :focus-visible { outline: 2px solid #fff; outline-offset: 2px; }
`;

/** A strip; `update(run)` adds the pictures that are new and leaves those that are there. */
export function filmStrip(api) {
  const strip = element("div", { class: "trilora-film", role: "list", "aria-label": "Previews", hidden: true });
  let shown = "";
  const update = (run) => {
    const steps = [...run.films].sort((a, b) => a - b);
    const key = `${run.run} ${run.folder}`;
    if (key !== shown) strip.replaceChildren();
    shown = key;
    for (const step of steps) {
      if (strip.querySelector(`[data-step="${step}"]`)) continue;
      strip.append(thumbnail(step, () => enlarge(api, strip.run, step), address(api, run, step)));
      strip.scrollLeft = strip.scrollWidth;
    }
    strip.run = run;
    strip.hidden = !steps.length;
  };
  // the graph would zoom and move instead
  strip.addEventListener("wheel", (event) => strip.scrollWidth > strip.clientWidth && event.stopPropagation());
  return { strip, update };
}

function thumbnail(step, onclick, src) {
  const picture = element("img", { src, alt: "", draggable: "false", loading: "lazy" });
  const button = element("button", { type: "button", "aria-label": `Preview at step ${step}, enlarge`, onclick }, picture, element("span", {}, `step ${step}`));
  return element("div", { role: "listitem", "data-step": step }, button);
}

/** Where the server has a preview; the run's name makes the browser take a new file for a new one. */
function address(api, run, step) {
  const filename = `preview-${String(step).padStart(7, "0")}.png`;
  return api.apiURL(`/view?${new URLSearchParams({ filename, subfolder: run.folder, type: "output", run: run.run })}`);
}

/** One picture over the whole page, until Escape, a click beside it or on Close. */
function enlarge(api, run, step) {
  const steps = [...run.films].sort((a, b) => a - b);
  const picture = element("img", {});
  const caption = element("span", { "aria-live": "polite" });
  const show = (to) => {
    step = steps[Math.min(Math.max(steps.indexOf(step) + to, 0), steps.length - 1)];
    picture.src = address(api, run, step);
    picture.alt = caption.textContent = `step ${step} of ${run.total}`;
  };
  const turn = (to, label, sign) => element("button", { type: "button", "aria-label": label, onclick: () => show(to) }, sign);
  const close = element("button", { type: "button", onclick: () => dialog.close() }, "Close");
  const bar = element("p", {}, turn(-1, "Earlier preview", "←"), caption, turn(1, "Later preview", "→"), close);
  const dialog = element("dialog", { class: "trilora-large", "aria-label": "Preview, enlarged" }, picture, bar);
  dialog.addEventListener("keydown", (event) => {
    if (event.key === "ArrowLeft") show(-1);
    if (event.key === "ArrowRight") show(1);
    event.stopPropagation(); // the graph has keys of its own
  });
  dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());
  dialog.addEventListener("close", () => dialog.remove());
  show(0);
  document.body.append(dialog);
  dialog.showModal();
}
