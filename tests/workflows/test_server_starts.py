"""The pack in a real server: it loads, it is listed, and a plain workflow runs beside it."""

import pytest

from devkit.server import PACK, PromptError, Server

pytestmark = pytest.mark.server

PICTURE = {"class_type": "EmptyImage", "inputs": {"width": 32, "height": 32, "batch_size": 1, "color": 255}}
SAVE = {"class_type": "SaveImage", "inputs": {"images": ["picture", 0], "filename_prefix": "blue"}}


def test_the_pack_is_imported_without_failure(comfy_server: Server) -> None:
    start = comfy_server.log.read_text().partition("got prompt")[0]  # later lines tell of what other tests broke
    lines = [line for line in start.splitlines() if PACK in line]
    assert any("seconds:" in line for line in lines), "the pack is not among the imported ones"
    assert not [line for line in lines if "IMPORT FAILED" in line or "Error" in line or "Cannot import" in line]


def test_every_node_is_described_and_has_a_category_of_ours(comfy_server: Server) -> None:
    ours = {id: node for id, node in comfy_server.get("/object_info").items() if id.startswith(PACK)}
    assert ours
    assert {node["category"].split("/")[0] for node in ours.values()} == {"TriLoRA"}
    assert {node["python_module"] for node in ours.values()} == {f"custom_nodes.{PACK}"}


def test_a_workflow_gives_its_pictures(comfy_server: Server) -> None:
    entry = comfy_server.run({"picture": PICTURE, "save": SAVE})
    (file,) = comfy_server.images(entry, "save")
    assert file.read_bytes().startswith(b"\x89PNG")


def test_a_refused_workflow_is_told_in_the_nodes_own_words(comfy_server: Server) -> None:
    wrong = {**PICTURE, "inputs": {**PICTURE["inputs"], "width": "wide"}}
    with pytest.raises(PromptError, match=r"node picture \(EmptyImage\): .*width.*wide"):
        comfy_server.run({"picture": wrong, "save": SAVE})


def test_a_failing_node_is_told_in_its_own_words(comfy_server: Server) -> None:
    shrink = {
        "class_type": "ImageScaleBy",
        "inputs": {"image": ["picture", 0], "upscale_method": "lanczos", "scale_by": 0.01},  # to 0 x 0 pixels
    }
    save = {**SAVE, "inputs": {**SAVE["inputs"], "images": ["shrink", 0]}}
    with pytest.raises(PromptError, match=r"Node shrink \(ImageScaleBy\): .*must be > 0"):
        comfy_server.run({"picture": PICTURE, "shrink": shrink, "save": save})
