"""Fewer singular values: how many each layer keeps (by rank, energy or file size), and what that loses."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch

from .errors import RankError, TriLoRAError
from .factors import energy_of, rank_holding, truncated
from .files import Adapter, overhead

Rule = Callable[[Adapter], dict[str, int]]  # canonical adapter -> how many values each of its layers keeps


class Row(NamedTuple):
    """What became of one layer; energies are squared Frobenius norms."""

    layer: str
    rank: int
    full_rank: int  # before the cut
    energy: float
    kept: float


@dataclass(frozen=True)
class Report:
    """What a cut lost, layer by layer, and what else the user should know."""

    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()

    @property
    def share(self) -> float:
        """Share of the energy of all layers together that is kept, 0 to 1."""
        return _share(sum(row.kept for row in self.rows), sum(row.energy for row in self.rows))

    def summary(self) -> str:
        """Two lines or more for the node itself."""
        ranks = [row.rank for row in self.rows if row.rank] or [0]
        span = f"{min(ranks)}" if min(ranks) == max(ranks) else f"{min(ranks)} to {max(ranks)}"
        error = math.sqrt(1 - self.share)
        kept = f"{self.share:.2%} of the energy kept (relative error of the change {error:.1%})"
        return "\n".join([f"{len(self.rows)} layers, rank {span}", kept, *self.notes])

    def table(self) -> str:
        """A line for each layer: rank, rank before, share of its energy."""
        width = max((len(row.layer) for row in self.rows), default=5)
        lines = [f"{'layer':<{width}}  rank     of  energy kept"]
        for row in self.rows:
            share = _share(row.kept, row.energy)
            lines.append(f"{row.layer:<{width}}  {row.rank:>4}  {row.full_rank:>5}  {share:>11.2%}")
        return "\n".join(lines)

    def text(self) -> str:
        """Summary and table."""
        return f"{self.summary()}\n\n{self.table()}"


def cut(adapter: Adapter, rule: Rule, notes: tuple[str, ...] = ()) -> tuple[Adapter, Report]:
    """A canonical adapter cut to what the rule keeps, and what that lost. A layer that keeps nothing is left out.

    Raises:
        TriLoRAError: nothing is left.
    """
    ranks = rule(adapter)
    layers = {name: truncated(factors, ranks[name]) for name, factors in adapter.layers.items() if ranks[name]}
    if not layers:
        raise TriLoRAError("The result is zero in all layers, so there is nothing to keep: change what goes in.")
    if gone := len(ranks) - len(layers):
        notes = (*notes, f"{gone} layers keep no singular value and were left out")
    rows = tuple(
        Row(name, ranks[name], f.rank, energy_of(f.sigma), energy_of(f.sigma[: ranks[name]]))
        for name, f in adapter.layers.items()
    )
    report = Report(rows, notes)
    return Adapter(layers, said_of(adapter.metadata, max(ranks.values()), report.share)), report


def said_of(metadata: Mapping[str, str], rank: int, share: float) -> dict[str, str]:
    """The metadata with the largest rank of any layer, and the share of the energy that was kept."""
    ranks = dict.fromkeys(("ss_network_dim", "ss_network_alpha", "trilora.rank"), str(rank))
    return {**metadata, **ranks, "trilora.energy_kept": f"{share:.6f}"}


def at_energy(adapter: Adapter, share: float = 1.0) -> dict[str, int]:
    """The fewest values that hold `share` of the energy of each layer; 1 drops only what float32 can't tell from 0."""
    return {name: rank_holding(f.sigma, share) for name, f in adapter.layers.items()}


def at_rank(adapter: Adapter, rank: int) -> dict[str, int]:
    """At most `rank` values in each layer, the strongest."""
    return {name: min(rank, held) for name, held in at_energy(adapter).items()}


def at_size(adapter: Adapter, size: int, dtype: torch.dtype) -> dict[str, int]:
    """The values that hold the most energy of all layers together in a file of at most `size` bytes.

    One threshold for all: a value is worth its square and costs its column of u and row of vh, so values are taken
    in order of energy per byte. A layer that matters little may keep none.

    Args:
        adapter: canonical.
        size: of the saved file, metadata included.
        dtype: of the numbers in the file.

    Raises:
        RankError: not even one value fits.
    """
    held = at_energy(adapter)
    layers = list(adapter.layers.values())
    costs = torch.tensor([(f.u.shape[0] + f.vh[0].numel()) * dtype.itemsize for f in layers])
    counts = torch.tensor(list(held.values()))
    owners = torch.arange(len(layers)).repeat_interleave(counts)
    squares = torch.cat([f.sigma[:k].cpu().double().square() for f, k in zip(layers, counts, strict=True)])
    order = (squares / costs[owners]).argsort(descending=True, stable=True)
    room = size - overhead(Adapter(adapter.layers, said_of(adapter.metadata, adapter.rank, 1.0)))
    taken = owners[order][costs[owners[order]].cumsum(0) <= room]
    if len(owners) and not len(taken):
        least = (size - room + int(costs[owners[order[0]]])) / 1e6
        raise RankError(
            f"A file of {size / 1e6:g} MB has no room for a single value beside its metadata. Ask for at least "
            f"{least:.2f} MB, or for a lower precision."
        )
    return dict(zip(held, taken.bincount(minlength=len(layers)).tolist(), strict=True))


def _share(kept: float, energy: float) -> float:
    return min(1.0, kept / energy) if energy else 1.0
