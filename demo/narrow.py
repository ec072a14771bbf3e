"""TAESD with fewer channels at the fine levels: a quarter of the work, and zero-padded it is the full architecture."""

from __future__ import annotations

import torch
from diffusers import AutoencoderTiny
from torch import nn

WIDTHS = (16, 32, 64, 64)  # from full resolution down to an eighth
FULL = (64, 64, 64, 64)


def narrow_autoencoder() -> AutoencoderTiny:
    """AutoencoderTiny with WIDTHS; its level changes are rebuilt, since diffusers expects one width throughout."""
    vae = _tiny(WIDTHS)
    _rebuild(vae.encoder.layers, WIDTHS, stride=2)
    _rebuild(vae.decoder.layers, WIDTHS[::-1], stride=1)
    return vae


def full_autoencoder() -> AutoencoderTiny:
    """The TAESD architecture; latents come out with mean 0 and deviation 1, so no scaling is left to do."""
    return _tiny(FULL)


def widened(vae: AutoencoderTiny) -> AutoencoderTiny:
    """The same function in the full architecture: every weight that the narrow one lacks is zero."""
    full = full_autoencoder()
    state = full.state_dict()
    for name, small in vae.state_dict().items():
        padded = torch.zeros_like(state[name])
        padded[tuple(slice(n) for n in small.shape)] = small
        state[name] = padded
    full.load_state_dict(state)
    return full


def _tiny(widths: tuple[int, ...]) -> AutoencoderTiny:
    return AutoencoderTiny(
        encoder_block_out_channels=widths,
        decoder_block_out_channels=widths[::-1],
        scaling_factor=1.0,
        force_upcast=False,
    ).to(memory_format=torch.channels_last)


def _rebuild(layers: nn.Sequential, widths: tuple[int, ...], stride: int) -> None:
    """Replaces the convolutions that lead from one level to the next; they are the only ones without a bias."""
    places = [i for i, m in enumerate(layers) if isinstance(m, nn.Conv2d) and m.bias is None]
    for i, before, after in zip(places, widths[:-1], widths[1:], strict=True):
        conv = nn.Conv2d(before, after, 3, stride=stride, padding=1, bias=False)
        layers[i] = conv.to(memory_format=torch.channels_last)
