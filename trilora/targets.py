"""Which layers learn: presets by model family, glob patterns, regular expressions, and ranges of blocks."""

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from torch import Tensor, nn

from .errors import TargetError
from .families import FAMILIES, Family, family_of

PRESETS = ("attention", "self-attention", "cross-attention", "attention + mlp", "all linear")
REGEX = "re:"


def is_linear(module: nn.Module) -> bool:
    """Whether a module is a linear layer on one weight (out, in).

    ComfyUI's layers of quantised weights are no `nn.Linear`: what has the attributes of one counts as well.
    """
    weight = getattr(module, "weight", None)
    sized = hasattr(module, "in_features") and hasattr(module, "out_features")
    return isinstance(module, nn.Linear) or (sized and isinstance(weight, Tensor) and weight.ndim == 2)


def linear_layers(root: nn.Module) -> dict[str, nn.Module]:
    """Path -> module of every linear layer below `root`, in the model's order; see `is_linear`."""
    return {path: module for path, module in root.named_modules() if is_linear(module)}


def patterns_of(family: Family, preset: str) -> tuple[str, ...]:
    """The glob patterns of a preset for a family."""
    attention = family.self_attention + family.cross_attention
    return {
        "attention": attention,
        "self-attention": family.self_attention,
        "cross-attention": family.cross_attention,
        "attention + mlp": attention + family.mlp,
        "all linear": ("*",),
    }[preset]


def matching(paths: Iterable[str], patterns: Sequence[str]) -> list[str]:
    """The paths that match any of the patterns, in their own order."""
    return [path for path in paths if any(fnmatchcase(path, pattern) for pattern in patterns)]


def select(root: nn.Module, choice: str = "attention", blocks: str = "") -> dict[str, nn.Module]:
    """The linear layers to adapt: layer path -> module, in the model's order.

    Args:
        root: the network whose layers are chosen.
        choice: see `among`.
        blocks: see `among`.

    Raises:
        TargetError: as `among` does.
    """
    layers = linear_layers(root)
    return {path: layers[path] for path in among(root, layers, choice, blocks)}


def among(root: nn.Module, paths: Iterable[str], choice: str, blocks: str = "") -> list[str]:
    """Those of the layers that a choice and blocks name, in their own order.

    Blocks are numbered from 0 along the depth, from input to output, whatever lists the model keeps them in: Flux's
    single blocks go on counting where its double blocks end, and a UNet counts its input blocks, its middle and its
    output blocks. A word is the beginning of a module's name ('input', 'middle', 'double', 'noise_refiner'); numbers
    after a word count within that module. Parts are separated by commas: '4-12', '0-3, 8', 'single',
    'input 4-8, middle, output 3-5'.

    Args:
        root: the network that the layers belong to.
        paths: layer paths to choose from.
        choice: a preset's name; or glob patterns on the layer path, separated by commas or line breaks; or 're:' and a
            regular expression that is searched for in the path.
        blocks: which blocks, as above; "" for the whole network.

    Raises:
        TargetError: nothing matches, a block that is not there, or a preset is asked of an unknown architecture.
    """
    paths, family = list(paths), family_of(linear_layers(root))
    chosen = _matched(root, paths, family, choice)
    if not chosen:
        examples = ", ".join(paths[:3]) or "none"
        raise TargetError(
            f"None of {len(paths)} layers of {type(root).__name__} matches {choice!r}. They have names such as "
            f"{examples}: choose others."
        )
    if not blocks.strip():
        return chosen
    within = _blocks(root, family, blocks)
    kept = [path for path in chosen if any(f"{path}.".startswith(f"{block}.") for block in within)]
    if not kept:
        raise TargetError(
            f"The blocks {blocks!r} hold none of the {len(chosen)} layers that match {choice!r}; the first of them "
            f"is {chosen[0]}. This model has {_available(root, family)}: change the blocks or the layers."
        )
    return kept


def table(chosen: Mapping[str, nn.Module], rank: int | None = None) -> str:
    """What was chosen, as text: a row for each kind of layer, and a total.

    Args:
        chosen: see `select`; convolutions as well.
        rank: of the adapters; parameters are then those that learn (with a diagonal core), else those of the layers.
    """
    rows = [("layers", "count", "out x in", "parameters")]
    for kind, members in _kinds(chosen).items():
        shapes = ", ".join(dict.fromkeys(" x ".join(map(str, layer.weight.shape)) for layer in members))
        rows.append((kind, str(len(members)), shapes, f"{sum(_size(layer, rank) for layer in members):,}"))
    rows.append(("total", str(len(chosen)), "", f"{sum(_size(layer, rank) for layer in chosen.values()):,}"))
    wide = [max(len(row[i]) for row in rows) for i in range(4)]
    lines = [
        f"{kind:<{wide[0]}}  {count:>{wide[1]}}  {shapes:<{wide[2]}}  {size:>{wide[3]}}"
        for kind, count, shapes, size in rows
    ]
    return "\n".join(lines)


