"""Pictures and captions to latents and conditions, by whatever host encodes them, each only once."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from .buckets import Size
from .cache import Cache, digest
from .dataset import Dataset
from .objective import Example, Variants
from .pictures import Encoding, Picture
from .shelf import Shelf

Tick = Callable[[str, int, int], None]  # what is done, how many are done, of how many; may raise to cancel
FORMAT = 1  # of the cache's entries


class Shown(NamedTuple):
    """How a picture came to the size that it is trained at."""

    size: Size  # (width, height) before it was scaled
    crop: tuple[int, int]  # (left, top) that was cut off after it


class Encoder(Protocol):
    """What encodes for a host.

    Attributes:
        names: a name for the weights of its `vae` and its `clip`; None for a clip whose encodings can't be kept.
    """

    names: Mapping[str, str | None]

    def latent(self, pixels: Tensor) -> Tensor:
        """(height, width, 3) in 0..1 -> what the VAE makes of it, without batch dimension, float32 on the CPU."""
        ...

    def read(self, prompt: str) -> Any:
        """What the text encoders make of a prompt."""
        ...


class Teller(Protocol):
    """What turns encodings into what a denoiser takes."""

    def scaled(self, raw: Tensor) -> Tensor:
        """A latent as the model wants it, float32 on the CPU."""
        ...

    def told(self, read: Any, latent: Tensor, size: Size, shown: Shown | None) -> Any:
        """The condition of one prompt at one latent; shown is None for a picture that came encoded."""
        ...

    def mapped(self, told: Any, change: Callable[[Tensor], Tensor]) -> Any:
        """A condition with every tensor in it changed."""
        ...


@dataclass(frozen=True)
class Encoded:
    """A data set, encoded.

    Attributes:
        dataset: what was encoded.
        latents: of each picture, as it is and (if asked for) mirrored: as the VAE gives them, no batch dimension.
        masks: of each picture, beside each of its latents; None where all counts.
        captions: what was read of each prompt; of pictures that came encoded, only of the empty prompt.
        plain: whether captions without the trigger word are among them.
        identity: a hash of all that decides the run's data: pictures, captions, masks, settings, VAE and CLIP.
        shelf: where latents and captions lie, and the examples made of them.
    """

    dataset: Dataset
    latents: tuple[tuple[Tensor, ...], ...]
    masks: tuple[tuple[Tensor | None, ...], ...]
    captions: dict[str, Any]
    plain: bool
    identity: str
    shelf: Shelf

    @property
    def largest(self) -> torch.Size:
        """Shape of the largest latent."""
        return max((ways[0].shape for ways in self.latents), key=torch.Size.numel)


def encode(dataset: Dataset, encoder: Encoder, plain: bool, tick: Tick, cache: Cache | None = None) -> Encoded:
    """Every picture and every caption, encoded once.

    Args:
        dataset: pictures, or latents with conditioning, which pass through.
        encoder: the host's.
        plain: whether captions without the trigger word are wanted, for preserving the base.
        tick: told of each thing that is encoded.
        cache: where encodings are kept for the next run; None for nowhere.

    Raises:
        DataError: a mask that leaves nothing, or a picture that is gone.
    """
    plain = plain and dataset.has_plain
    prompts = _prompts(dataset, plain)
    shelf = Shelf(cache.folder if cache else None)
    work = _Work(encoder, cache, shelf, tick, len(dataset.pictures) + len(prompts))
    masks = [dataset.weights_of(picture) for picture in dataset.pictures]  # a bad one is told before the slow part
    latents = [work.latents(dataset, picture) for picture in dataset.pictures]
    captions = {prompt: work.caption(prompt) for prompt in prompts}
    if cache:
        cache.trim()
    small = [_small(mask, ways) for mask, ways in zip(masks, latents, strict=True)]
    identity = digest([dataset.identity(), dict(encoder.names)])
    return Encoded(dataset, tuple(latents), tuple(small), captions, plain, identity, shelf)


def examples(teller: Teller, encoded: Encoded) -> list[Variants]:
    """What training takes: every picture in every way that it is shown, latents scaled as the model wants them.

    A picture that repeats is listed as often.
    """
    told = _Told(teller, encoded)
    made = []
    for picture, latents, masks in zip(encoded.dataset.pictures, encoded.latents, encoded.masks, strict=True):
        shown: list[Example] = []
        for raw, mask in zip(latents, masks, strict=True):
            latent = encoded.shelf.kept(teller.scaled(raw))
            mask = None if mask is None else mask.clone()
            texts = told.of(picture, latent)
            shown += (Example(latent, text, plain, mask=mask, blank=blank) for text, plain, blank in texts)
        made.append(tuple(shown))
    return made * encoded.dataset.repeats


def _prompts(dataset: Dataset, plain: bool) -> list[str]:
    """Every text to encode, once."""
    captions = [] if dataset.encoded else [c for picture in dataset.pictures for c in dataset.captions_of(picture)]
    blank = [""] if dataset.caption_dropout else []
    without = map(dataset.plain, captions) if plain else ()
    return list(dict.fromkeys([*map(dataset.prompt, captions), *without, *blank]))


def _small(mask: Tensor | None, latents: tuple[Tensor, ...]) -> tuple[Tensor | None, ...]:
    """The mask averaged over each latent's cell; for the mirrored latent, mirrored."""
    if mask is None:
        return (None,) * len(latents)
    small = torch.nn.functional.adaptive_avg_pool2d(mask[None, None], (latents[0].shape[-2], latents[0].shape[-1]))[
        0, 0
    ]
    return (small, small.flip(-1))[: len(latents)]


