"""First weights for the autoencoder: it begins as a blurred picture of the right colours and learns the detail."""

from __future__ import annotations

import torch
from diffusers import AutoencoderTiny
from diffusers.models.autoencoders.vae import AutoencoderTinyBlock
from torch import Tensor, nn

BLUR = torch.tensor([1.0, 2.0, 1.0])[:, None] * torch.tensor([1.0, 2.0, 1.0]) / 16
# brightness, warm against cold, green against purple; scaled to deviation of about 1 on the drawn world
TO_LATENT = torch.tensor([[1.6, 1.9, 1.6], [4.4, 0.0, -4.4], [-3.0, 6.0, -3.0]])


@torch.no_grad()
def give_head_start(vae: AutoencoderTiny) -> None:
    """Channels 0 to 2 carry the picture's colours through encoder and decoder; the others start at random."""
    for module in vae.modules():
        if isinstance(module, AutoencoderTinyBlock):
            _nearly_identity(module)
        elif isinstance(module, nn.Conv2d) and module.bias is None:
            _carry(module, torch.eye(3), BLUR)
    first, last = vae.encoder.layers[0], vae.encoder.layers[-1]
    _carry(first, torch.eye(3), _centre())
    _carry(last, TO_LATENT, _centre(), -TO_LATENT.sum(1) * 0.55, rest=0.3)
    back = torch.linalg.inv(TO_LATENT)
    first, last = vae.decoder.layers[0], vae.decoder.layers[-1]
    _carry(first, back, _centre(), torch.full((3,), 0.55))
    _carry(last, torch.eye(3), _centre(), torch.zeros(3), rest=0.3)


def _centre() -> Tensor:
    """A 3 x 3 kernel that only looks at its own pixel."""
    return torch.zeros(3, 3).index_put((torch.tensor(1), torch.tensor(1)), torch.tensor(1.0))


def _carry(conv: nn.Conv2d, colours: Tensor, kernel: Tensor, bias: Tensor | None = None, rest: float = 1.0) -> None:
    """Sets the first three channels to `colours` of the first three inputs; scales what else flows in by `rest`."""
    conv.weight.mul_(rest)
    conv.weight[:3] *= 0.1
    conv.weight[:3, :3] = colours[:, :, None, None] * kernel
    if conv.bias is not None:
        conv.bias[:3] = torch.zeros(3) if bias is None else bias


def _nearly_identity(block: AutoencoderTinyBlock) -> None:
    """The residual starts small, with weights that keep the size of what passes."""
    for conv in block.conv:
        if isinstance(conv, nn.Conv2d):
            nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
            nn.init.zeros_(conv.bias)
    block.conv[-1].weight.mul_(0.1)
