"""Pictures and captions to latents and conditioning, by the graph's own VAE and CLIP, each only once."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import folder_paths
import torch
from comfy.model_base import SDXL, HunyuanDiT, SDXLRefiner
from torch import Tensor

from ..trilora.cache import Cache, digest
from ..trilora.dataset import Dataset
from ..trilora.objective import Example, Variants
from ..trilora.pictures import Picture
from . import fingerprint
from .denoiser import ComfyDenoiser

Tick = Callable[[str, int, int], None]  # what is done, how many are done, of how many; may raise to cancel
SIZED = (SDXL, SDXLRefiner, HunyuanDiT)  # they are told a picture's size and what was cut off
FORMAT = 1  # of the cache's entries


@dataclass(frozen=True)
class Encoded:
    """A data set, encoded.

    Attributes:
        dataset: what was encoded.
        latents: of each picture, as it is and (if asked for) mirrored: as the VAE gives them, no batch dimension.
        masks: of each picture, beside each of its latents; None where all counts.
        captions: each prompt's conditioning; of pictures that came encoded, only the empty prompt's.
        plain: whether captions without the trigger word are among them.
        identity: a hash of all that decides the run's data: pictures, captions, masks, settings, VAE and CLIP.
    """

    dataset: Dataset
    latents: tuple[tuple[Tensor, ...], ...]
    masks: tuple[tuple[Tensor | None, ...], ...]
    captions: dict[str, list]
    plain: bool
    identity: str

    @property
    def largest(self) -> torch.Size:
        """Shape of the largest latent."""
        return max((ways[0].shape for ways in self.latents), key=torch.Size.numel)


def kept_on_disk() -> Cache:
    """The cache that every run shares."""
    return Cache(Path(folder_paths.get_output_directory()) / "TriLoRA" / "encoded")


def encode(dataset: Dataset, clip, vae, plain: bool, tick: Tick, cache: Cache | None = None) -> Encoded:
    """Every picture and every caption, encoded once; run it before the MODEL is lent.

    Args:
        dataset: pictures, or latents with conditioning, which pass through.
        clip: the graph's CLIP.
        vae: the graph's VAE.
        plain: whether captions without the trigger word are wanted, for preserving the base.
        tick: told of each thing that is encoded.
        cache: where encodings are kept for the next run; None for nowhere.

    Raises:
        DataError: a mask that leaves nothing, or a picture that is gone.
    """
    plain = plain and dataset.has_plain
    prompts = _prompts(dataset, plain)
    names = {"clip": fingerprint.of_clip(clip), "vae": None if dataset.encoded else fingerprint.of_vae(vae)}
    work = _Work(cache, tick, len(dataset.pictures) + len(prompts), names)
    masks = [dataset.weights_of(picture) for picture in dataset.pictures]  # a bad one is told before the slow part
    latents = [work.latents(dataset, picture, vae) for picture in dataset.pictures]
    captions = {prompt: work.caption(prompt, clip) for prompt in prompts}
    if cache:
        cache.trim()
    small = [_small(mask, ways) for mask, ways in zip(masks, latents, strict=True)]
    identity = digest([dataset.identity(), names])
    return Encoded(dataset, tuple(latents), tuple(small), captions, plain, identity)


def examples(denoiser: ComfyDenoiser, encoded: Encoded) -> list[Variants]:
    """What training takes: every picture in every way that it is shown, latents scaled as the model wants them.

    A picture that repeats is listed as often.
    """
    told = _Told(denoiser, encoded)
    made = []
    for picture, latents, masks in zip(encoded.dataset.pictures, encoded.latents, encoded.masks, strict=True):
        shown: list[Example] = []
        for raw, mask in zip(latents, masks, strict=True):
            latent = denoiser.model.process_latent_in(raw.clone()).to(denoiser.device, torch.float32)
            mask = None if mask is None else mask.clone().to(denoiser.device)
            shown += (Example(latent, *texts, mask=mask, blank=blank) for *texts, blank in told.of(picture, latent))
        made.append(tuple(shown))
    return made * encoded.dataset.repeats


def _prompts(dataset: Dataset, plain: bool) -> list[str]:
    """Every text to encode, once."""
    captions = [] if dataset.encoded else [c for picture in dataset.pictures for c in dataset.captions_of(picture)]
    blank = [""] if dataset.caption_dropout else []
    return list(dict.fromkeys([*map(dataset.prompt, captions), *(captions if plain else []), *blank]))


def _small(mask: Tensor | None, latents: tuple[Tensor, ...]) -> tuple[Tensor | None, ...]:
    """The mask averaged over each latent's cell; for the mirrored latent, mirrored."""
    if mask is None:
        return (None,) * len(latents)
    small = torch.nn.functional.adaptive_avg_pool2d(mask[None, None], latents[0].shape[-2:])[0, 0]
    return (small, small.flip(-1))[: len(latents)]


