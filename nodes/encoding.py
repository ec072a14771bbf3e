"""Pictures and captions by the graph's own VAE and CLIP."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import folder_paths
from comfy.model_base import SDXL, HunyuanDiT, SDXLRefiner
from torch import Tensor

from ..trilora import encoding
from ..trilora.buckets import Size
from ..trilora.cache import Cache
from ..trilora.dataset import Dataset
from ..trilora.encoding import Encoded, Shown, Tick
from ..trilora.objective import Variants
from ..trilora.shelf import mapped
from . import fingerprint
from .denoiser import ComfyDenoiser

SIZED = (SDXL, SDXLRefiner, HunyuanDiT)  # they are told a picture's size and what was cut off


def kept_on_disk() -> Cache:
    """The cache that every run shares."""
    return Cache(Path(folder_paths.get_output_directory()) / "TriLoRA" / "encoded")


def encode(dataset: Dataset, clip, vae, plain: bool, tick: Tick, cache: Cache | None = None) -> Encoded:
    """`trilora.encoding.encode` by the graph's CLIP and VAE; run it before the MODEL is lent."""
    return encoding.encode(dataset, GraphEncoder(clip, None if dataset.encoded else vae), plain, tick, cache)


def examples(denoiser: ComfyDenoiser, encoded: Encoded) -> list[Variants]:
    """`trilora.encoding.examples` for a lent MODEL."""
    return encoding.examples(ModelTeller(denoiser), encoded)


class GraphEncoder:
    """`trilora.encoding.Encoder` of a CLIP and a VAE."""

    def __init__(self, clip: Any, vae: Any | None) -> None:
        self.clip, self.vae = clip, vae
        self.names: Mapping[str, str | None] = {
            "clip": fingerprint.of_clip(clip),
            "vae": None if vae is None else fingerprint.of_vae(vae),
        }

    def latent(self, pixels: Tensor) -> Tensor:
        return self.vae.encode(pixels[None])[0].float().cpu()

    def read(self, prompt: str) -> list:
        return self.clip.encode_from_tokens_scheduled(self.clip.tokenize(prompt))


class ModelTeller:
    """`trilora.encoding.Teller` of a lent MODEL."""

    def __init__(self, denoiser: ComfyDenoiser) -> None:
        self.denoiser = denoiser

    def scaled(self, raw: Tensor) -> Tensor:
        return self.denoiser.model.process_latent_in(raw.clone()).float().cpu()

    def told(self, read: list, latent: Tensor, size: Size, shown: Shown | None) -> dict[str, Any]:
        sizes = _sizes(size, shown) if shown and isinstance(self.denoiser.model, SIZED) else {}
        return self.denoiser.encode([[cond, {**about, **sizes}] for cond, about in read], latent)

    def mapped(self, told: dict[str, Any], change: Callable[[Tensor], Tensor]) -> dict[str, Any]:
        return {name: cond._copy_with(mapped(cond.cond, change)) for name, cond in told.items()}


def _sizes(size: Size, shown: Shown) -> dict[str, int]:
    """SDXL (arXiv 2307.01952, section 2.2): the size before scaling, what was cut off after it, and the bucket."""
    (width, height), (left, top) = shown
    return {
        **{"width": width, "height": height, "crop_w": left, "crop_h": top},
        **{"target_width": size[0], "target_height": size[1]},
    }
