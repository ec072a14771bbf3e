"""The live panel of Train TriLoRA, in ComfyUI's page."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from comfy_page import ComfyPage, drawn_in
from playwright.sync_api import BrowserContext, Locator, Page, expect

from demo.workflow import TRIGGER, node
from devkit.server import Server

pytestmark = [pytest.mark.server, pytest.mark.browser]

DATASET, TRAIN, CANVAS, SAMPLERS, STYLED = 2, 3, 4, (11, 14), 16
LONG = 240  # seconds that a busy machine may take
RARELY_BUSY = 1000 * LONG
WATCHED = """([id, every]) => {
    const watch = LiteGraph.createNode("TriLoRATrainWatch"), train = app.graph.getNodeById(id);
    watch.pos = [train.pos[0] + 1800, train.pos[1] + 700];
    app.graph.add(watch);
    watch.connect(0, train, train.findInputSlot("watch"));
    const values = { score_every: every, "previews.every": every, "previews.steps": 1 };
    for (const widget of watch.widgets) if (widget.name in values) widget.value = values[widget.name];
}"""
SECOND = """() => {
    const first = app.graph.getNodeById(3), second = LiteGraph.createNode("TriLoRATrain");
    second.pos = [first.pos[0] + 360, first.pos[1]];
    app.graph.add(second);
    for (const input of first.inputs) {
        if (input.link == null) continue;
        const link = app.graph.links[input.link], source = app.graph.getNodeById(link.origin_id);
        source.connect(link.origin_slot, second, second.findInputSlot(input.name));
    }
    const save = LiteGraph.createNode("TriLoRASave");
    app.graph.add(save);
    save.widgets.find((w) => w.name === "filename").value = "second";
    second.connect(0, save, 0);
    const needed = ["DemoModel", "Dataset", "Train", "TrainWatch", "Save"].map((name) => `TriLoRA${name}`);
    for (const node of [...app.graph.nodes]) if (!needed.includes(node.type)) app.graph.remove(node);
    return second.id;
}"""

REPAIR = 3
MENDING = {
    "1": node("TriLoRADemoModel"),
    "2": node("TriLoRALoad", model=["1", 0], file="demo: stained_glass_overcooked", strength=1.0),
    "3": node(
        "TriLoRARepair", model=["1", 0], clip=["1", 1], vae=["1", 2], trilora=["2", 1], trigger=TRIGGER,
        captions="a red house\na blue tree", resolution=64, steps=5000, learning_rate=3e-3, preserve=0.3, batch=1,
        seed=6,
    ),
    "4": node("PreviewAny", source=["3", 3]),
}  # fmt: skip


def small(page: ComfyPage, steps: int, seed: int, every: int) -> None:
    """Make the first workflow's training a matter of seconds, with scores, pictures and spectra every few steps."""
    page.set(DATASET, resolution=64)
    page.set(CANVAS, width=64, height=64, batch_size=1)
    for sampler in SAMPLERS:
        page.set(sampler, steps=2)
    page.set(TRAIN, steps=steps, batch=1, rank=4, seed=seed, preserve=0.3)
    page.run(WATCHED, [TRAIN, every])


def step_of(panel: Locator) -> int:
    """The step that a panel shows."""
    found = re.search(r"step (\d+) of", panel.text_content() or "")
    return int(found[1]) if found else -1


def curve_of(panel: Locator) -> str:
    """The strong line of the loss chart."""
    return panel.locator(".trilora-loss path").nth(1).get_attribute("d") or ""


def stop(panel: Locator) -> Any:
    return panel.get_by_role("button", name="Stop and keep")


TOLD = """async ([steps, every]) => {
    const { joined } = await import("/extensions/TriLoRA/runs.mjs");
    let run;
    for (let after = 0; after < steps; after = run.step) {
        const some = [1, 2, 3].map((i) => after + i).filter((step) => step <= steps);
        run = joined(run, {
            run: "a", after, step: some.at(-1), steps: some, loss: some.map(() => 1),
            preservation: some.map((step) => ((step - 1) % every ? null : 0.5)),
            held_out: [], pictures: [], spectra: [],
        });
    }
    return run.curve;
}"""
SPECTRA = """async ([scores, rank]) => {
    const { spectrumChart } = await import("/extensions/TriLoRA/charts.mjs");
    const values = (step) => Array.from({ length: rank }, (_, i) => step / (i + 1));
    const sigmas = new Map(Array.from({ length: scores }, (_, i) => [50 * (i + 1), values(50 * (i + 1))]));
    const chart = spectrumChart({ sigmas }, 300);
    return [chart.querySelectorAll("rect").length, chart.querySelectorAll("path").length, chart.ariaLabel];
}"""
LOST = """async ([known, answered, workflow]) => {
    const { lost } = await import("/extensions/TriLoRA/runs.mjs");
    return lost(known, answered, workflow);
}"""