@dataclass
class _Work:
    """Encoding with a bar and a cache."""

    cache: Cache | None
    tick: Tick
    total: int
    names: dict[str, str | None]
    done: int = 0

    def latents(self, dataset: Dataset, picture: Picture, vae) -> tuple[Tensor, ...]:
        self._next(f"encoding {picture.name}")
        if dataset.encoded:
            return (picture.source.latent.float().cpu(),)

        def make() -> list[Tensor]:
            pixels = dataset.pixels_of(picture)
            ways = (pixels, pixels.flip(1)) if dataset.mirror else (pixels,)
            return [vae.encode(way[None])[0].float().cpu() for way in ways]

        shown = [dataset.size_of(picture), dataset.fit, dataset.mirror]
        return tuple(self._kept(["latents", FORMAT, picture.digest(), shown, self.names["vae"]], make))

    def caption(self, prompt: str, clip) -> list:
        self._next(f"encoding “{prompt}”")

        def make() -> list:
            return clip.encode_from_tokens_scheduled(clip.tokenize(prompt))

        if self.names["clip"] is None or "embedding:" in prompt:  # such a word's file may change
            return make()
        return self._kept(["caption", FORMAT, prompt, self.names["clip"]], make)

    def _kept(self, key: list, make: Callable[[], Any]) -> Any:
        return self.cache.kept(key, make) if self.cache else make()

    def _next(self, text: str) -> None:
        self.done += 1
        self.tick(text, self.done, self.total)


class _Told:
    """What the network is told beside a latent, made once for each text, latent shape and picture size."""

    def __init__(self, denoiser: ComfyDenoiser, encoded: Encoded) -> None:
        self.denoiser, self.encoded, self.dataset, self.made = denoiser, encoded, encoded.dataset, {}

    def of(self, picture: Picture, latent: Tensor) -> list[tuple]:
        """(condition, plain, blank) for each order of a picture's tags."""
        blank = self._text("", picture, latent) if self.dataset.caption_dropout else None
        if self.dataset.encoded:
            return [(self.denoiser.encode(picture.source.conditioning, latent), None, blank)]
        return [
            (
                self._text(self.dataset.prompt(caption), picture, latent),
                self._text(caption, picture, latent) if self.encoded.plain else None,
                blank,
            )
            for caption in self.dataset.captions_of(picture)
        ]

    def _text(self, prompt: str, picture: Picture, latent: Tensor) -> Any:
        sizes = self._sizes(picture)
        key = (prompt, tuple(latent.shape), tuple(sizes.items()))
        if key not in self.made:
            conditioning = [[cond, {**about, **sizes}] for cond, about in self.encoded.captions[prompt]]
            self.made[key] = self.denoiser.encode(conditioning, latent)
        return self.made[key]

    def _sizes(self, picture: Picture) -> dict[str, int]:
        """SDXL (arXiv 2307.01952, section 2.2): the size before scaling, what was cut off after it, and the bucket."""
        if self.dataset.encoded or not isinstance(self.denoiser.model, SIZED):
            return {}
        left, top = self.dataset.placement_of(picture).crop
        width, height = self.dataset.size_of(picture)
        return {
            **{"width": picture.size[0], "height": picture.size[1], "crop_w": left, "crop_h": top},
            **{"target_width": width, "target_height": height},
        }
