// What the server tells of trainings, kept for the panels that show them: everything when asked, then what is new.

const EVENT = "trilora.progress";
const MOST = 8000; // points kept of a curve; a longer one loses every second of them
const panels = new Map(); // node -> what to call with its run
const runs = new Map(); // node's place in the graph -> its run as known so far
let asking;

/**
 * Call `show(run)` with what is known of a node's training, now and whenever there is news.
 *
 * @returns the function that ends it
 */
export function follow(node, app, api, show) {
  if (!panels.size) listenTo(app, api);
  panels.set(node, show);
  askSoon(app, api);
  return () => {
    panels.delete(node);
    askSoon(app, api);
  };
}

let listening = false;
function listenTo(app, api) {
  if (listening) return;
  listening = true;
  api.addEventListener(EVENT, ({ detail }) => receive(detail, app, api));
  api.addEventListener("reconnected", () => askSoon(app, api));
  api.addEventListener("status", () => asking === "no client yet" && askSoon(app, api));
}

/** Once for all panels that come and go together, as when a workflow is loaded. */
function askSoon(app, api) {
  clearTimeout(asking);
  asking = setTimeout(() => ask(app, api), 50);
}

/** Say which workflow this page shows; the answer is every run of it. */
async function ask(app, api) {
  const client = api.clientId ?? api.initialClientId;
  if (!client) {
    asking = "no client yet";
    return;
  }
  const workflow = panels.size ? app.rootGraph.id : "";
  const before = [...runs.values()];
  const answer = await post(api, "watch", { client_id: client, workflow });
  if (!answer || workflow !== app.rootGraph.id) return;
  for (const run of lost(before, answer.runs, workflow)) tell(run, app);
  for (const run of answer.runs) receive(run, app, api);
}

/** Runs of a workflow that had not ended and that the server no longer knows, as they end: it was started anew. */
export function lost(known, answered, workflow) {
  const alive = new Set(answered.map(({ run }) => run));
  const text = "The server was started anew in the middle of this run. Queue again: it goes on from its last state on disk.";
  return known
    .filter((run) => run.workflow === workflow && ["working", "learning"].includes(run.stage) && !alive.has(run.run))
    .map((run) => ({ ...run, text, stage: "failed", learning: false }));
}

/** POST to one of the pack's routes; null where it finds nothing or nobody answers. */
export async function post(api, route, body) {
  try {
    const answer = await api.fetchApi(`/trilora/${route}`, {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify(body),
    });
    return answer.ok ? await answer.json() : null;
  } catch {
    return null; // the server is gone; ComfyUI's page says so itself
  }
}

function receive(message, app, api) {
  if (message.workflow !== app.rootGraph.id) return;
  if (!panels.has(nodeAt(app.rootGraph, message.node))) return;
  const run = joined(runs.get(message.node), message);
  if (run) tell(run, app);
  else askSoon(app, api); // something in between was missed
}

/** Keep a run as it stands, and show it on its node. */
function tell(run, app) {
  runs.set(run.node, run);
  panels.get(nodeAt(app.rootGraph, run.node))?.(run);
}

/** The node at an execution id: "7", or "5:7" for the node 7 inside the subgraph node 5. */
export function nodeAt(graph, id) {
  const path = String(id).split(":");
  const last = path.pop();
  for (const step of path) graph = graph?.getNodeById(Number(step))?.subgraph;
  return graph?.getNodeById(Number(last));
}

/** A run with a message's news in it; null where the message does not follow on what is known. */
export function joined(known, message) {
  const fresh = known?.run !== message.run || message.whole;
  if (fresh && message.after > 0) return null;
  if (!fresh && message.after > known.step) return null;
  const base = fresh ? { curve: [], held: new Map(), films: new Set(), sigmas: new Map() } : known;
  const last = base.curve.at(-1)?.step ?? 0;
  message.steps.forEach((step, i) => {
    if (step > last) base.curve.push({ step, loss: message.loss[i], preservation: message.preservation[i] });
  });
  for (const [step, value] of message.held_out) base.held.set(step, value);
  for (const step of message.pictures) base.films.add(step);
  for (const [step, values] of message.spectra) base.sigmas.set(step, values);
  const curve = base.curve.length > MOST ? halved(base.curve) : base.curve;
  return { ...base, ...message, curve };
}

/** Every second point, with the distance of the one before where it has none: that is not taken at every step. */
function halved(curve) {
  const thinned = (point, i) => ({ ...point, preservation: point.preservation ?? curve[i - 1].preservation });
  return curve.flatMap((point, i) => (i % 2 ? [thinned(point, i)] : []));
}