@pytest.fixture
def script(context: BrowserContext, comfy_server: Server) -> Iterator[Page]:
    """A tab without the front end, for what the panel's modules work out by themselves."""
    with context.new_page() as page:
        page.goto(f"{comfy_server.url}/system_stats")
        yield page


@pytest.fixture(autouse=True)
def _nothing_runs_on(comfy_server: Server) -> Any:
    yield
    comfy_server.post("/interrupt", {})
    comfy_server.post("/queue", {"clear": True})


def test_the_panel_follows_a_run_over_a_reload_and_in_a_second_tab_until_stop_and_keep(
    page: ComfyPage, open_page: Callable[[], ComfyPage]
) -> None:
    small(page, steps=5000, seed=1, every=5)
    page.look_at(TRAIN, 0.9)
    panel = page.panel("Training")
    expect(panel).to_contain_text("Run the workflow")
    expect(stop(panel)).to_be_disabled()
    prompt = page.queue()

    page.until(lambda: step_of(panel) >= 6, "the sixth step", LONG)
    seen = curve_of(panel)
    page.until(lambda: len(curve_of(panel)) > len(seen), "a longer curve", LONG)
    page.until(lambda: panel.locator(".trilora-film img").count() >= 2, "the second picture", LONG)
    expect(panel.locator(".best")).to_have_count(1)
    assert panel.locator(".trilora-sigma rect").count() == 4, "a bar for each singular value"
    page.screenshot("train-running")

    before = step_of(panel)
    page.reload()
    page.look_at(TRAIN, 0.9)
    page.until(lambda: step_of(panel) >= before, "the run after a reload", LONG)
    page.until(lambda: panel.locator(".trilora-film img").count() >= 2, "the pictures after a reload", LONG)
    assert len(curve_of(panel)) >= len(seen), "all of the curve is there, not what came after the reload"

    other = open_page()
    page.until(lambda: step_of(other.panel("Training")) >= before, "the run in a second tab", LONG)
    other.until(lambda: other.panel("Training").locator(".trilora-film img").count() >= 2, "its pictures", LONG)

    panel.get_by_role("button", name="Preview at step 5, enlarge").press("Enter")
    large = page.page.get_by_role("dialog", name="Preview, enlarged")
    expect(large).to_contain_text("step 5 of 5000")
    large.press("ArrowLeft")
    expect(large).to_contain_text("step 0 of 5000")
    page.screenshot("train-enlarged")
    large.press("Escape")
    expect(large).to_have_count(0)

    stop(panel).press("Enter")
    expect(panel).to_contain_text("done", timeout=RARELY_BUSY)
    expect(stop(panel)).to_be_disabled()
    ended = step_of(panel)
    assert before <= ended < 5000
    expect(other.panel("Training")).to_contain_text(f"step {ended} of 5000")
    entry = page.server.wait(prompt, LONG)
    assert page.server.images(entry, str(STYLED)), "the adapter was handed on, and a picture came of it"
    assert (page.server.base / "models" / "loras" / "my_first_style.safetensors").exists()
    page.screenshot("train-stopped")


def test_save_now_writes_a_file_and_deleting_the_node_hurts_nothing(page: ComfyPage) -> None:
    small(page, steps=5000, seed=2, every=1000)
    page.look_at(TRAIN, 0.9)
    panel = page.panel("Training")
    page.queue()
    page.until(lambda: step_of(panel) >= 1, "the first step", LONG)
    panel.get_by_role("button", name="Save now").click()
    expect(panel).to_contain_text("Saved, step", timeout=RARELY_BUSY)
    name = re.search(r"models/loras/(\S+?\.safetensors)", panel.text_content() or "")
    assert name, panel.text_content()
    assert (page.server.base / "models" / "loras" / Path(name[1])).exists()
    at = step_of(panel)
    page.until(lambda: step_of(panel) > at, "the run to go on", LONG)
    page.run("(id) => app.graph.remove(app.graph.getNodeById(id))", TRAIN)
    expect(panel).to_have_count(0)
    page.page.wait_for_timeout(1500)  # news of the run still comes


