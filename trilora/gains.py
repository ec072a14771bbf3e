"""Gains on singular values: which of them act, and how much. Pure functions on the spectra of an adapter.

Everywhere: layer name -> canonical sigma (r,), descending, of one adapter; and layer name -> gains (r,) back.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

Spectra = Mapping[str, Tensor]
Gains = dict[str, Tensor]


def first(spectra: Spectra, count: int) -> Gains:
    """1 for the first `count` values of each layer, 0 for the rest."""
    return {name: (torch.arange(len(sigma), device=sigma.device) < count).float() for name, sigma in spectra.items()}


def first_overall(spectra: Spectra, count: int) -> Gains:
    """1 for the `count` largest values of all layers together, 0 for the rest."""
    if not spectra:
        return {}
    every = torch.cat(list(spectra.values()))
    gains = torch.zeros_like(every)
    gains[every.argsort(descending=True, stable=True)[:count]] = 1
    return dict(zip(spectra, torch.split(gains, [len(sigma) for sigma in spectra.values()]), strict=True))


def holding(spectra: Spectra, share: float) -> Gains:
    """1 for the fewest values of each layer that hold `share` of its energy Σσ², 0 for the rest."""
    if share >= 1:
        return {name: torch.ones_like(sigma) for name, sigma in spectra.items()}
    gains = {}
    for name, sigma in spectra.items():
        squares = sigma.double().square()
        before = squares.cumsum(0) - squares  # the energy of the values ahead of each
        gains[name] = (before < share * squares.sum()).to(sigma.dtype)
    return gains


def along(spectra: Spectra, curve: Callable[[Tensor], Tensor]) -> Gains:
    """The curve's gain at each value's place: 0 for a layer's strongest value, 1 for its weakest."""
    return {name: curve(torch.linspace(0, 1, len(sigma))).to(sigma) for name, sigma in spectra.items()}


def times(one: Gains, other: Gains) -> Gains:
    """The product of gains, value by value."""
    return {name: one[name] * other[name] for name in one}
