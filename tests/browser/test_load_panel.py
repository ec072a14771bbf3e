"""Load TriLoRA in the page: what a file says of itself is there as soon as it is chosen."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from comfy_page import ComfyPage, drawn_in
from playwright.sync_api import BrowserContext, Locator
from safetensors.torch import save_file

from demo.workflow import node
from devkit.server import Server

pytestmark = [pytest.mark.server, pytest.mark.browser]

LOAD = 2
GRAPH = {
    "1": node("TriLoRADemoModel"),
    "2": node("TriLoRALoad", model=["1", 0], file="said/kohya.safetensors", strength=1.0, strength_clip=1.0),
    "3": node("TriLoRASpectrum", trilora=["2", 1]),
}
NAME = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k"
TENSORS = {f"{NAME}.lora_up.weight": torch.zeros(128, 8), f"{NAME}.lora_down.weight": torch.zeros(8, 128)}
SAID = {
    "ours": {
        "ss_base_model_version": "sd_v1", "modelspec.trigger_phrase": "zorvex, stained glass",
        "modelspec.title": "Stained <b>glass</b>", "trilora.steps": "220", "trilora.method": "trilora",
    },
    "kohya": {
        "ss_base_model_version": "sdxl_base_v1-0", "ss_learning_rate": "0.0001", "ss_steps": "1600",
        "ss_tag_frequency": json.dumps({"10_ink": {"ink drawing": 40, "a fox": 12}}),
    },
    "bare": None,
}  # fmt: skip


@pytest.fixture(scope="module")
def loras(comfy_server: Server) -> Path:
    folder = comfy_server.base / "models" / "loras" / "said"
    folder.mkdir(parents=True, exist_ok=True)
    for name, said in SAID.items():
        save_file(TENSORS, folder / f"{name}.safetensors", said)
    (folder / "broken.safetensors").write_bytes(b"\x40" + b"\0" * 7 + b"{cut")
    save_file({"lora_unet_a.hada_w1_a": torch.zeros(4, 2)}, folder / "loha.safetensors")
    return folder


class Panel:
    """The load node's panel in an open page."""

    def __init__(self, page: ComfyPage) -> None:
        self.page = page
        page.load(GRAPH)
        page.look_at(LOAD, 1.2)

    @property
    def region(self) -> Locator:
        return self.page.panel("What the file says")

    def choose(self, name: str) -> None:
        """Choose a file as a click in the list does."""
        script = """([id, name]) => {
            const node = app.graph.getNodeById(id), widget = node.widgets.find((each) => each.name === "file");
            widget.setValue(name, { e: {}, node, canvas: app.canvas });
            app.extensionManager.workflow.activeWorkflow.changeTracker.captureCanvasState();
        }"""
        self.page.run(script, [LOAD, f"said/{name}.safetensors"])

    def says(self, *words: str) -> str:
        """Wait until the panel says all of it, and return what it says."""
        told = self.region.inner_text
        self.page.until(lambda: all(word in told() for word in words), f"{words} in {told()!r}")
        return told()


@pytest.fixture
def panel(loras: Path, page: ComfyPage) -> Panel:
    return Panel(page)


def test_a_chosen_file_shows_its_words_and_a_click_copies_them(panel: Panel, context: BrowserContext) -> None:
    context.grant_permissions(["clipboard-read", "clipboard-write"])
    panel.says("rank 8", "SDXL", "1 layer", "most frequent in its captions")
    assert [chip.inner_text() for chip in panel.region.get_by_role("button").all()] == ["ink drawing40", "a fox12"]
    panel.choose("ours")
    panel.says("Stained <b>glass</b>", "SD 1.x", "Trigger words")
    panel.region.get_by_role("button", name="zorvex").focus()
    panel.page.page.keyboard.press("Enter")
    panel.page.until(lambda: "zorvex copied" in panel.region.get_by_role("status").inner_text(), "that it is copied")
    assert panel.page.run("() => navigator.clipboard.readText()") == "zorvex"
    panel.region.get_by_role("button", name="stained glass").click()
    panel.page.until(lambda: panel.page.run("() => navigator.clipboard.readText()") == "stained glass", "the other")
    panel.region.get_by_text("Training settings").click()
    panel.says("steps", "220")
    assert panel.page.run("() => app.graph.getNodeById(2).size[1]") >= 200
    panel.page.screenshot("load_classic")


def test_what_can_not_be_told_is_told_in_words_and_key_r_looks_again(panel: Panel, loras: Path) -> None:
    panel.choose("bare")
    panel.says("rank 8", "base unknown", "No trigger word is in the file.", "The file says nothing of its training.")
    panel.choose("broken")
    panel.says("broken.safetensors is not a whole safetensors file", "Download or copy it again.")
    panel.choose("loha")
    panel.says("It holds LoHa", "ComfyUI's own Load LoRA")
    panel.choose("gone")
    panel.says("said/gone.safetensors is not in a loras folder")
    save_file(TENSORS, loras / "gone.safetensors", SAID["ours"])
    panel.page.run("() => app.extensionManager.command.execute('Comfy.RefreshNodeDefinitions')")  # key R
    panel.says("zorvex", "rank 8")


def test_a_file_that_a_run_has_written_anew_is_read_anew(panel: Panel, loras: Path) -> None:
    panel.says("ink drawing")
    save_file(TENSORS, loras / "kohya.safetensors", {"modelspec.trigger_phrase": "brandnew"})
    panel.page.server.wait(panel.page.queue(), 120)
    panel.says("brandnew")


def test_a_panel_inside_a_subgraph_ends_with_its_graph(panel: Panel) -> None:
    """Each step back and forth makes a new graph; after a run, the panels of the old ones ask for nothing."""
    page, asked = panel.page, []
    page.run("(id) => app.graph.convertToSubgraph(new Set([app.graph.getNodeById(id)]))", LOAD)
    page.run("() => app.extensionManager.workflow.activeWorkflow.changeTracker.captureCanvasState()")
    for step in ("undo", "redo", "undo", "redo"):
        page.run("(step) => app.extensionManager.workflow.activeWorkflow.changeTracker[step]()", step)
    page.page.wait_for_timeout(500)
    page.page.on("request", lambda request: asked.append(request.url) if "/trilora/lora?" in request.url else None)
    page.server.wait(page.queue(), 120)
    page.until(lambda: asked, "that the file is read anew")
    page.page.wait_for_timeout(300)
    assert len(asked) == 1


def test_the_new_renderer_shows_it_too_and_after_a_reload_again(
    comfy_server: Server, loras: Path, open_page: Callable[[], ComfyPage]
) -> None:
    with drawn_in(comfy_server, "new", "light"):
        panel = Panel(open_page())
        panel.choose("ours")
        panel.says("zorvex", "SD 1.x")
        panel.page.wait_for_draft()
        panel.page.reload()
        panel.page.look_at(LOAD, 1.2)
        panel.says("zorvex", "SD 1.x")
        panel.page.screenshot("load_new_light")
        prompt: dict[str, Any] = panel.page.run("async () => (await app.graphToPrompt()).output")
        assert set(prompt["2"]["inputs"]) == {"model", "file", "strength", "strength_clip"}
