"""What the singular values of an adapter tell: bands of them, energy by block, effective rank by layer.

Factors are canonical here, as they come from a file or from training.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from .entries import entries
from .errors import TriLoRAError
from .factors import Factors, energy, gram_values
from .files import Adapter
from .layers import AdapterLayer

PREFIX = re.compile(r"^(lora_unet_|lora_transformer_|diffusion_model\.|transformer\.)")
BLOCK = re.compile(r"^(mid_block|middle_block|.*?\d+)(?=[._]|$)")  # down_blocks_0, double_blocks.12, lora_te1
BINS = 256  # of a histogram, as ComfyUI's curve widget has them


class Band(NamedTuple):
    """Neighbours in the spectrum: singular values `first` to `last - 1`, counted from 0."""

    first: int
    last: int

    def __str__(self) -> str:
        """Counted from 1, as people do, and without a σ, which Pillow's own font lacks: `value 1`, `values 2-8`."""
        if self.last == self.first + 1:
            return f"value {self.last}"
        return f"values {self.first + 1}-{self.last}"


def bands(rank: int, count: int, edges: str = "") -> list[Band]:
    """The spectrum in `count` bands, strongest first.

    Args:
        rank: how many singular values there are.
        edges: last value of each band but the final one, counted from 1, such as "1, 4" for 1, 2-4 and the rest.
            "" lets each band be wider than the one before by the same ratio: the few first values carry the most.

    Raises:
        TriLoRAError: edges that are no rising whole numbers within the rank, or more bands than singular values.
    """
    if not edges.strip():
        ends = _geometric(rank, count)
    else:
        ends = [*entries(edges, int, "edges"), rank]
        if len(ends) != count:
            raise TriLoRAError(
                f"{count} bands have {count - 1} edges between them, but {edges!r} holds {len(ends) - 1}."
            )
    found = [Band(*pair) for pair in zip([0, *ends[:-1]], ends, strict=True)]
    if ends[-1] != rank or any(band.last <= band.first for band in found):
        raise TriLoRAError(
            f"{', '.join(map(str, found))} are no bands of {rank} singular values. Take fewer bands, or edges that "
            "rise and stay below the rank."
        )
    return found


def only(adapter: Adapter, band: Band) -> Adapter:
    """The adapter with one band of every layer's singular values; a layer whose rank ends before it is left out."""
    layers = {
        name: Factors(u[:, slice(*band)], sigma[slice(*band)], vh[slice(*band)])
        for name, (u, sigma, vh) in adapter.layers.items()
        if len(sigma) > band.first
    }
    return replace(adapter, layers=layers)


def effective_rank(sigma: Tensor) -> float:
    """exp(-Σ p log p) of p = sigma / Σ sigma (Roy, Vetterli 2007): 1 to r, how many values really count."""
    shares = sigma.double() / sigma.double().sum().clamp_min(1e-300)
    return float(torch.special.entr(shares).sum().exp())


@dataclass(frozen=True)
class Layer:
    """One layer's line of the table.

    Attributes:
        name: as files and MODELs have it, without the prefix that all share.
        block: the part of the network that it belongs to.
        share: of the whole adapter's energy, the squared Frobenius norm of ΔW, 0 to 1.
        sigma: its singular values, strongest first.
        rank: its effective rank.
        values_90: how many of the first singular values hold 90 % of its energy.
    """

    name: str
    block: str
    share: float
    sigma: Tensor
    rank: float
    values_90: int


def measure(layers: Mapping[str, Factors]) -> list[Layer]:
    """Every layer's line, in the order given."""
    whole = sum(float(factors.sigma.double().square().sum()) for factors in layers.values()) or 1.0
    lines = []
    for full, factors in layers.items():
        name = PREFIX.sub("", full).removesuffix(".weight")
        found = BLOCK.match(name)
        sigma = factors.sigma.detach().cpu()
        share = float(sigma.double().square().sum()) / whole
        held = int((energy(factors) < 0.9).sum()) + 1 if share else 0
        lines.append(Layer(name, found.group() if found else name, share, sigma, effective_rank(sigma), held))
    return lines


def by_block(lines: Sequence[Layer]) -> dict[str, list[Layer]]:
    """Block -> its layers."""
    blocks: dict[str, list[Layer]] = {}
    for line in lines:
        blocks.setdefault(line.block, []).append(line)
    return blocks


def mean_spectrum(lines: Sequence[Layer]) -> Tensor:
    """Root mean square of the layers' singular values, strongest first: (largest rank,)."""
    rank = max(len(line.sigma) for line in lines)
    return torch.stack([pad(line.sigma, (0, rank - len(line.sigma))) for line in lines]).square().mean(0).sqrt()


@torch.no_grad()
def glimpse(layers: Mapping[str, AdapterLayer], most: int = 32) -> list[float]:
    """Root mean square of the singular values of at most `most` layers while they learn, strongest first.

    By Gram matrices of r x r, where an SVD would hold up the training; exact to about 1e-3 of the largest value.
    """
    chosen = list(layers.values())[:: max(1, -(-len(layers) // most))]
    found = [gram_values(layer.factors()) for layer in chosen]
    rank = max(len(values) for values in found)
    rms: list[float] = torch.stack([pad(v, (0, rank - len(v))) for v in found]).square().mean(0).sqrt().tolist()
    return rms


def histogram(sigmas: Iterable[Tensor]) -> list[int]:
    """The layers' mean squared singular values, each from its first to its last, as `BINS` counts; [] of no layer.

    The widget draws their root. Each value stands where `gains.along` looks for its gain.
    """
    squares = [sigma.detach().cpu().double().square()[_places(len(sigma))] for sigma in sigmas]
    if not squares:
        return []
    mean = torch.stack(squares).mean(0)
    counts: list[int] = (mean / mean.max().clamp_min(1e-30) * 1e6).long().tolist()
    return counts


def table(lines: Sequence[Layer]) -> str:
    """What the whole adapter, its blocks and its layers hold, as aligned text."""
    spectrum = mean_spectrum(lines)
    share = spectrum.square().cumsum(0) / spectrum.square().sum().clamp_min(1e-30)
    rows = [("part", "energy %", "σ1", "effective rank", "values for 90 %")]
    for block, inside in by_block(lines).items():
        rows.append((block, f"{sum(line.share for line in inside):.1%}"[:-1], "", "", ""))
        rows += [
            (f"  {line.name.removeprefix(line.block)[1:]}", f"{line.share:.2%}"[:-1], f"{line.sigma.max():.4g}",
             f"{line.rank:.2f} of {len(line.sigma)}", str(line.values_90))
            for line in inside
        ]  # fmt: skip
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    aligned = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]
    shares = ", ".join(f"σ{i + 1}: {float(part):.0%}" for i, part in enumerate(share))
    head = f"{len(lines)} layers, rank {len(spectrum)}. Share of the energy up to each singular value:"
    return "\n".join([head, shares, "", *aligned])


def _geometric(rank: int, count: int) -> list[int]:
    """Upper ends that grow by the same ratio, each at least one further: 8 in 3 bands gives 2, 4, 8."""
    ends: list[int] = []
    for i in range(1, count + 1):
        ends.append(max(round(rank ** (i / count)), ends[-1] + 1 if ends else 1))
    return ends


def _places(rank: int) -> Tensor:
    """Which of the singular values is the nearest to each bin."""
    return torch.linspace(0, rank - 1, BINS).round().long()
