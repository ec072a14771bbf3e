"""Frozen layers whose backward fetches the weight again: grad_x = grad_y · W, and the graph holds no weight."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

Fetch = Callable[[nn.Module, Tensor], AbstractContextManager[Tensor]]
"""The layer's weight, dense, in the given tensor's dtype and on its device, for the length of a block."""


def frozen(layer: nn.Module, x: Tensor, run: Callable[[Tensor], Tensor], fetch: Fetch) -> Tensor:
    """y = layer(x) for a linear layer or a convolution, differentiable in x alone.

    Weights that are streamed to the device, cast or dequantised for each use would otherwise stay in the graph, as
    a second copy of the model, or be overwritten before the backward reads them.

    Args:
        layer: has `weight`, and a convolution's attributes where that is not a matrix.
        x: (..., in) or (batch, in, ...).
        run: the layer's own forward; runs without autograd.
        fetch: the weight that `run` used, once more.
    """
    result: Tensor = _Frozen.apply(x, layer, run, fetch)
    return result


class _Frozen(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: nn.Module, run: Callable[[Tensor], Tensor], fetch: Fetch) -> Tensor:
        ctx.layer, ctx.fetch, ctx.shape, ctx.dtype = layer, fetch, x.shape, x.dtype
        return run(x.detach())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        with ctx.fetch(ctx.layer, gradient) as weight:
            return input_gradient(ctx.layer, weight, gradient, ctx.shape).to(ctx.dtype), None, None, None


def lying(layer: nn.Module, x: Tensor, run: Callable[[Tensor], Tensor]) -> Tensor:
    """As `frozen`, for a convolution whose weight lies on the device and stays there; autograd itself would keep x."""
    result: Tensor = _Lying.apply(x, layer, run)
    return result


class _Lying(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: nn.Module, run: Callable[[Tensor], Tensor]) -> Tensor:
        ctx.layer, ctx.shape, ctx.dtype = layer, x.shape, x.dtype
        return run(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        weight = ctx.layer.weight.to(gradient.dtype)
        return input_gradient(ctx.layer, weight, gradient, ctx.shape).to(ctx.dtype), None, None


def input_gradient(layer: Any, weight: Tensor, gradient: Tensor, shape: torch.Size) -> Tensor:
    """What a linear layer's or convolution's input of the given shape gets from its output's gradient."""
    if weight.ndim == 2:
        return (gradient.reshape(-1, weight.shape[0]) @ weight).view(shape)
    sides = weight.ndim - 2
    found: Tensor = torch.ops.aten.convolution_backward(
        gradient, gradient.new_empty(shape), weight, None, layer.stride, layer.padding, layer.dilation, False,
        [0] * sides, layer.groups, (True, False, False),
    )[0]  # fmt: skip
    return found
