"""Help while learning, gone afterwards: heads that ask the inner features where they are and what will be there.

A convolutional network sees its position only through the zero padding at the borders, and learns to use it late.
Asked for it directly, it does so within minutes, and words such as `on the left` begin to mean something.
"""

from __future__ import annotations

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn
from torch.nn import functional as F

POSITION_WEIGHT, PICTURE_WEIGHT, THING_WEIGHT = 0.05, 0.5, 0.5


class Compass(nn.Module):
    """One 1 x 1 convolution behind each of three inner stages: x, y, the clean latent, the thing's columns."""

    def __init__(self, unet: UNet2DConditionModel) -> None:
        super().__init__()
        self.seen: list[Tensor] = []
        stages = (unet.down_blocks[-1], unet.mid_block, unet.up_blocks[0])
        width = unet.config.block_out_channels[-1]
        self.heads = nn.ModuleList(nn.Conv2d(width, 7, 1) for _ in stages)
        for stage in stages:
            stage.register_forward_hook(self._remember)

    def _remember(self, stage: nn.Module, inputs: tuple, output: Tensor | tuple) -> None:
        self.seen.append(output[0] if isinstance(output, tuple) else output)

    def loss(self, clean: Tensor, centres: Tensor) -> Tensor:
        """Squared errors, summed over the stages; `centres` are the things' x in -1 to 1. Forgets what it saw."""
        total = torch.zeros(())
        for head, features in zip(self.heads, self.seen, strict=True):
            said = head(features)
            wanted = F.adaptive_avg_pool2d(clean, said.shape[-2:])
            total = total + POSITION_WEIGHT * F.mse_loss(said[:, :2], _position(said))
            total = total + PICTURE_WEIGHT * F.mse_loss(said[:, 2:6], wanted)
            total = total + THING_WEIGHT * F.mse_loss(said[:, 6], _columns(said, centres))
        self.seen.clear()
        return total


def _position(like: Tensor) -> Tensor:
    """x and y from -1 to 1 at every cell."""
    y, x = (torch.linspace(-1, 1, n) for n in like.shape[-2:])
    return torch.stack(torch.meshgrid(x, y, indexing="xy")).expand(len(like), -1, -1, -1)


def _columns(like: Tensor, centres: Tensor) -> Tensor:
    """A bump of 1 in the columns around each thing's centre."""
    x = torch.linspace(-1, 1, like.shape[-1])
    bump = torch.exp(-(((x - centres[:, None]) / 0.3) ** 2))
    return bump[:, None].expand(-1, like.shape[-2], -1)