def test_a_repair_is_followed_and_stopped_in_the_same_panel(page: ComfyPage) -> None:
    page.load(MENDING)
    page.look_at(REPAIR, 0.9)
    panel = page.panel("Training")
    expect(panel).to_contain_text("Run the workflow")
    prompt = page.queue()
    page.until(lambda: step_of(panel) >= 2, "the second step", LONG)
    expect(panel).to_contain_text("to the base")  # learned on in every step of a repair
    page.screenshot("repair-running")
    stop(panel).click()
    expect(panel).to_contain_text("done", timeout=RARELY_BUSY)
    assert 2 <= step_of(panel) < 5000
    page.server.wait(prompt, LONG)
    expect(panel).to_contain_text("About this run")
    page.screenshot("repair-stopped")


def test_two_train_nodes_of_a_graph_do_not_mix(page: ComfyPage) -> None:
    small(page, steps=3, seed=3, every=1000)
    second = page.run(SECOND)
    page.set(second, steps=4, learning_rate=0.002, batch=1, rank=2, seed=4)
    page.look_at(TRAIN, 0.9)
    page.server.wait(page.queue(), LONG)
    for steps in (3, 4):
        panel = page.page.get_by_role("region", name="Training").filter(has_text=f"step {steps} of {steps}")
        expect(panel).to_have_count(1)
        expect(panel).to_contain_text("done")
        assert len(re.findall("[ML]", curve_of(panel))) == steps
    page.screenshot("train-two")


def test_the_panel_is_there_in_the_new_renderer_and_on_the_light_theme(
    comfy_server: Server, open_page: Callable[[], ComfyPage]
) -> None:
    with drawn_in(comfy_server, "new", "light"):
        page = open_page()
        small(page, steps=6, seed=5, every=3)
        page.look_at(TRAIN)
        panel = page.panel("Training")
        expect(panel).to_be_visible()
        page.queue()
        expect(panel).to_contain_text("done", timeout=RARELY_BUSY)
        expect(panel).to_contain_text("step 6 of 6")
        assert panel.locator(".trilora-film img").count() == 3
        inside = panel.evaluate("(panel) => panel.scrollWidth <= panel.clientWidth + 1 && panel.clientHeight > 200")
        assert inside, "the panel is as wide as the node, and as high as what it shows"
        page.screenshot("train-new-renderer-light")


def test_a_run_that_the_server_no_longer_knows_is_over(script: Page) -> None:
    def run(name: str, stage: str, workflow: str = "shown") -> dict[str, Any]:
        return {"run": name, "stage": stage, "workflow": workflow, "learning": stage == "learning", "step": 7}

    going, encoding, done = run("a", "learning"), run("b", "working"), run("c", "ended")
    known = [going, encoding, done, run("d", "learning", "another")]
    assert script.evaluate(LOST, [known, [going, encoding, done], "shown"]) == []
    over = script.evaluate(LOST, [known, [done], "shown"])
    assert [each["run"] for each in over] == ["a", "b"]
    assert all(each["stage"] == "failed" and not each["learning"] and each["step"] == 7 for each in over)
    assert "started anew" in over[0]["text"]


def test_a_long_curve_keeps_the_distance_that_is_taken_at_every_other_step(script: Page) -> None:
    for steps in (8001, 8002, 17000):
        curve = script.evaluate(TOLD, [steps, 2])
        assert len(curve) < 8001
        assert sum(point["preservation"] is not None for point in curve) >= len(curve) / 2


def test_a_run_of_many_scores_and_ranks_still_draws_its_spectrum(script: Page) -> None:
    bars, lines, label = script.evaluate(SPECTRA, [1000, 256])
    assert (bars, lines <= 40) == (256, True)
    assert "at step 50000" in label
    assert script.evaluate(SPECTRA, [1, 4])[:2] == [4, 0]
    assert script.evaluate(SPECTRA, [3, 1])[:2] == [1, 2]
