"""What is learned: noise a latent, predict, and measure the error in the model's own prediction space."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor


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
    difference = denoiser.denoised(noisy, levels, conditions) - target
    return (difference.flatten(1) / denoiser.output_scale(levels)[:, None]).square().mean(1)


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
