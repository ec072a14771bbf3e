"""The example workflows fit the nodes as the server describes them, and run on it.

That the files the page opens mean the very graphs that run here is seen in tests/browser/test_templates.py.
"""

import json
from pathlib import Path
from typing import Any

import numpy
import pytest
from PIL import Image

from demo.workflow import Node, node
from devkit import ROOT
from devkit.examples import examples
from devkit.server import PACK, Server

pytestmark = [pytest.mark.server, pytest.mark.slow]

FOLDER = ROOT / "example_workflows"
EXAMPLES = sorted(FOLDER.glob("*.json"))
SMALL: dict[str, dict[str, Any]] = {  # quick, and every node still does its part
    "TriLoRATrain": {"steps": 3, "batch": 1},
    "TriLoRARepair": {"steps": 3, "batch": 1},
    "TriLoRACompare": {"steps": 2},
    "KSampler": {"steps": 3},
    "EmptyLatentImage": {"width": 128, "height": 128, "batch_size": 1},
    "TriLoRADataset": {"resolution": 128},
    "TriLoRADemoPictures": {"count": 3},
}
QUIET = {
    "held_out_share": 0.1, "score_every": 100, "patience": 0, "keep_best": False, "previews": "on",
    "previews.every": 1000, "previews.prompt": "", "previews.seed": 0, "previews.steps": 2, "previews.cfg": 3.5,
    "checkpoint_every": 0, "checkpoints": 1, "resume": False,
}  # fmt: skip


def small(prompt: dict[str, Node]) -> dict[str, Node]:
    """The workflow with few steps and small pictures; the demo model stands in for a checkpoint."""
    watched = {"TriLoRATrain", "TriLoRARepair"} & {each["class_type"] for each in prompt.values()}
    made = {"watch": node("TriLoRATrainWatch", **QUIET)} if watched else {}
    for id, each in prompt.items():
        kind = each["class_type"]
        inputs = each["inputs"] | SMALL.get(kind, {}) | ({"watch": ["watch", 0]} if kind in watched else {})
        if kind == "TriLoRARepair":
            inputs["captions"] = "\n".join(inputs["captions"].splitlines()[:4])
        made[id] = each | {"inputs": inputs}
        if kind == "CheckpointLoaderSimple":
            made[id] = node("TriLoRADemoModel")
    return made


def test_there_is_a_file_and_a_thumbnail_for_every_graph_and_no_other() -> None:
    assert {file.stem for file in EXAMPLES} == set(examples())
    assert {file.stem for file in FOLDER.glob("*.jpg")} == set(examples())


@pytest.mark.parametrize("name", examples())
def test_an_example_runs_and_gives_pictures_that_are_not_of_one_colour(comfy_server: Server, name: str) -> None:
    prompt = small(examples()[name].prompt())
    entry = comfy_server.run(prompt, timeout=300)
    saving = [id for id, each in prompt.items() if each["class_type"] in ("SaveImage", "PreviewImage")]
    assert all(comfy_server.images(entry, id) for id in saving)
    pictures = comfy_server.images(entry)
    assert pictures
    assert all(numpy.asarray(Image.open(file).convert("L")).std() > 1 for file in pictures)


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda file: file.stem)
def test_every_node_and_link_of_an_example_exists(comfy_server: Server, file: Path) -> None:
    known = comfy_server.get("/object_info")
    workflow = json.loads(file.read_text(encoding="utf-8"))
    nodes = {each["id"]: each for each in workflow["nodes"] if each["type"] != "MarkdownNote"}
    for each in nodes.values():
        assert each["type"] in known
        assert {i["name"].split(".")[0] for i in each.get("inputs", [])} <= names(known[each["type"]])
        assert [o["name"] for o in each.get("outputs", [])] == known[each["type"]]["output_name"]
    for _, source, slot, target, _, kind in workflow["links"]:
        assert target in nodes
        assert nodes[source]["outputs"][slot]["type"] == kind


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda file: file.stem)
def test_an_example_is_among_the_packs_templates(comfy_server: Server, file: Path) -> None:
    assert file.stem in comfy_server.get("/workflow_templates")[PACK]
    assert comfy_server.get(f"/api/workflow_templates/{PACK}/{file.name}")["nodes"]


def names(described: dict[str, Any]) -> set[str]:
    """Every input of a node."""
    return {name for group in described["input"].values() for name in group}
