"""What is learned: noise a latent, predict, and measure the error in the model's own prediction space."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from .settings import Settings


class Denoiser(Protocol):
    """The seam between training and a host: all that training knows of the model it trains."""

    def levels(self, quantiles: Tensor) -> Tensor:
        """Noise levels at quantiles in [0, 1) of the model's own schedule, least noise first: (B,) -> (B,)."""
        ...

    def noised(self, latents: Tensor, noise: Tensor, levels: Tensor) -> Tensor:
        """Latents (B, ...) with noise at the given levels (B,)."""
        ...

    def denoised(self, noisy: Tensor, levels: Tensor, conditions: Sequence[Any]) -> Tensor:
        """The model's estimate of the clean latents, one condition for each: (B, ...)."""
        ...

    def output_scale(self, levels: Tensor) -> Tensor:
        """b in denoised = a - b · output, for each level: (B,)."""
        ...


@dataclass(frozen=True)
class Example:
    """One encoded picture.

    Attributes:
        latent: as the model wants it (scaled), without batch dimension.
        condition: the caption, encoded as the denoiser understands it.
        plain: the caption without the trigger word, encoded; what preservation of the base looks at.
        mask: (height, width) of the latent, weights 0..1 on the error; None where all counts.
        blank: the empty caption, encoded; takes the condition's place where captions are dropped.
    """

    latent: Tensor
    condition: Any
    plain: Any = None
    mask: Tensor | None = None
    blank: Any = None


Variants = tuple[Example, ...]  # one picture in every way that it is shown (mirrored, tags reordered), one latent shape


def errors(denoiser: Denoiser, latents: Tensor, noise: Tensor, quantiles: Tensor, conditions: Sequence[Any]) -> Tensor:
    """Mean squared error of each example in the model's own prediction space: (B,).

    Since denoised = a - b · output, an error in the output is an error in denoised over b, whatever the model
    predicts (eps, v, flow).
    """
    levels = denoiser.levels(quantiles)
    return distances(denoiser, denoiser.noised(latents, noise, levels), levels, conditions, latents)


def distances(denoiser: Denoiser, noisy: Tensor, levels: Tensor, conditions: Sequence[Any], target: Tensor) -> Tensor:
    """Mean squared distance, in prediction space, from the model's estimate to another estimate: (B,)."""
    return gaps(denoiser, denoiser.denoised(noisy, levels, conditions), target, levels)


def gaps(
    denoiser: Denoiser,
    estimate: Tensor,
    target: Tensor,
    levels: Tensor,
    masks: Sequence[Tensor | None] = (),
    huber: float = 0.0,
) -> Tensor:
    """Mean squared distance, in prediction space, between two estimates of the clean latents: (B,).

    Args:
        denoiser: the model, for b of each level.
        estimate: (B, ...).
        target: (B, ...), on any device.
        levels: (B,).
        masks: one for each, (height, width) or None; the mean is then weighted by it.
        huber: δ of the pseudo-Huber loss 2δ(√(e² + δ²) - δ), which is e² for small errors e; 0 for e².
    """
    difference = estimate - target.to(estimate.device)
    scale = denoiser.output_scale(levels).view(-1, *[1] * (difference.ndim - 1))
    squares = (difference / scale).square()
    if huber:
        squares = 2 * huber * ((squares + huber**2).sqrt() - huber)
    if not any(mask is not None for mask in masks):
        return squares.flatten(1).mean(1)
    weights = _weights(masks, squares)
    return (squares * weights).flatten(1).sum(1) / weights.flatten(1).sum(1)


def signal_to_noise(denoiser: Denoiser, levels: Tensor) -> Tensor:
    """(signal / noise)² at each level: (B,), told by noising a latent of 1 with noise 0 and one of 0 with noise 1."""
    one, zero = torch.ones(len(levels), 1, 1, 1), torch.zeros(len(levels), 1, 1, 1)
    signal, noise = denoiser.noised(one, zero, levels), denoiser.noised(zero, one, levels)
    return (signal / noise).square().flatten()


def level_weights(denoiser: Denoiser, levels: Tensor, gamma: float) -> Tensor:
    """min-SNR-γ weights of errors in prediction space: (B,) (Hang et al. 2023, Eq. 8).

    min(SNR, γ) on an error in the clean latent is min(SNR, γ) · b² on an error in the output: min(SNR, γ) / SNR for
    eps, min(SNR, γ) / (SNR + 1) for v.
    """
    if not gamma:
        return torch.ones_like(levels)
    return signal_to_noise(denoiser, levels).clamp_max(gamma) * denoiser.output_scale(levels).square()


def quantiles(uniform: Tensor, settings: Settings) -> Tensor:
    """Quantiles of the model's schedule with the distribution that the settings name, from uniform draws in [0, 1).

    `logit-normal` is that of SD3 (Esser et al. 2024, Eq. 19); `shifted` moves u to s·u / (1 + (s - 1)·u) (Eq. 23).
    """
    if settings.levels == "logit-normal":
        normal: Tensor = torch.special.ndtri(uniform.double().clamp_min(1e-7))
        return (settings.levels_mean + settings.levels_std * normal).sigmoid().float().clamp_max(1 - 1e-6)
    if settings.levels == "shifted":
        return settings.levels_shift * uniform / (1 + (settings.levels_shift - 1) * uniform)
    return uniform


@torch.no_grad()
def score(
    denoiser: Denoiser, examples: Sequence[Example], noise: Sequence[Tensor], quantiles: Sequence[float]
) -> float:
    """Mean error over examples x noise levels at fixed noise: a held-out loss that can be compared between steps.

    Args:
        denoiser: the model, adapters attached or not.
        examples: pictures, not trained on.
        noise: one for each example, shaped as its latent.
        quantiles: noise levels, each in [0, 1).
    """
    total = 0.0
    for example, sample in zip(examples, noise, strict=True):
        for quantile in quantiles:
            batch = (example.latent[None], sample[None], torch.tensor([quantile]))
            total += float(errors(denoiser, *batch, [example.condition]))
    return total / (len(examples) * len(quantiles))


def _weights(masks: Sequence[Tensor | None], like: Tensor) -> Tensor:
    """Masks (height, width) as weights shaped to multiply (B, ..., height, width)."""
    full = torch.ones(like.shape[-2:], device=like.device)
    stacked = torch.stack([full if mask is None else mask.to(like.device, torch.float32) for mask in masks])
    return stacked.view(len(masks), *[1] * (like.ndim - 3), *like.shape[-2:]).expand_as(like)
