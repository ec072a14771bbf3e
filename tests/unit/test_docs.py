"""What the documents say is shown by a test, is."""

import ast
import re

import pytest

from devkit import ROOT

PAGES = sorted((ROOT / "docs").glob("*.md"))


def known() -> set[str]:
    """The name of every test."""
    trees = (ast.parse(file.read_text(encoding="utf-8")) for file in (ROOT / "tests").rglob("test_*.py"))
    return {node.name for tree in trees for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_test_that_is_named_exists(page: object) -> None:
    text = page.read_text(encoding="utf-8")
    files = set(re.findall(r"tests/[\w/]+\.py", text))
    assert not {file for file in files if not (ROOT / file).is_file()}
    assert not set(re.findall(r"\btest_\w+\b(?!\.py)", text)) - known()


def test_the_guide_to_training_names_tests() -> None:
    named = re.findall(r"`(test_\w+)`", (ROOT / "docs" / "training.md").read_text(encoding="utf-8"))
    assert len(named) > 30
