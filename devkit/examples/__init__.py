"""The workflows of example_workflows/, written as graphs: `python -m devkit.examples` makes the files from them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from demo.workflow import Node


@dataclass(frozen=True)
class Group:
    """A coloured field of the page: a title, and columns of nodes or notes, each from top to bottom."""

    title: str
    columns: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Example:
    """A workflow: its nodes by name, the notes between them, and how all that is laid out."""

    nodes: Mapping[str, Node]
    notes: Mapping[str, str]
    groups: tuple[Group, ...]
    thumbnail: tuple[str, ...]
    """Nodes whose first picture goes on the thumbnail, from left to right."""
    help: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Picture of the help pages -> nodes whose first picture goes on it, from left to right."""
    runs_alone: bool = True
    """Whether it needs nothing but the pack."""
    numbers: dict[str, str] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "numbers", {name: str(i) for i, name in enumerate(self.nodes, 1)})

    def prompt(self) -> dict[str, Node]:
        """ComfyUI's API form, with the numbers that the page gives its nodes."""
        return {self.numbers[name]: self._numbered(node) for name, node in self.nodes.items()}

    def _numbered(self, node: Node) -> Node:
        inputs = {key: self._linked(value) for key, value in node["inputs"].items()}
        return {**node, "inputs": inputs, "_meta": node.get("_meta", {})}

    def _linked(self, value: Any) -> Any:
        link = isinstance(value, list) and len(value) == 2 and value[0] in self.numbers
        return [self.numbers[value[0]], value[1]] if link else value


def examples() -> dict[str, Example]:
    """Name of the file -> workflow. No blanks: the page opens `?template=NAME&source=TriLoRA` only without them."""
    from . import learning, measuring, mending, playing

    return {
        "train_your_first_style": learning.first_style(),
        "train_on_SD1.5_or_SDXL": learning.checkpoint(),
        "strength_and_curve": playing.strength_and_curve(),
        "soften_a_LoRA_by_its_spectrum": mending.soften(),
        "repair_an_over-cooked_LoRA_without_its_pictures": mending.repair(),
        "schedule": playing.schedule(),
        "compare_grid_and_lens": playing.compare(),
        "merge": playing.merge(),
        "evaluate": measuring.evaluate(),
    }
