// Load TriLoRA: what the chosen file says of itself, before anything is loaded.
import { addPanel, chain, element, listen } from "./panel.mjs";

const CSS = `
.trilora-facts { display: flex; flex-wrap: wrap; gap: 4px; margin-bottom: 6px; }
.trilora-facts span { padding: 1px 7px; border-radius: 5px; background: var(--tri-paper); border: 1px solid var(--tri-line); }
.trilora-facts span:first-child { font-weight: 600; border-color: var(--tri-2); }
.trilora-title { font-weight: 600; font-size: 13px; margin-bottom: 4px; overflow-wrap: anywhere; }
.trilora-label { color: var(--tri-soft); font-size: 11px; margin-bottom: 3px; }
.trilora-words { display: flex; flex-wrap: wrap; gap: 4px; margin-bottom: 6px; user-select: text; }
.trilora-words button { max-width: 100%; padding: 2px 8px; overflow-wrap: anywhere; text-align: left; }
.trilora-words button.trigger { border-color: var(--tri-1); font-weight: 600; }
.trilora-words button.done { border-color: var(--tri-3); color: var(--tri-3); }
.trilora-words .count { color: var(--tri-soft); font-size: 10px; margin-left: 4px; }
.trilora-problem { border-left: 3px solid var(--tri-1); padding-left: 8px; overflow-wrap: anywhere; user-select: text; }
.trilora summary { cursor: pointer; color: var(--tri-soft); font-size: 11px; border-radius: 4px; }
.trilora-settings { display: grid; grid-template-columns: auto 1fr; gap: 1px 10px; margin: 4px 0 0; user-select: text; }
.trilora-settings dt { color: var(--tri-soft); white-space: nowrap; }
.trilora-settings dd { margin: 0; overflow-wrap: anywhere; font-variant-numeric: tabular-nums; }
.trilora-said { position: absolute; clip-path: inset(50%); width: 1px; height: 1px; overflow: hidden; }
`;

export function attach(node, app, api) {
  const { content, live } = addPanel(node, "header", "What the file says", CSS);
  const panel = new LoadPanel(node, api, content);
  chain(panel.file, "callback", () => panel.soon());
  chain(node, "onConfigure", () => panel.soon());
  chain(node, "onConnectionsChange", () => panel.soon());
  chain(node, "refreshComboInNode", () => panel.soon()); // key R: the list may hold the file now
  live(() => {
    panel.soon();
    return listen(api, "execution_success", () => panel.soon()); // a file may have been saved anew under its name
  });
}

/** The panel of one node, which asks the server whenever another file is chosen. */
class LoadPanel {
  constructor(node, api, content) {
    Object.assign(this, { node, api, content, shown: "", asked: 0, open: false });
    this.file = node.widgets.find(({ name }) => name === "file");
  }

  /** Read once, after everything that sets widgets in one go. */
  soon() {
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.read());
  }

  async read() {
    const turn = ++this.asked;
    const answer = await this.answer();
    const text = JSON.stringify([this.file.value, answer]);
    if (turn !== this.asked || text === this.shown) return;
    this.shown = text;
    this.content.replaceChildren(...(answer.words ? [problem(answer.words)] : this.drawn(answer)));
  }

  /** The file's header, or {words} where there is none to show. */
  async answer() {
    const name = this.file.value;
    if (this.node.inputs.some((input) => input.name === "file" && input.link != null)) {
      return { words: "The file's name comes from another node: what it says is seen when it is chosen here." };
    }
    if (!name) return { words: "No LoRA file yet: put one into models/loras and press R." };
    if (!this.listed().includes(name)) return { words: `${name} is not in a loras folder. Put it there and press R, or choose another file.` };
    try {
      const response = await this.api.fetchApi(`/trilora/lora?name=${encodeURIComponent(name)}`);
      const said = await response.json();
      return said.problem ?? said.error ? { words: said.problem ?? said.error } : said;
    } catch (error) {
      return { words: `The server did not say what is in ${name}: ${error.message}` };
    }
  }

  listed() {
    const values = this.file.options.values;
    return typeof values === "function" ? values(this.file, this.node) : values;
  }

  drawn(said) {
    const { title, ...settings } = said.settings;
    return [
      title ? element("div", { class: "trilora-title" }, title) : null,
      element("div", { class: "trilora-facts" }, facts(said).map((fact) => element("span", {}, fact))),
      unreadable(said),
      ...this.words(said),
      Object.keys(settings).length ? this.settings(settings) : label("The file says nothing of its training."),
    ].filter(Boolean);
  }

  /** Trigger words, or what its captions say most often; a click copies one. */
  words({ triggers, tags }) {
    const chips = triggers.length
      ? triggers.map((word) => this.chip(word, "trigger"))
      : tags.map(([word, count]) => this.chip(word, "tag", element("span", { class: "count" }, count)));
    if (!chips.length) return [label("No trigger word is in the file.")];
    this.said = element("span", { class: "trilora-said", role: "status", "aria-live": "polite" });
    const many = triggers.length > 1 ? "Trigger words" : "Trigger word";
    return [
      label(triggers.length ? `${many} · click to copy` : "No trigger word; most frequent in its captions · click to copy"),
      element("div", { class: "trilora-words" }, chips, this.said),
    ];
  }

  chip(word, kind, ...more) {
    const chip = element("button", { type: "button", class: kind, title: `Copy “${word}”`, onclick: () => this.copy(chip, word) }, word, ...more);
    return chip;
  }

  async copy(chip, word) {
    const done = await copied(word);
    this.said.textContent = done ? `${word} copied` : "The browser does not let a page copy here.";
    chip.classList.toggle("done", done);
    chip.title = this.said.textContent;
    setTimeout(() => chip.classList.remove("done"), 1200);
  }

  settings(settings) {
    const rows = Object.entries(settings).flatMap(([name, value]) => [element("dt", {}, name), element("dd", {}, value)]);
    const list = element("details", { open: this.open }, element("summary", {}, "Training settings"), element("dl", { class: "trilora-settings" }, rows));
    list.addEventListener("toggle", () => {
      this.open = list.open;
    });
    return list;
  }
}

/** Rank, base, layers and size in a word each. */
function facts({ ranks, base, guessed, layers, kind, size }) {
  const [low, high] = ranks;
  return [
    high ? (low === high ? `rank ${high}` : `ranks ${low}–${high}`) : null,
    base ? base + (guessed ? ", by its layers" : "") : "base unknown",
    layers ? `${layers} ${layers === 1 ? "layer" : "layers"}` : null,
    kind && kind !== "LoRA" ? kind : null,
    size < 1e6 ? `${Math.ceil(size / 1e3)} kB` : `${(size / 1e6).toFixed(size < 1e7 ? 1 : 0)} MB`,
  ].filter(Boolean);
}

function unreadable({ kind, layers }) {
  if (kind && kind !== "LoRA") return problem(`It holds ${kind}, which has no U Σ Vᵀ. Use ComfyUI's own Load LoRA node.`);
  return layers ? null : problem("No LoRA layer is in this file. Choose another one.");
}

const problem = (words) => element("div", { class: "trilora-problem", role: "note" }, words);
const label = (words) => element("div", { class: "trilora-label" }, words);

/** Copy, also where a page that is not served over https has no clipboard. */
async function copied(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    const field = element("textarea", { style: "position: fixed; opacity: 0" }, text);
    document.body.append(field);
    field.select();
    const done = document.execCommand("copy");
    field.remove();
    return done;
  }
}
