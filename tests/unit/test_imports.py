"""Imports go one way: `__init__` -> `nodes` -> `trilora`; only nodes/ knows ComfyUI, only two rooms know diffusers."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from devkit import ROOT

COMFY = {"comfy", "comfy_api", "comfy_execution", "comfy_extras", "folder_paths", "server", "nodes", "execution"}
HEAVY = {"diffusers", "transformers", "accelerate"}
HEAVY_ROOMS = ("trilora/headless", "trilora/metrics")
VERBS = ("train", "sample", "info", "resize", "merge", "extract", "convert")
STDLIB_ONLY = [ROOT / "dev.py", ROOT / "demo" / "__init__.py", ROOT / "demo" / "workflow.py"]
STDLIB_ONLY += sorted((ROOT / "devkit").glob("*.py"))


def files(room: str) -> list[Path]:
    return sorted((ROOT / room).rglob("*.py"))


def name(file: Path) -> str:
    return file.relative_to(ROOT).as_posix()


def parse(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"), str(file))


def imports(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Level and dotted name of everything imported, anywhere in the file: level 0 is absolute."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((0, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.level, node.module or ""
            if node.level and not node.module:  # from . import a, b
                yield from ((node.level, alias.name) for alias in node.names)


def absolute(file: Path) -> set[str]:
    """The top-level packages that a file imports by absolute name."""
    return {dotted.partition(".")[0] for level, dotted in imports(parse(file)) if level == 0}


def node_files() -> list[Path]:
    """The files of nodes/ that define a node: a class with a schema."""
    return [file for file in files("nodes") if defines_node(parse(file))]


def defines_node(tree: ast.Module) -> bool:
    classes = (node for node in ast.walk(tree) if isinstance(node, ast.ClassDef))
    bases = (ast.unparse(base) for node in classes for base in node.bases)
    return any(base.rpartition(".")[2] == "ComfyNode" for base in bases)


def test_there_is_something_to_check() -> None:
    assert files("trilora")
    assert node_files()


@pytest.mark.parametrize("file", files("trilora"), ids=name)
def test_the_core_knows_neither_comfyui_nor_the_nodes(file: Path) -> None:
    assert not absolute(file) & COMFY
    depth = len(file.relative_to(ROOT / "trilora").parts)
    assert all(level <= depth for level, _ in imports(parse(file))), "a relative import climbs out of trilora/"


@pytest.mark.parametrize("file", files("trilora"), ids=name)
def test_diffusers_and_its_kin_live_in_two_rooms(file: Path) -> None:
    if not name(file).startswith(HEAVY_ROOMS):
        assert not absolute(file) & HEAVY


@pytest.mark.parametrize("file", files("trilora") + files("nodes"), ids=name)
def test_nothing_but_the_command_line_knows_the_headless_host(file: Path) -> None:
    if not name(file).startswith((*HEAVY_ROOMS, "trilora/__main__.py")):
        assert not [dotted for _, dotted in imports(parse(file)) if "headless" in dotted.split(".")]


@pytest.mark.parametrize("verb", VERBS)
def test_a_verb_loads_diffusers_only_when_it_runs(verb: str) -> None:
    """`--help` and bad flags answer at once. Followed through what the module imports of its own room."""
    seen, left = set(), [verb, "cli"]
    while left:
        module = left.pop()
        file = ROOT / "trilora" / "headless" / f"{module}.py"
        if module in seen or not file.is_file():
            continue
        seen.add(module)
        at_start = [node for node in parse(file).body if isinstance(node, ast.Import | ast.ImportFrom)]
        found = [each for node in at_start for each in imports(node)]
        assert not {dotted.partition(".")[0] for level, dotted in found if level == 0} & HEAVY, file.name
        left += [dotted.partition(".")[0] for level, dotted in found if level == 1]


@pytest.mark.parametrize("file", files("nodes"), ids=name)
def test_the_pack_imports_itself_by_relative_names_only(file: Path) -> None:
    """ComfyUI loads the pack under its folder's name, and `import nodes` is always ComfyUI's own module."""
    assert not absolute(file) & ({"nodes", "trilora", "demo"} | HEAVY)


@pytest.mark.parametrize("file", node_files(), ids=name)
def test_a_node_file_imports_no_other_node_file(file: Path) -> None:
    others = {other.stem for other in node_files()} - {file.stem}
    siblings = {dotted.partition(".")[0] for level, dotted in imports(parse(file)) if level == 1}
    assert not siblings & others


@pytest.mark.parametrize("file", STDLIB_ONLY, ids=name)
def test_dev_runs_before_anything_is_installed(file: Path) -> None:
    assert absolute(file) <= set(sys.stdlib_module_names) | {"devkit", "demo"}


def test_the_root_imports_nothing_until_comfyui_asks() -> None:
    tree = parse(ROOT / "__init__.py")
    assert not [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    assert {node.name for node in tree.body if isinstance(node, ast.AsyncFunctionDef)} == {"comfy_entrypoint"}
    assert "NODE_CLASS_MAPPINGS" not in ast.unparse(tree), "ComfyUI would take it and ignore comfy_entrypoint"
