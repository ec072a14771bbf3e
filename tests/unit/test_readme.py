"""The README keeps its word: links lead somewhere, messages are those of the code, every node and template is in it."""

import json
import re

import pytest

from devkit import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
PAPERS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
OF_COMFYUI = {"Value not in list: folder", "file", "IMPORT FAILED"}


def section(title: str) -> str:
    return README.split(f"## {title}\n")[1].split("\n## ")[0]


@pytest.mark.parametrize("paper", PAPERS, ids=lambda paper: paper.name)
def test_every_link_into_the_repository_leads_to_a_file(paper: object) -> None:
    links = re.findall(r"\]\(([^)#]+)", paper.read_text(encoding="utf-8"))
    assert not [link for link in links if "://" not in link and not (paper.parent / link).exists()]


def test_every_message_is_one_that_the_code_says() -> None:
    files = [file for room in ("trilora", "nodes") for file in (ROOT / room).rglob("*.py")]
    code = re.sub(r'"\s*f?"', "", "\n".join(file.read_text(encoding="utf-8") for file in files))
    first = [line.split("|")[1] for line in section("When something goes wrong").splitlines()[4:]]
    messages = {message for cell in first for message in re.findall(r"\*([^*]+)\*", cell)} - OF_COMFYUI
    assert len(messages) > 6
    parts = {part.strip() for message in messages for part in message.split("...") if part.strip()}
    assert not {part for part in parts if part not in code}


def test_every_node_is_in_the_table_under_its_own_name() -> None:
    nodes = json.loads((ROOT / "tests" / "golden" / "schema.json").read_text(encoding="utf-8"))
    listed = set(re.findall(r"^\| ([^|]+) \|", section("The nodes"), re.MULTILINE)) - {"node"}
    assert listed == {node["name"] for node in nodes.values()}


def test_every_example_is_in_the_table_of_workflows() -> None:
    listed = set(re.findall(r"^\| (\S+) \|", section("The workflows"), re.MULTILINE)) - {"template"}
    assert listed == {file.stem for file in (ROOT / "example_workflows").glob("*.json")}


def test_the_change_log_has_the_version_that_would_be_published() -> None:
    version = re.search(r'^version = "([^"]+)"', (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)
    assert version
    assert f"\n## {version[1]}\n" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
