"""One adapter out of others: merged, Σᵢ weightᵢ · ΔWᵢ, or resized. Exact up to the cut, never out x in."""

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import NamedTuple

from . import lineage
from .cutting import Report, Rule, cut
from .errors import TargetError, TriLoRAError
from .factors import Factors, canonical, merged
from .files import Adapter

Track = Callable[[Collection[str]], Iterable[str]]  # passes layer names through, showing how far it is


class Part(NamedTuple):
    """One adapter's share in a layer of the merge."""

    number: int  # of the adapter, from 1
    factors: Factors
    weight: float


def merge(
    adapters: Sequence[Adapter],
    weights: Sequence[float],
    rule: Rule,
    name_of: Callable[[str], str] | None = None,
    track: Track = iter,
) -> tuple[Adapter, Report]:
    """Σᵢ weightᵢ · ΔWᵢ over the layers of all adapters, in canonical form, cut by the rule.

    Args:
        adapters: one or more; a layer that only some have is theirs alone.
        weights: one for each adapter.
        rule: how many singular values to keep, see `cutting`.
        name_of: a file's layer name -> the name of the layer in the result; without it names are taken as they are.
        track: shows progress.

    Raises:
        TargetError: adapters whose shapes of one layer disagree.
        TriLoRAError: another number of weights than of adapters, or a result that is zero.
    """
    if len(weights) != len(adapters):
        raise TriLoRAError(
            f"{len(weights)} weights were given for {len(adapters)} adapters. Give one number for each in weights, or "
            "a single one for all."
        )
    layers = _by_layer(adapters, weights, name_of or str)
    exact = {name: _merged(name, layers[name]) for name in track(layers)}
    notes = () if name_of else _strangers(adapters)
    if bases := lineage.differing_bases(adapters):
        notes += (f"WARNING: the adapters name different bases ({', '.join(bases)}); that rarely goes well",)
    return cut(Adapter(exact, lineage.of_merge(adapters, weights)), rule, notes)


def resize(adapter: Adapter, rule: Rule, track: Track = iter) -> tuple[Adapter, Report]:
    """The adapter with fewer singular values: of each layer the best approximation of its new rank.

    Raises:
        TriLoRAError: nothing is left.
    """
    exact = {name: canonical(adapter.layers[name]) for name in track(adapter.layers)}
    return cut(Adapter(exact, adapter.metadata), rule)


def _by_layer(
    adapters: Sequence[Adapter], weights: Sequence[float], name_of: Callable[[str], str]
) -> dict[str, list[Part]]:
    layers: dict[str, list[Part]] = {}
    for number, (adapter, weight) in enumerate(zip(adapters, weights, strict=True), 1):
        for name, factors in adapter.layers.items():
            layers.setdefault(name_of(name), []).append(Part(number, factors, weight))
    return layers


def _merged(name: str, parts: Sequence[Part]) -> Factors:
    """The parts of one layer in one; a linear layer and a 1 x 1 convolution of the same size are the same matrix."""
    first = parts[0]
    for part in parts[1:]:
        if _shape(part) != _shape(first):
            raise TargetError(
                f"The layer {name} is {_words(first)} in adapter {first.number}, but {_words(part)} in adapter "
                f"{part.number}: they belong to different base models. Merge adapters of one base only."
            )
    widest = max((part.factors.vh.shape[1:] for part in parts), key=len)
    same = [part.factors._replace(vh=part.factors.vh.reshape(-1, *widest)) for part in parts]
    return merged(same, [part.weight for part in parts])


def _shape(part: Part) -> tuple[int, int, list[int]]:
    """(out, in, kernel) with a kernel of 1 x 1 as none."""
    inner, *kernel = part.factors.vh.shape[1:]
    return part.factors.u.shape[0], inner, kernel if any(side != 1 for side in kernel) else []


def _words(part: Part) -> str:
    return " x ".join(map(str, (part.factors.u.shape[0], *part.factors.vh.shape[1:])))


def _strangers(adapters: Sequence[Adapter]) -> tuple[str, ...]:
    """A warning for each adapter that shares no layer name with any other."""
    counts = Counter(name for adapter in adapters for name in adapter.layers)
    return tuple(
        f"WARNING: adapter {number} shares no layer name with the others (its first is {next(iter(adapter.layers))}). "
        "If it names the same layers in another way, connect model: then layers are matched by what they are"
        for number, adapter in enumerate(adapters, 1)
        if len(adapters) > 1 and adapter.layers and all(counts[name] == 1 for name in adapter.layers)
    )
