"""TriLoRA Strength in the page: the curve is drawn with mouse and keys, and what the panel says is the truth."""

import importlib.util
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from comfy_page import ComfyPage, drawn_in
from PIL import Image
from playwright.sync_api import Locator
from safetensors.torch import save_file
from strategies import randn

from demo.workflow import node
from devkit.server import Server
from trilora import cutting, files, gains

pytestmark = [pytest.mark.server, pytest.mark.browser]

LAYERS = [
    f"lora_unet_mid_block_attentions_0_transformer_blocks_0_{end}" for end in ("attn1_to_q", "attn1_to_v", "attn2_to_v")
]
LOAD, STRENGTH, SAMPLE, VIEW = 2, 3, 6, 8
GRAPH = {
    "1": node("TriLoRADemoModel"),
    "2": node("TriLoRALoad", model=["1", 0], file="sixteen.safetensors", strength=1.0, strength_clip=1.0),
    "3": node("TriLoRAStrength", model=["2", 0], strength=1.0, keep="all", layers="all", adapter=0, blocks=""),
    "4": node("CLIPTextEncode", text="a red house", clip=["1", 1]),
    "5": node("EmptyLatentImage", width=64, height=64, batch_size=1),
    "6": node(
        "KSampler", model=["3", 0], positive=["4", 0], negative=["4", 0], latent_image=["5", 0],
        seed=5, steps=1, cfg=1.0, sampler_name="euler", scheduler="normal", denoise=1.0,
    ),
    "7": node("VAEDecode", samples=["6", 0], vae=["1", 2]),
    "8": node("PreviewImage", images=["7", 0]),
}  # fmt: skip
LOOKS = [("classic", "dark"), ("new", "light")]


@pytest.fixture(scope="module")
def lora(comfy_server: Server) -> Path:
    """A LoRA of rank 16 whose singular values fall from 4 to 0.1."""
    path = comfy_server.base / "models" / "loras" / "sixteen.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    sigma, tensors = torch.logspace(0.6, -1, 16), {}
    for seed, layer in enumerate(LAYERS):
        u, vh = (torch.linalg.qr(randn(2 * seed + i, 128, 16)).Q for i in (0, 1))
        tensors |= {
            f"{layer}.lora_up.weight": (u * sigma * (1 + seed)).contiguous(),
            f"{layer}.lora_down.weight": vh.T.contiguous(),
        }
    save_file(tensors, path)
    return path