def _matched(root: nn.Module, paths: Sequence[str], family: Family | None, choice: str) -> list[str]:
    """The paths that a preset, a regular expression or glob patterns choose."""
    if choice.startswith(REGEX):
        return list(filter(_searching(choice[len(REGEX) :].strip()), paths))
    if choice not in PRESETS:
        return matching(paths, [part.strip() for part in re.split(r"[,\n]", choice) if part.strip()])
    if choice == "all linear":
        return list(paths)
    if family is None:
        raise TargetError(
            f"The preset {choice!r} was asked for, but {type(root).__name__} is not in the table of known "
            f"architectures ({', '.join(f.name for f in FAMILIES)}). Choose 'all linear', or give glob patterns such "
            f"as {next(iter(paths), 'blocks.0.attn.qkv')!r}."
        )
    if not patterns_of(family, choice):
        raise TargetError(
            f"The preset {choice!r} was asked for, but in {type(root).__name__} text and picture meet in joint "
            "attention: choose 'attention'."
        )
    return matching(paths, patterns_of(family, choice))


def _searching(expression: str) -> Callable[[str], object]:
    try:
        return re.compile(expression).search
    except re.error as error:
        raise TargetError(
            f"The targets 're:{expression}' are no regular expression: {error}. Mend it, or give glob patterns."
        ) from None


def _depth(root: nn.Module, family: Family | None) -> dict[str, list[str]]:
    """Name of each part along the depth -> the paths of its blocks."""
    names = family.blocks if family else [name for name, child in root.named_children() if _is_list(child)]
    return {name: _inside(root, name) for name in names if name in root._modules}


def _inside(root: nn.Module, name: str) -> list[str]:
    """The blocks of a list of blocks; anything else is one block."""
    module = root.get_submodule(name)
    return [f"{name}.{key}" for key, _ in module.named_children()] if _is_list(module) else [name]


def _is_list(module: nn.Module) -> bool:
    return isinstance(module, nn.ModuleList | nn.ModuleDict)


def _blocks(root: nn.Module, family: Family | None, text: str) -> list[str]:
    """The paths of the blocks that a text such as '0-3, output 4' names."""
    found = []
    for part in filter(None, map(str.strip, re.split(r"[,\n]", text))):
        parsed = re.fullmatch(r"(?:([A-Za-z_]\w*)(?:\s+|$))?(?:(\d+)(?:\s*-\s*(\d+))?)?", part)
        if parsed is None:
            raise _no_block(root, family, part)
        word, first, last = parsed.groups()
        along = _named(root, word) if word else [path for part in _depth(root, family).values() for path in part]
        start, end = (int(first), int(last or first)) if first else (0, len(along) - 1)
        if not start <= end < len(along):
            raise _no_block(root, family, part)
        found += along[start : end + 1]
    return found


def _named(root: nn.Module, word: str) -> list[str]:
    """The blocks of the top modules whose names begin with a word."""
    return [path for name, _ in root.named_children() if name.startswith(word) for path in _inside(root, name)]


def _no_block(root: nn.Module, family: Family | None, part: str) -> TargetError:
    return TargetError(
        f"The blocks {part!r} are not in this model. {type(root).__name__} has {_available(root, family)}. Write "
        "'4-12', '0-3, 8', or a module's name with numbers within it."
    )


def _available(root: nn.Module, family: Family | None) -> str:
    """Such as: blocks 0-24 along the depth (input_blocks 0-11, middle_block, output_blocks 0-11)."""
    depth = _depth(root, family)
    total = sum(len(paths) for paths in depth.values())
    if not total:
        return f"no list of blocks, but {', '.join(name for name, _ in root.named_children()) or 'nothing'}"
    parts = [name if paths == [name] else f"{name} 0-{len(paths) - 1}" for name, paths in depth.items()]
    return f"blocks 0-{total - 1} along the depth ({', '.join(parts)})"


def _kinds(chosen: Mapping[str, nn.Module]) -> dict[str, list[Any]]:
    """Path with every number as '*' -> the layers of that kind."""
    kinds: dict[str, list[Any]] = {}
    for path, layer in chosen.items():
        kinds.setdefault(re.sub(r"(?<=\.)\d+(?=\.|$)", "*", path), []).append(layer)
    return kinds


def _size(layer: Any, rank: int | None) -> int:
    out, *inner = layer.weight.shape
    into = math.prod(inner)
    size: int = out * into if rank is None else rank * (out + into + 1)
    return size
