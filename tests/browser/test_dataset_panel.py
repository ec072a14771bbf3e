"""The panel of TriLoRA Dataset, in ComfyUI's page."""

import shutil

import pytest
from comfy_page import ComfyPage
from PIL import Image
from playwright.sync_api import expect

from demo.workflow import node
from devkit import ROOT

pytestmark = [pytest.mark.server, pytest.mark.browser]

DATASET, TRAIN = 2, 3


def test_the_panel_shows_every_picture_with_its_caption_the_buckets_and_what_is_amiss(page: ComfyPage) -> None:
    folder = page.server.base / "input" / "amiss"
    shutil.copytree(ROOT / "demo" / "styles" / "stained_glass", folder, dirs_exist_ok=True)
    Image.new("RGB", (256, 128), "teal").save(folder / "wide.png")  # has no caption, and a bucket of its own
    page.set(DATASET, folder="amiss", resolution=64, bucket_step=32)
    page.set(TRAIN, steps=1, batch=1, rank=1, preserve=0.0, seed=9)
    page.look_at(DATASET)
    panel = page.panel("Pictures")
    expect(panel).to_contain_text("Run the workflow")
    page.queue()
    expect(panel).to_contain_text("1 no caption: wide.png", timeout=240_000)
    expect(panel.locator(".trilora-sheet li")).to_have_count(33)
    expect(panel.locator(".trilora-sheet li p.problem")).to_have_text(["no caption"])
    first = panel.locator(".trilora-sheet li").first
    expect(first).to_contain_text("zorvex, ")
    expect(panel.locator(".trilora-buckets i")).to_have_count(2)
    wide, square = (panel.locator(".trilora-buckets i").nth(i).bounding_box() for i in (1, 0))
    assert wide
    assert square
    assert wide["width"] < square["width"] / 8
    page.screenshot("dataset")
    page.server.post("/interrupt", {})


def test_inside_a_subgraph_it_is_there_again_after_a_step_back_and_forth(page: ComfyPage) -> None:
    data = node("TriLoRADataset", folder="demo: stained_glass", trigger="zorvex", resolution=64, bucket_step=0)
    page.load({"1": data, "2": node("PreviewAny", source=["1", 0])})
    group = page.run("() => app.graph.convertToSubgraph(new Set([app.graph.getNodeById(1)])).node.id")
    page.run("() => app.extensionManager.workflow.activeWorkflow.changeTracker.captureCanvasState()")
    page.server.wait(page.queue(), 120)
    inside = "(id) => app.canvas.setGraph(app.rootGraph.getNodeById(id).subgraph)"
    page.run(inside, group)
    expect(page.panel("Pictures")).to_contain_text("32 pictures")
    for step in ("undo", "redo"):
        page.run("(step) => app.extensionManager.workflow.activeWorkflow.changeTracker[step]()", step)
    page.run(inside, group)
    expect(page.panel("Pictures")).to_contain_text("32 pictures")
