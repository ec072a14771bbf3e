"""Pictures and captions to latents and conditioning, by the graph's own VAE and CLIP."""

from collections.abc import Callable

import torch
from torch import Tensor

from ..trilora.dataset import Dataset
from ..trilora.objective import Example
from .denoiser import ComfyDenoiser

Tick = Callable[[str], None]


def encode_latents(vae, dataset: Dataset, tick: Tick) -> list[Tensor]:
    """The latent of each picture as the VAE gives it, without batch dimension."""
    latents = []
    for picture in dataset.pictures:
        tick(f"encoding {picture.name}")
        pixels = picture.pixels(dataset.size_of(picture))[None]
        latents.append(vae.encode(pixels[..., :3])[0].float().cpu())
    return latents


def encode_captions(clip, captions: list[str], tick: Tick) -> dict[str, list]:
    """Each different caption's conditioning."""
    encoded = {}
    for caption in dict.fromkeys(captions):
        tick(f"encoding “{caption}”")
        encoded[caption] = clip.encode_from_tokens_scheduled(clip.tokenize(caption))
    return encoded


def examples(
    denoiser: ComfyDenoiser, dataset: Dataset, latents: list[Tensor], captions: dict[str, list]
) -> list[Example]:
    """What training takes: latents scaled as the model wants them, one caption each, and the plain caption."""
    made = []
    for picture, raw in zip(dataset.pictures, latents, strict=True):
        latent = denoiser.model.process_latent_in(raw.clone()).to(denoiser.device, torch.float32)
        condition = denoiser.encode(captions[dataset.prompt_of(picture)], latent)
        plain = denoiser.encode(captions[picture.caption], latent) if picture.caption in captions else None
        made.append(Example(latent, condition, plain))
    return made
