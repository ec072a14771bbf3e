"""Every node has its help page, which names every input, and the server hands it out as the page asks for it."""

import re
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest

from devkit import ROOT
from devkit.server import PACK, Server

pytestmark = pytest.mark.server

DOCS = ROOT / "web" / "docs"
ORDER = ["When to use it", "Inputs", "A small workflow", "Common mistakes"]


def described(server: Server) -> dict[str, Any]:
    return {id: node for id, node in server.get("/object_info").items() if id.startswith(PACK)}


def served(server: Server, path: str) -> bytes:
    """What the page gets when it asks for a file of the help."""
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(
        f"{server.url}/extensions/{PACK}/docs/{path}", timeout=30
    ) as answer:
        return answer.read()


def names(groups: dict[str, dict[str, Any]]) -> Iterator[str]:
    """Every input, and those that hang under an option of another."""
    for group in ("required", "optional"):
        for name, (_, *options) in groups.get(group, {}).items():
            yield name
            for option in options[0].get("options", []) if options else []:
                if isinstance(option, dict):
                    yield from names(option.get("inputs", {}))


def test_every_node_has_a_page_and_every_page_a_node(comfy_server: Server) -> None:
    assert {page.stem for page in DOCS.glob("*.md")} == set(described(comfy_server))


def test_every_page_goes_in_the_same_order_under_the_nodes_own_name(comfy_server: Server) -> None:
    for id, node in described(comfy_server).items():
        lines = served(comfy_server, f"{id}.md").decode().splitlines()
        assert lines[0] == f"# {node['display_name']}", id
        assert [line.removeprefix("## ") for line in lines if line.startswith("## ")] == ORDER, id


def test_every_page_names_every_input(comfy_server: Server) -> None:
    for id, node in described(comfy_server).items():
        named = set(re.findall(r"`([^`]+)`", (DOCS / f"{id}.md").read_text(encoding="utf-8")))
        assert not set(names(node["input"])) - named, id


def test_every_picture_of_a_page_is_served_and_none_lies_there_unused(comfy_server: Server) -> None:
    shown = {
        link
        for page in DOCS.glob("*.md")
        for link in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8"))
        if not link.startswith("https://")
    }
    assert shown
    assert all(served(comfy_server, link)[:3] == b"\xff\xd8\xff" for link in shown)
    assert {file.relative_to(DOCS).as_posix() for file in (DOCS / "pictures").iterdir()} == shown


def test_every_template_that_a_page_names_exists() -> None:
    text = " ".join(page.read_text(encoding="utf-8") for page in DOCS.glob("*.md"))
    named = re.findall(r"template \*([^*]+)\*", text) + re.findall(r'template "([^"]+)"', text)
    there = {file.stem.lower() for file in (ROOT / "example_workflows").glob("*.json")}
    assert named
    assert {name.lower().replace(" ", "_") for name in named} <= there
