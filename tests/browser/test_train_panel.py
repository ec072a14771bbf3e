"""The live panel of Train TriLoRA, in ComfyUI's page."""

import re
from collections.abc import Callable
from typing import Any

import pytest
from comfy_page import ComfyPage
from playwright.sync_api import Locator, expect

pytestmark = [pytest.mark.server, pytest.mark.browser]

DATASET, TRAIN, SAMPLED = 2, 3, 12
WATCHED = """([id, every, steps]) => {
    const watch = LiteGraph.createNode("TriLoRATrainWatch"), train = app.graph.getNodeById(id);
    watch.pos = [train.pos[0] - 340, train.pos[1] + 1100];
    app.graph.add(watch);
    watch.connect(0, train, train.findInputSlot("watch"));
    const values = { score_every: every, "previews.every": every, "previews.steps": steps };
    for (const widget of watch.widgets) if (widget.name in values) widget.value = values[widget.name];
}"""


def small(page: ComfyPage, steps: int, seed: int, train: int = TRAIN) -> None:
    """Make the first workflow's training small, with pictures, scores and spectra every 10 steps."""
    page.set(DATASET, resolution=64)
    page.set(train, steps=steps, batch=1, rank=4, seed=seed)
    page.run(WATCHED, [train, 10, 2])


def step_of(panel: Locator) -> int:
    """The step that a panel shows."""
    found = re.search(r"step (\d+) of", panel.text_content() or "")
    return int(found[1]) if found else -1


def curve_of(panel: Locator) -> str:
    """The strong line of the loss chart."""
    return panel.locator(".trilora-loss path").nth(1).get_attribute("d") or ""


def test_the_panel_follows_a_run_through_a_reload_and_into_a_second_tab_and_stop_and_keep_ends_it(
    page: ComfyPage, open_page: Callable[[], ComfyPage]
) -> None:
    small(page, steps=5000, seed=1)
    page.look_at(TRAIN)
    panel = page.panel("Training")
    expect(panel).to_contain_text("Run the workflow")
    expect(panel.get_by_role("button", name="Stop and keep")).to_be_disabled()
    page.screenshot("train-0-before")
    prompt = page.queue()

    page.until(lambda: step_of(panel) >= 12, "the twelfth step", 240)
    first = curve_of(panel)
    expect(panel.locator(".trilora-film img")).to_have_count(2)
    page.until(lambda: curve_of(panel) != first, "a longer curve")
    page.screenshot("train-1-running")
