"""The example workflows fit the nodes as the server describes them."""

import json
from pathlib import Path
from typing import Any

import pytest

from devkit import ROOT
from devkit.server import Server

pytestmark = pytest.mark.server

EXAMPLES = sorted((ROOT / "example_workflows").glob("*.json"))


def test_there_are_examples() -> None:
    assert EXAMPLES


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda file: file.stem)
def test_every_node_and_link_of_an_example_exists(comfy_server: Server, file: Path) -> None:
    known = comfy_server.get("/object_info")
    workflow = json.loads(file.read_text(encoding="utf-8"))
    nodes = {node["id"]: node for node in workflow["nodes"]}
    for node in nodes.values():
        assert node["type"] in known
        assert {i["name"].split(".")[0] for i in node.get("inputs", [])} <= names(known[node["type"]])
        assert [o["name"] for o in node.get("outputs", [])] == known[node["type"]]["output_name"]
    for _, source, slot, target, _, kind in workflow["links"]:
        assert target in nodes
        assert nodes[source]["outputs"][slot]["type"] == kind


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda file: file.stem)
def test_an_example_is_among_the_packs_templates(comfy_server: Server, file: Path) -> None:
    assert file.stem in comfy_server.get("/workflow_templates")["TriLoRA"]


def names(described: dict[str, Any]) -> set[str]:
    """Every input of a node."""
    return {name for group in described["input"].values() for name in group}
