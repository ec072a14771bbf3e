"""Every template in ComfyUI's real page: whole, laid out, and the very graph that tests/workflows runs."""

import json
from collections.abc import Callable
from itertools import combinations
from typing import Any

import pytest
from comfy_page import ComfyPage, drawn_in

from devkit import ROOT
from devkit.examples import Example, examples
from devkit.server import Server

pytestmark = [pytest.mark.server, pytest.mark.browser]

LOOK = """async () => {
    await new Promise((done) => setTimeout(done, 1200))  // panels fit themselves to their content
    const ds = app.canvas.ds, origin = app.canvas.canvas.getBoundingClientRect()
    const box = (node) => {
        const seen = document.querySelector(`[data-node-id="${node.id}"]`)?.getBoundingClientRect()  // new renderer
        if (!seen) return Array.from(node.getBounding())
        const place = [seen.x - origin.x, seen.y - origin.y].map((at, i) => at / ds.scale - ds.offset[i])
        return [...place, seen.width / ds.scale, seen.height / ds.scale]
    }
    return {
        prompt: (await app.graphToPrompt()).output,
        missing: app.graph.nodes.filter((node) => !(node.type in LiteGraph.registered_node_types)).map((n) => n.type),
        drawn: document.querySelectorAll("[data-node-id]").length,
        nodes: app.graph.nodes.map((node) => [`${node.id} ${node.title}`, box(node)]),
        groups: app.graph.groups.map((group) => [group.title, Array.from(group.boundingRect ?? group._bounding)]),
    }
}"""

Box = tuple[float, float, float, float]


@pytest.mark.parametrize("renderer", ["classic", "new"])
def test_every_template_is_whole_and_laid_out_and_means_its_graph(
    comfy_server: Server, open_page: Callable[[], ComfyPage], renderer: str
) -> None:
    with drawn_in(comfy_server, renderer):
        page, faults = open_page(), {}
        for name, example in examples().items():
            workflow = json.loads((ROOT / "example_workflows" / f"{name}.json").read_text(encoding="utf-8"))
            page.load(workflow, name)
            found = page.run(LOOK)
            assert found["drawn"] == (len(found["nodes"]) if renderer == "new" else 0), "the renderer asked for"
            faults[name] = seen(found, example)
            page.screenshot(f"template {name} {renderer}")
        assert not {name: fault for name, fault in faults.items() if fault}


def seen(found: dict[str, Any], example: Example) -> list[str]:
    """What is wrong with a template as the page shows it."""
    wanted, nodes, groups = example.prompt(), found["nodes"], found["groups"]
    faults = [f"the page does not know {kind}" for kind in found["missing"]]
    faults += [f"{a} lies on {b}" for (a, one), (b, two) in combinations(nodes, 2) if meet(one, two)]
    faults += [f"{a} lies on {b}" for (a, one), (b, two) in combinations(groups, 2) if meet(one, two)]
    faults += [f"{a} is in no group" for a, one in nodes if not any(inside(one, field) for _, field in groups)]
    if found["prompt"].keys() != wanted.keys():
        faults.append(f"queued are {sorted(found['prompt'])}, not {sorted(wanted)}")
    for id in found["prompt"].keys() & wanted.keys():
        faults += differences(id, found["prompt"][id], wanted[id])
    return faults


def differences(id: str, queued: dict[str, Any], node: dict[str, Any]) -> list[str]:
    """Inputs that the page would queue with other values than the graph's; what the graph leaves out is the default."""
    title = f"{id} {node['class_type']}"
    if queued["class_type"] != node["class_type"]:
        return [f"{title} is queued as {queued['class_type']}"]
    pairs = {key: (queued["inputs"].get(key), value) for key, value in node["inputs"].items()}
    return [f"{title}: {key} is queued as {got!r}, not {want!r}" for key, (got, want) in pairs.items() if got != want]


def meet(one: Box, two: Box) -> bool:
    return all(one[i] < two[i] + two[i + 2] and two[i] < one[i] + one[i + 2] for i in (0, 1))


def inside(one: Box, field: Box) -> bool:
    return all(field[i] <= one[i] and one[i] + one[i + 2] <= field[i] + field[i + 2] for i in (0, 1))
