"""Everything random about a step: which pictures, how they are shown, their noise, and what of the adapter sits out."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from .dataset import Batches
from .objective import Example, Variants, quantiles
from .seeds import generator
from .settings import Settings
from .team import Alone, Team


@dataclass(frozen=True)
class Item:
    """One picture of a step as it is shown: which variant and caption, its noise, its quantile of the noise levels.

    Attributes:
        example: with the condition of this showing.
        noise: shaped as the latent.
        quantile: in [0, 1).
        preserved: whether the distance to the base is taken here.
    """

    example: Example
    noise: Tensor
    quantile: float
    preserved: bool


class Draws:
    """Everything random about the pictures of a step: a function of (seed, step, place in the step) alone.

    So two passes of half a batch are one whole batch, as are two processes of a team, and a run can go on from any
    step.
    """

    def __init__(
        self, pictures: Sequence[Variants], settings: Settings, stream: str = "noise", team: Team | None = None
    ) -> None:
        self.pictures, self.settings, self.stream, self.team = pictures, settings, stream, team or Alone()
        sizes = tuple(tuple(variants[0].latent.shape) for variants in pictures)
        self.order = Batches(sizes, settings.pictures, settings.seed, settings.samples)

    def at(self, number: int, chunk: int = 0) -> list[Item]:
        """This process's pictures of a pass of a step, counted from 1."""
        own = self.settings.batch // self.team.count
        first = chunk * self.settings.batch + self.team.index * own
        places = range(first, first + own)
        picked = self.order.at(number - 1)
        return [self._item(number, place, self.pictures[picked[place]]) for place in places]

    def _item(self, number: int, place: int, variants: Variants) -> Item:
        settings = self.settings
        draw = generator(settings.seed, self.stream, number, place)
        noise = torch.randn(variants[0].latent.shape, generator=draw)
        uniform, dropped, variant = torch.rand(3, generator=draw).unbind()
        if settings.noise_offset:
            constant = torch.randn(noise.shape[0], *[1] * (noise.ndim - 1), generator=draw)
            noise = noise + settings.noise_offset * constant
        example = variants[int(variant * len(variants))]
        if dropped < settings.caption_dropout:
            example = replace(example, condition=example.blank)
        count = (number - 1) * settings.pictures + place
        return Item(example, noise, float(quantiles(uniform, settings)), count % settings.preserve_every == 0)


@contextmanager
def sitting_out(layers: Mapping[str, nn.Module], settings: Settings, number: int, chunk: int) -> Iterator[None]:
    """Rank and layer dropout within the block; what takes part is scaled up, so that the mean stays."""
    if not (settings.rank_dropout or settings.layer_dropout):
        yield
        return
    draw = generator(settings.seed, "dropout", number, chunk)
    keep_rank, keep_layer = 1 - settings.rank_dropout, 1 - settings.layer_dropout
    for layer in layers.values():
        sigma = layer.factors().sigma  # type: ignore[operator]
        ranks = (torch.rand(sigma.shape[-1], generator=draw) < keep_rank) / keep_rank
        layer.gains = (ranks * (torch.rand(1, generator=draw) < keep_layer) / keep_layer).to(sigma)
    try:
        yield
    finally:
        for layer in layers.values():
            layer.gains = None  # type: ignore[assignment]
