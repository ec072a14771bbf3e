"""The trainable modules: each turns a layer's input into the adapter's addition to its output."""

from functools import partial
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from .errors import TriLoRAError
from .factors import GAUSSIAN_STD, Factors, Window, check_rank, forward, gaussian, initial, left, root_split, scaled


@runtime_checkable
class AdapterLayer(Protocol):
    """What training needs of an adapter on one linear layer or convolution."""

    def __call__(self, x: Tensor) -> Tensor:
        """x ΔWᵀ: (..., in) -> (..., out), or the convolution of x with ΔW: (B, in, ...) -> (B, out, ...)."""
        ...

    def factors(self) -> Factors:
        """The present factors with every scale folded into sigma; gradients flow through them."""
        ...


class Addition(nn.Module):
    """What the methods share: the pass of the present factors.

    Attributes:
        gains: on the singular values, for what sits out the present pass; None for nothing.
        window: how the layer's convolution looks at its input; None for a linear layer.
    """

    gains: Tensor | None = None
    window: Window | None = None

    def factors(self) -> Factors:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        factors = self.factors()
        return forward(x, factors if self.gains is None else scaled(factors, self.gains), self.window)


class TriLoRALayer(Addition):
    """ΔW = g · U Σ Vᵀ with all three factors trained (paper, Eq. 5).

    Args:
        start: factors to begin with; a two-dimensional sigma makes the full core of Figure 1.
        gain: g, a constant on the whole product; alpha / rank.
        orthonormal: keep u and vh on the Stiefel manifold (see `stiefel`).
    """

    def __init__(self, start: Factors, gain: float = 1.0, orthonormal: bool = False) -> None:
        super().__init__()
        self.u = nn.Parameter(start.u.detach().float().clone())  # (out, r)
        self.sigma = nn.Parameter(start.sigma.detach().float().clone())  # (r,) or (r2, r1)
        self.vh = nn.Parameter(start.vh.detach().float().clone())  # (r, *in)
        self.gain = gain
        self.orthonormal = orthonormal

    def factors(self) -> Factors:
        return Factors(self.u, self.sigma * self.gain, self.vh)


class LoRALayer(Addition):
    """ΔW = g · up @ down: the baseline (Hu et al. 2021), down Gaussian, up zero.

    Args:
        up: (out, r).
        down: (r, *in).
        gain: g = alpha / rank.
    """

    ones: Tensor

    def __init__(self, up: Tensor, down: Tensor, gain: float = 1.0) -> None:
        super().__init__()
        self.up = nn.Parameter(up.detach().float().clone())
        self.down = nn.Parameter(down.detach().float().clone())
        self.register_buffer("ones", torch.full((down.shape[0],), gain), persistent=False)

    def factors(self) -> Factors:
        return Factors(self.up, self.ones, self.down)


METHODS = ("trilora", "lora")
CORES = ("diagonal", "full")
INITIALISATIONS = ("balanced", "paper", "orthogonal")
NOTHING = 1e-6  # RMS of a Σ that is none: its size, shared between U and V, would leave them too small to learn


def create(
    method: str,
    weight: Tensor,
    rank: int,
    gain: float,
    generator: torch.Generator,
    core: str = "diagonal",
    initialisation: str = "balanced",
    layer: str = "the layer",
) -> TriLoRALayer | LoRALayer:
    """A fresh adapter layer for the frozen weight (out, in), float32 on the weight's device, with delta = 0.

    For `lora`, the initialisation `paper` is the std 1/r of diffusers 0.24, on which the paper was built.

    Raises:
        RankError: the weight cannot hold the rank; names `layer`.
    """
    out_features, in_features = weight.shape
    check_rank(rank, out_features, in_features, layer)
    if method == "lora":
        std = 1 / rank if initialisation == "paper" else GAUSSIAN_STD
        down = gaussian((rank, in_features), std, generator)
        return LoRALayer(torch.zeros(out_features, rank), down, gain).to(weight.device)
    if method != "trilora":
        raise TriLoRAError(f"Method {method!r} is unknown; choose {' or '.join(METHODS)}.")
    start = initial(initialisation, weight, rank, generator)
    if core == "full":
        start = start._replace(sigma=torch.diag(start.sigma))
    return TriLoRALayer(start, gain, orthonormal=initialisation == "orthogonal").to(weight.device)


def resume(
    method: str, start: Factors, gain: float, orthonormal: bool = False, core: str = "diagonal"
) -> TriLoRALayer | LoRALayer:
    """An adapter layer that goes on from canonical factors, with the same delta.

    Σ is brought to RMS 1 and its size shared between U and V, as a fresh layer has it, so that the usual learning
    rates fit; `lora` splits √σ. An orthonormal layer takes the factors as they are, as does one that adds nothing yet.
    """
    scale = start._replace(sigma=start.sigma / gain)
    if method == "lora":
        split = (left(scale), scale.vh) if _rms(scale.sigma) < NOTHING else root_split(scale)
        return LoRALayer(*split, gain)
    size = torch.ones(()) if orthonormal else _size(scale.sigma)
    root, sigma = size.sqrt(), scale.sigma / size
    middle = torch.diag(sigma) if core == "full" else sigma
    return TriLoRALayer(Factors(start.u * root, middle, start.vh * root), gain, orthonormal)


def resume_sigma(start: Factors) -> TriLoRALayer:
    """A layer whose Σ alone learns: U and V of canonical factors bit for bit, Σ at RMS 1 with its size as the gain."""
    size = _size(start.sigma)
    layer = TriLoRALayer(start._replace(sigma=start.sigma / size), float(size))
    layer.requires_grad_(False)
    layer.sigma.requires_grad_(True)
    return layer


def window_of(module: nn.Module) -> Window | None:
    """How a convolution looks at its input: its own stride, padding, dilation and way of padding; None for others."""
    if not isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        return None
    if module.groups != 1:
        raise TriLoRAError(f"A convolution in {module.groups} groups can't learn. Leave its layer out of the adapter.")
    return partial(module._conv_forward, bias=None)


def _rms(sigma: Tensor) -> Tensor:
    return sigma.square().mean().sqrt()


def _size(sigma: Tensor) -> Tensor:
    """What Σ is divided by; 1 where it is nothing."""
    size = _rms(sigma)
    return size if size >= NOTHING else torch.ones_like(size)
