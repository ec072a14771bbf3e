// The pack's face: a panel for each node that has one. Every .js of this folder is loaded by the page, every .mjs only from here.
import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";

const PANELS = {
  TriLoRADataset: "./dataset.mjs",
  TriLoRATrain: "./train.mjs",
  TriLoRARepair: "./train.mjs",
  TriLoRAStrength: "./strength.mjs",
  TriLoRASchedule: "./schedule.mjs",
  TriLoRALoad: "./load.mjs",
};
const loaded = {};

async function load(id, file) {
  try {
    loaded[id] = await import(file);
  } catch (error) {
    console.warn(`TriLoRA: the panel of ${id} does not load; the node works without it.`, error);
  }
}

app.registerExtension({
  name: "trilora",
  async init() {
    await Promise.all(Object.entries(PANELS).map(([id, file]) => load(id, file)));
  },
  nodeCreated(node) {
    loaded[node.constructor.comfyClass]?.attach(node, app, api);
  },
});