class Panel:
    """The strength node's panel in an open page."""

    def __init__(self, page: ComfyPage) -> None:
        page.load(GRAPH)
        page.set(SAMPLE, control_after_generate="fixed")
        page.look_at(STRENGTH, 1.2)
        self.page, self.mouse = page, page.page.mouse

    @property
    def region(self) -> Locator:
        return self.page.panel("Gain curve over the spectrum")

    @property
    def points(self) -> Locator:
        return self.region.get_by_role("slider")

    @property
    def curve(self) -> dict[str, Any]:
        """The value of ComfyUI's own widget."""
        script = "(id) => app.graph.getNodeById(id).widgets.find((each) => each.name === 'curve').value"
        return self.page.run(script, STRENGTH)

    @property
    def line(self) -> str:
        """What the panel says is kept."""
        return self.region.get_by_role("status").inner_text()

    @property
    def share(self) -> float:
        return float(re.search(r"([\d.]+) % of energy", self.line).group(1)) / 100

    def press(self, preset: str) -> None:
        self.region.get_by_role("button", name=preset, exact=True).click()

    def run(self) -> dict[str, Any]:
        """Queue as the Run button does, and wait until the panel has been told."""
        entry = self.page.server.wait(self.page.queue(), 120)
        self.page.until(lambda: "Queue once" not in self.line, "the spectrum")
        return entry

    def choose(self, widget: str, value: Any) -> None:
        """Set a widget as a click on it does."""
        script = """([id, name, value]) => {
            const node = app.graph.getNodeById(id), widget = node.widgets.find((each) => each.name === name);
            widget.setValue(value, { e: {}, node, canvas: app.canvas });
        }"""
        self.page.run(script, [STRENGTH, widget, value])

    @contextmanager
    def dragged(self, point: int, x: float, y: float) -> Iterator[None]:
        """A point dragged by pixels; the button is down until the end."""
        box = self.points.nth(point).bounding_box()
        middle = (box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
        self.mouse.move(*middle)
        self.mouse.down()
        self.mouse.move(middle[0] + x, middle[1] + y, steps=5)
        yield
        self.mouse.up()


@pytest.fixture
def panel(lora: Path, page: ComfyPage) -> Panel:
    return Panel(page)


@pytest.fixture
def heights(comfy_path: Path) -> Callable[[dict[str, Any], numpy.ndarray], numpy.ndarray]:
    """Core's own heights of a curve; its file needs nothing else of ComfyUI."""
    file = comfy_path / "comfy_api" / "latest" / "_input" / "curve_types.py"
    spec = importlib.util.spec_from_file_location("curve_types", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return lambda curve, places: module.CurveInput.from_raw(curve).interp_array(places)


def test_a_dragged_point_changes_the_picture_and_loads_nothing_again(panel: Panel) -> None:
    assert panel.line.startswith("Queue once")
    first = panel.run()
    assert panel.line == "all 16: 100 % of energy"
    with panel.dragged(0, 0, 60):
        assert panel.share < 0.6
    assert panel.curve["points"][0][1] < 0.2
    second = panel.run()
    cached = set(dict(second["status"]["messages"])["execution_cached"]["nodes"])
    assert cached == {"1", "2", "4", "5"}
    panel.press("flat")
    third = panel.run()
    files_made = [panel.page.server.images(entry, str(VIEW))[0] for entry in (first, second, third)]
    pictures = [numpy.asarray(Image.open(file)) for file in files_made]
    assert (pictures[0] != pictures[1]).any()
    assert (pictures[0] == pictures[2]).all()


def test_the_line_says_what_is_kept(panel: Panel, lora: Path, heights: Callable[..., Any]) -> None:
    panel.run()
    adapter = files.load(lora)
    sigmas = {name: factors.sigma for name, factors in adapter.layers.items()}

    def kept(gain: gains.Gains) -> float:
        left, whole = (sum(float(s.square().sum()) for s in each) for each in (
            [sigmas[name] * gain[name] for name in sigmas], sigmas.values()
        ))  # fmt: skip
        return left / whole

    for preset, words in {
        "flat": "all 16:", "soften": "all 16:", "style only": "top 8 of 16:", "detail only": "values 3–16 of 16:",
        "top half": "top 8 of 16:",
    }.items():  # fmt: skip
        panel.press(preset)
        curve = panel.curve
        along = gains.along(sigmas, lambda at, c=curve: torch.from_numpy(2 * heights(c, at.double().numpy())))
        assert panel.line.startswith(words), preset
        assert panel.share == pytest.approx(kept(along), abs=0.0051), preset
    assert panel.share == pytest.approx(cutting.cut(adapter, lambda a: cutting.at_rank(a, 8))[1].share, abs=0.0051)
    panel.press("flat")
    panel.choose("keep", "top k")
    panel.choose("keep.k", 3)
    assert panel.line.startswith("top 3 of 16:")
    assert panel.share == pytest.approx(kept(gains.first(sigmas, 3)), abs=0.0051)
    panel.choose("keep", "energy")
    panel.choose("keep.share", 0.8)
    assert panel.line == "energy 0.8: queue once to see what is kept."
    panel.run()
    panel.page.until(lambda: "up to" in panel.line, "what was kept")
    assert panel.share == pytest.approx(kept(gains.holding(sigmas, 0.8)), abs=0.0051)
    panel.choose("strength", 0.5)
    assert panel.line.endswith("of energy, then × 0.5")


def test_the_page_finds_the_heights_that_the_server_finds(page: ComfyPage, heights: Callable[..., Any]) -> None:
    places = numpy.linspace(0, 1, 41)
    generator = numpy.random.default_rng(1)
    curves = [
        {"points": generator.random((count, 2)).round(digits).tolist(), "interpolation": form}
        for form in ("linear", "monotone_cubic")
        for count in range(1, 8)
        for digits in (1, 4)
    ]
    script = """async ([curves, places]) => {
        const { heights } = await import("/extensions/TriLoRA/spectrum.mjs");
        return curves.map((curve) => places.map(heights(curve)));
    }"""
    found = page.run(script, [curves, places.tolist()])
    for curve, seen in zip(curves, found, strict=True):
        assert seen == pytest.approx(heights(curve, places).tolist(), abs=1e-9), curve


def test_points_are_moved_added_and_removed_by_mouse_and_keys(panel: Panel) -> None:
    box, keys = panel.region.get_by_role("group").bounding_box(), panel.page.page.keyboard
    middle = (box["x"] + box["width"] / 2, box["y"] + box["height"] / 4)
    panel.mouse.dblclick(*middle)
    assert len(panel.curve["points"]) == 3
    x, y = panel.curve["points"][1]
    keys.press("ArrowDown")  # the new point has the focus
    keys.press("ArrowRight")
    assert panel.curve["points"][1] == pytest.approx([x + 0.01, y - 0.025], abs=1e-4)
    spoken = panel.points.nth(1).get_attribute("aria-valuetext")
    assert spoken.startswith(f"gain {2 * (y - 0.025):.2f} at")
    keys.press("Enter")
    assert len(panel.curve["points"]) == 4
    keys.press("Delete")
    panel.points.nth(1).click(button="right")
    assert len(panel.curve["points"]) == 2
    panel.points.nth(1).click(button="right")
    assert len(panel.curve["points"]) == 2  # two stay, and the node with them
    keys.press("Control+z")
    panel.page.until(lambda: panel.points.count() == len(panel.curve["points"]) == 3, "one step back")
    panel.press("soften")
    with panel.dragged(0, 0, -0.16 * box["height"]):
        pass
    assert panel.curve["points"][0] == [0, 0.5]  # near gain 1 it is exactly that
    with panel.page.page.expect_request("**/prompt"):
        keys.press("Control+Enter")  # the page's own keys still work


@pytest.mark.parametrize(("renderer", "theme"), LOOKS)
def test_curve_and_spectrum_are_there_again_after_a_reload(
    comfy_server: Server, lora: Path, open_page: Callable[[], ComfyPage], renderer: str, theme: str
) -> None:
    with drawn_in(comfy_server, renderer, theme):
        panel = Panel(open_page())
        panel.run()
        panel.press("soften")
        with panel.dragged(1, 15, 25):
            pass
        seen = (panel.curve, panel.line)
        assert seen[1].startswith("all 16:")
        panel.page.wait_for_draft()
        panel.page.reload()
        panel.page.look_at(STRENGTH, 1.2)
        assert (panel.curve, panel.line) == seen
        bar = panel.region.locator("rect").nth(4).bounding_box()
        panel.mouse.move(bar["x"] + bar["width"] / 2, bar["y"])
        assert re.search(r"σ\d+ = [\d.]+ · gain 0\.\d\d · [\d.]+ % of energy", panel.region.inner_text())
        panel.page.screenshot(f"strength_{renderer}_{theme}")
        prompt = panel.page.run("async () => (await app.graphToPrompt()).output")
        assert prompt[str(STRENGTH)]["inputs"]["curve"] == panel.curve
        assert set(panel.curve) == {"points", "interpolation"}
