"""Pictures and captions by the pipeline's own VAE and text encoders."""

import importlib.metadata
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from .. import encoding
from ..buckets import Size
from ..cache import Cache, digest, thinned
from ..dataset import Dataset
from ..encoding import Encoded, Shown, Tick
from ..objective import Variants
from .denoiser import Condition, DiffusersDenoiser

PACKAGES = ("diffusers", "transformers")


class PipelineEncoder:
    """`trilora.encoding.Encoder` of a denoiser's pipeline."""

    def __init__(self, denoiser: DiffusersDenoiser) -> None:
        self.denoiser, self.pipe = denoiser, denoiser.pipe
        texts = [self.pipe.text_encoder, getattr(self.pipe, "text_encoder_2", None)]
        self.names: Mapping[str, str | None] = {
            "vae": named(self.pipe.vae),
            "clip": digest([named(text) for text in texts if text]),
        }

    @torch.no_grad()
    def latent(self, pixels: Tensor) -> Tensor:
        vae = self.pipe.vae
        with whole(vae):
            encoded = vae.encode(pixels.movedim(-1, 0)[None].to(vae.device) * 2 - 1)
        latent: Tensor = encoded.latents if hasattr(encoded, "latents") else encoded.latent_dist.mode()
        return latent[0].float().cpu()

    def read(self, prompt: str) -> Condition:
        return self.denoiser.read(prompt)


class PipelineTeller:
    """`trilora.encoding.Teller` of a denoiser's pipeline."""

    def __init__(self, denoiser: DiffusersDenoiser) -> None:
        self.denoiser, config = denoiser, denoiser.pipe.vae.config
        self.scale, self.shift = config.scaling_factor, config.get("shift_factor") or 0.0

    def scaled(self, raw: Tensor) -> Tensor:
        latent: Tensor = (raw - self.shift) * self.scale
        return latent.float().cpu()

    def told(self, read: Condition, latent: Tensor, size: Size, shown: Shown | None) -> Condition:
        return self.denoiser.told(read, size, shown)

    def mapped(self, told: Condition, change: Callable[[Tensor], Tensor]) -> Condition:
        return {name: change(tensor) for name, tensor in told.items()}


def encode(
    denoiser: DiffusersDenoiser, dataset: Dataset, plain: bool = True, cache: Cache | None = None,
    tick: Tick = lambda *_: None,
) -> tuple[list[Variants], Encoded]:  # fmt: skip
    """What training takes, and what was encoded for it; see `trilora.encoding.encode`.

    Args:
        denoiser: its pipeline encodes.
        dataset: pictures.
        plain: captions without the trigger word too, for preserving the base; there are none without a trigger word.
        cache: where encodings are kept for the next run; None for nowhere.
        tick: told of each thing that is encoded.
    """
    encoded = encoding.encode(dataset, PipelineEncoder(denoiser), plain, tick, cache)
    return encoding.examples(PipelineTeller(denoiser), encoded), encoded


@contextmanager
def whole(vae: Any) -> Iterator[None]:
    """A VAE in float32 within the block, because SDXL's overflows in float16."""
    stored = vae.dtype
    if stored == torch.float32:
        yield
        return
    vae.to(torch.float32)
    try:
        yield
    finally:
        vae.to(stored)


def named(module: nn.Module) -> str:
    """A name for a model's weights, the same in every run; of each weight some numbers are read."""
    versions = [importlib.metadata.version(package) for package in PACKAGES]
    weights = {name: thinned(tensor) for name, tensor in module.state_dict().items()}
    return digest([versions, type(module).__name__, weights])
