"""Pictures and captions to latents and conditioning, by the graph's own VAE and CLIP."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..trilora.dataset import Dataset
from ..trilora.objective import Example, Variants
from .denoiser import ComfyDenoiser

Tick = Callable[[str], None]


@dataclass
class Encoded:
    dataset: Dataset
    latents: list[Tensor]
    captions: dict[str, list]
    identity: str

    @property
    def largest(self) -> torch.Size:
        return max((latent.shape for latent in self.latents), key=torch.Size.numel)


def encode(dataset: Dataset, clip, vae, plain: bool, tick: Tick) -> Encoded:
    latents, digest = [], hashlib.sha256()
    for picture in dataset.pictures:
        tick(f"encoding {picture.name}")
        pixels = picture.pixels(dataset.size_of(picture))[None]
        digest.update(pixels.numpy().tobytes())
        latents.append(vae.encode(pixels[..., :3])[0].float().cpu())
    captions = [dataset.prompt_of(picture) for picture in dataset.pictures]
    if plain:
        captions += [picture.caption for picture in dataset.pictures]
    encoded = {}
    for caption in dict.fromkeys(captions):
        tick(f"encoding “{caption}”")
        encoded[caption] = clip.encode_from_tokens_scheduled(clip.tokenize(caption))
    digest.update(repr(captions).encode())
    return Encoded(dataset, latents, encoded, digest.hexdigest())


def examples(denoiser: ComfyDenoiser, encoded: Encoded) -> list[Variants]:
    """What training takes: latents scaled as the model wants them, one caption each, and the plain caption."""
    made: list[Variants] = []
    dataset, captions = encoded.dataset, encoded.captions
    for picture, raw in zip(dataset.pictures, encoded.latents, strict=True):
        latent = denoiser.model.process_latent_in(raw.clone()).to(denoiser.device, torch.float32)
        condition = denoiser.encode(captions[dataset.prompt_of(picture)], latent)
        plain = denoiser.encode(captions[picture.caption], latent) if picture.caption in captions else None
        made.append((Example(latent, condition, plain),))
    return made


def fingerprint(patcher) -> str:
    digest = hashlib.sha256()
    for key, tensor in patcher.model.state_dict().items():
        flat = tensor.flatten()
        digest.update(f"{key} {tuple(tensor.shape)} {flat[:: max(1, flat.numel() // 64)].float().tolist()}".encode())
    return digest.hexdigest()
