"""Where the energy of adapters lies along their singular values: what is drawn behind the strength curve."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

DIGITS = 5  # of each number that is told


def along_places(layers: Iterable[tuple[Tensor, Tensor]]) -> dict[str, Any]:
    """The spectrum of several layers as numbers for a page, which needs nothing more to know what a curve keeps.

    Args:
        layers: for each, the singular values that act, strongest first, and the gains (r,) of those that are kept.

    Returns:
        `layers`: how many; `sigma` (R,): root mean square of the layers' values, from the first place to the last of
        the largest rank; `share` (R,): of the whole energy, the sum of squares, that lies there; `groups`: by rank,
        how the energy before and after the keeping lies along that rank's own values, shares of the whole.
        A value of a smaller rank counts where its place, 0 to 1, is nearest. {} where no layer has values.
    """
    pairs = [(sigma.detach().cpu().double().square(), gains.cpu().double().square()) for sigma, gains in layers]
    if not pairs:
        return {}
    ranks = sorted({len(squares) for squares, _ in pairs})
    whole = float(torch.stack([squares.sum() for squares, _ in pairs]).sum()) or 1.0
    sums, counts, groups = torch.zeros(ranks[-1]).double(), torch.zeros(ranks[-1]).double(), []
    for rank in ranks:
        of_rank = [pair for pair in pairs if len(pair[0]) == rank]
        energy = torch.stack([squares for squares, _ in of_rank]).sum(0)
        kept = torch.stack([squares * gains for squares, gains in of_rank]).sum(0)
        places = torch.arange(rank).double() / max(rank - 1, 1)
        nearest = (places * (ranks[-1] - 1) + 0.5).floor().long()  # as web/spectrum.mjs rounds
        sums.index_add_(0, nearest, energy)
        counts.index_add_(0, nearest, torch.full((rank,), float(len(of_rank))).double())
        groups.append({"rank": rank, "energy": _told(energy / whole), "kept": _told(kept / whole)})
    return {
        "layers": len(pairs),
        "sigma": _told((sums / counts.clamp_min(1)).sqrt()),
        "share": _told(sums / whole),
        "groups": groups,
    }


def _told(values: Tensor) -> list[float]:
    return [float(f"{value:.{DIGITS}g}") for value in values.tolist()]
