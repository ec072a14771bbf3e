"""Factors kept orthonormal while they learn: steps on the Stiefel manifold {X : XᵀX = I} (Edelman et al. 1998)."""

from collections.abc import Iterable

import torch
from torch import Tensor

from .layers import AdapterLayer, TriLoRALayer


def tangent(x: Tensor, direction: Tensor) -> Tensor:
    """The part of `direction` (n, r) that leaves XᵀX = I to first order: D - X sym(XᵀD)."""
    inner = x.T @ direction
    return direction - x @ (inner + inner.T) / 2


def polar(x: Tensor) -> Tensor:
    """The orthonormal matrix nearest to x (n, r): X (XᵀX)^(-1/2), by the r x r eigenproblem."""
    values, vectors = torch.linalg.eigh(x.T @ x)
    root: Tensor = (vectors * values.clamp_min(torch.finfo(x.dtype).tiny).rsqrt()) @ vectors.T
    return x @ root


class Stiefel:
    """Wraps an optimizer's step: Riemannian gradients before it, tangent update and polar retraction after it."""

    def __init__(self, layers: Iterable[AdapterLayer]) -> None:
        kept = [layer for layer in layers if isinstance(layer, TriLoRALayer) and layer.orthonormal]
        self.columns: list[tuple[Tensor, bool]] = [(layer.u, False) for layer in kept]
        self.columns += [(layer.vh, True) for layer in kept]
        self.before: list[Tensor] = []

    @torch.no_grad()
    def prepare(self) -> None:
        """Project every gradient onto the tangent space and remember the point of departure."""
        self.before = [parameter.clone() for parameter, _ in self.columns]
        for parameter, transposed in self.columns:
            if parameter.grad is not None:
                grad = _turn(parameter.grad, transposed)
                grad = _turn(tangent(_turn(parameter, transposed), grad), transposed)
                parameter.grad.copy_(grad.reshape(parameter.shape))

    @torch.no_grad()
    def retract(self) -> None:
        """Project the optimizer's update onto the tangent space and come back to the manifold."""
        for (parameter, transposed), before in zip(self.columns, self.before, strict=True):
            x = _turn(before, transposed)
            step = tangent(x, _turn(parameter, transposed) - x)
            parameter.copy_(_turn(polar(x + step), transposed).reshape(parameter.shape))


def _turn(x: Tensor, transposed: bool) -> Tensor:
    return x.flatten(1).T if transposed else x