@dataclass
class _Work:
    """Encoding with a bar and a cache."""

    encoder: Encoder
    cache: Cache | None
    shelf: Shelf
    tick: Tick
    total: int
    done: int = 0

    def latents(self, dataset: Dataset, picture: Picture) -> tuple[Tensor, ...]:
        self._next(f"encoding {picture.name}")
        if isinstance(picture.source, Encoding):
            return (picture.source.latent.float().cpu(),)

        def make() -> list[Tensor]:
            pixels = dataset.pixels_of(picture)
            ways = (pixels, pixels.flip(1)) if dataset.mirror else (pixels,)
            return [self.encoder.latent(way) for way in ways]

        shown = [dataset.size_of(picture), dataset.fit, dataset.mirror]
        return tuple(self._kept(["latents", FORMAT, picture.digest(), shown, self.encoder.names["vae"]], make))

    def caption(self, prompt: str) -> Any:
        self._next(f"encoding “{prompt}”")
        name = self.encoder.names["clip"]
        if name is None or "embedding:" in prompt:  # such a word's file may change
            return self.shelf.kept(self.encoder.read(prompt))
        return self._kept(["caption", FORMAT, prompt, name], lambda: self.encoder.read(prompt))

    def _kept(self, key: list[Any], make: Callable[[], Any]) -> Any:
        return self.shelf.kept(self.cache.kept(key, make) if self.cache else make())

    def _next(self, text: str) -> None:
        self.done += 1
        self.tick(text, self.done, self.total)


class _Told:
    """What the network is told beside a latent, made once for each text, latent shape and picture size."""

    def __init__(self, teller: Teller, encoded: Encoded) -> None:
        self.teller, self.encoded, self.dataset = teller, encoded, encoded.dataset
        self.made: dict[Any, Any] = {}

    def of(self, picture: Picture, latent: Tensor) -> list[tuple[Any, Any, Any]]:
        """(condition, plain, blank) for each order of a picture's tags."""
        blank = self._text("", picture, latent) if self.dataset.caption_dropout else None
        if isinstance(picture.source, Encoding):
            condition = self._told(picture.source.conditioning, latent, self.dataset.size_of(picture), None)
            return [(condition, None, blank)]
        return [
            (
                self._text(self.dataset.prompt(caption), picture, latent),
                self._text(self.dataset.plain(caption), picture, latent) if self.encoded.plain else None,
                blank,
            )
            for caption in self.dataset.captions_of(picture)
        ]

    def _text(self, prompt: str, picture: Picture, latent: Tensor) -> Any:
        size, shown = self.dataset.size_of(picture), None
        if not isinstance(picture.source, Encoding):
            shown = Shown(picture.size, self.dataset.placement_of(picture).crop)
        key = (prompt, tuple(latent.shape), size, shown)
        if key not in self.made:
            self.made[key] = self._told(self.encoded.captions[prompt], latent, size, shown)
        return self.made[key]

    def _told(self, read: Any, latent: Tensor, size: Size, shown: Shown | None) -> Any:
        return self.teller.mapped(self.teller.told(read, latent, size, shown), self.encoded.shelf.kept)
