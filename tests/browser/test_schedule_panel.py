"""TriLoRA Schedule in the page: its curves are drawn by hand in either renderer."""

from collections.abc import Callable
from typing import Any

import pytest
from comfy_page import ComfyPage, drawn_in
from playwright.sync_api import expect

from demo.workflow import node
from devkit.server import Server

pytestmark = [pytest.mark.server, pytest.mark.browser]

SCHEDULE = 3
GRAPH = {
    "1": node("TriLoRADemoModel"),
    "2": node("TriLoRALoad", model=["1", 0], file="demo: stained_glass", strength=1.0),
    "3": node(
        "TriLoRASchedule", trilora=["2", 1], strength=1.0, bands="one curve",
        **{"bands.curve": {"points": [[0, 1], [1, 1]], "interpolation": "linear"}},
    ),
    "4": node("TriLoRALoad", model=["1", 0], file="demo: stained_glass", strength=1.0),
}  # fmt: skip
BANDS = """([id, bands]) => {
    const node = app.graph.getNodeById(id), widget = node.widgets.find((each) => each.name === "bands");
    widget.setValue(bands, { e: {}, node, canvas: app.canvas });
}"""

CUT = """(id) => {
    const node = app.graph.getNodeById(id);
    node.disconnectInput(node.inputs.findIndex(({ name }) => name === "bands.curve"));
}"""


def queued(page: ComfyPage) -> dict[str, Any]:
    """What the node would be queued with."""
    inputs = page.run("async () => (await app.graphToPrompt()).output")[str(SCHEDULE)]["inputs"]
    return {name: value for name, value in inputs.items() if name.startswith("bands")}


@pytest.mark.parametrize("renderer", ["classic", "new"])
def test_a_point_is_dragged_and_each_band_has_a_curve(
    comfy_server: Server, open_page: Callable[[], ComfyPage], renderer: str
) -> None:
    with drawn_in(comfy_server, renderer):
        page = open_page()
        page.load(GRAPH)
        page.look_at(SCHEDULE, 1.2)
        panel = page.panel("Strength over the sampling steps")
        mouse, box = page.page.mouse, panel.get_by_role("slider").nth(1).bounding_box()
        assert box
        mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
        mouse.down()
        mouse.move(box["x"] - 60, box["y"] + 50, steps=5)
        mouse.up()
        curve = queued(page)["bands.curve"]
        assert curve["points"][0] == [0, 1]
        assert 0.4 < curve["points"][1][0] < 0.95
        assert 0.2 < curve["points"][1][1] < 0.8
        panel.get_by_role("button", name="straight").click()
        assert queued(page)["bands.curve"] == curve | {"interpolation": "monotone_cubic"}

        page.run(BANDS, [SCHEDULE, "2 bands"])
        expect(panel.get_by_role("group")).to_have_count(2)
        panel.get_by_role("group").nth(1).get_by_role("slider").first.press("ArrowDown")
        bands = queued(page)
        assert [bands[f"bands.{name}"]["points"][0] for name in ("coarse", "fine")] == [[0, 1], [0, 0.975]]
        page.screenshot(f"schedule_{renderer}")


@pytest.mark.parametrize("renderer", ["classic", "new"])
def test_a_curve_that_comes_from_another_node_is_not_drawn_here(
    comfy_server: Server, open_page: Callable[[], ComfyPage], renderer: str
) -> None:
    linked = {**GRAPH, "5": node("CurveEditor", curve={"points": [[0, 0], [1, 1]], "interpolation": "linear"})}
    linked["3"] = {**GRAPH["3"], "inputs": {**GRAPH["3"]["inputs"], "bands.curve": ["5", 0]}}
    with drawn_in(comfy_server, renderer):
        page = open_page()
        page.load(linked)
        page.look_at(SCHEDULE, 1.2)
        panel = page.panel("Strength over the sampling steps")
        expect(panel).to_contain_text("curve of another node")
        expect(panel.get_by_role("slider").first).to_be_hidden()
        expect(panel.get_by_text("double-click adds")).to_be_hidden()
        assert queued(page)["bands.curve"] == ["5", 0]
        page.screenshot(f"schedule_linked_{renderer}")
        page.run(CUT, SCHEDULE)
        expect(panel.get_by_role("slider").first).to_be_visible()
        expect(panel.get_by_text("double-click adds")).to_be_visible()
        expect(panel).not_to_contain_text("curve of another node")
        assert set(queued(page)["bands.curve"]) == {"points", "interpolation"}
