"""An adapter in several shapes beside each other: the columns of a comparison."""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from .files import Adapter
from .spectrum import Band, bands, only

NONE = Adapter({})


class Variant(NamedTuple):
    """An adapter as one column shows it; `NONE` is the bare base."""

    column: str
    adapter: Adapter
    strength: float


BASE = Variant("base", NONE, 0.0)


def by_strength(adapter: Adapter, strengths: Iterable[float]) -> list[Variant]:
    """A column for each strength; 0 is the bare base."""
    return [Variant(f"{strength:g}", adapter if strength else NONE, strength) for strength in strengths]


def by_top_k(adapter: Adapter, counts: Iterable[int], rank: int) -> list[Variant]:
    """The base, each layer's first k singular values, and all `rank` of them."""
    first = [Variant(f"top {k}", only(adapter, Band(0, k)), 1.0) for k in counts if 0 < k < rank]
    return [BASE, *first, Variant(f"all {rank}", adapter, 1.0)]


def by_band(adapter: Adapter, count: int, edges: str, strength: float, rank: int) -> list[Variant]:
    """The base, each band of the spectrum alone at `strength`, and the whole adapter at 1."""
    parts = [Variant(str(band), only(adapter, band), strength) for band in bands(rank, count, edges)]
    return [BASE, *parts, Variant(f"all {rank}", adapter, 1.0)]


def side_by_side(adapters: Mapping[str, Adapter], strength: float) -> list[Variant]:
    """The base and each adapter."""
    return [BASE, *(Variant(name, adapter, strength) for name, adapter in adapters.items())]


def lettered(adapters: Sequence[Adapter]) -> dict[str, Adapter]:
    """Each adapter under a letter and its own title."""
    titles = [adapter.metadata.get("modelspec.title", "") for adapter in adapters]
    return {f"{chr(ord('A') + i)}: {title}".removesuffix(": "): adapters[i] for i, title in enumerate(titles)}
