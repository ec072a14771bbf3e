"""A data set: pictures and how they are shown, drawn batch by batch."""

from collections.abc import Iterable
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from .buckets import FITS, Placement, Size, bucket, place
from .cache import digest
from .captions import orders, without
from .errors import DataError
from .pictures import Encoding, Picture
from .seeds import generator


@dataclass(frozen=True)
class Dataset:
    """What travels on a TRILORA_DATASET wire.

    Attributes:
        pictures: at least one.
        trigger: word put before every caption that does not say it, or "".
        resolution: side in pixels of the square whose area every bucket keeps.
        bucket_step: sides of buckets are multiples of this; 0 for one square bucket.
        fit: `crop` fills the bucket and cuts what sticks out, `pad` shows all and leaves the border out of the loss.
        mirror: whether each picture is shown mirrored too.
        repeats: how often each picture comes in an epoch.
        tag_orders: in how many orders of its tags each caption is shown; 1 for as written.
        kept_tags: how many tags stay in front in every order.
        caption_dropout: share of the steps, 0..1, in which a picture is shown with the empty caption.
    """

    pictures: tuple[Picture, ...]
    trigger: str = ""
    resolution: int = 512
    bucket_step: int = 64
    fit: str = "crop"
    mirror: bool = False
    repeats: int = 1
    tag_orders: int = 1
    kept_tags: int = 0
    caption_dropout: float = 0.0

    def __post_init__(self) -> None:
        if self.fit not in FITS:
            raise DataError(f"The fit {self.fit!r} is unknown. Choose one of: {', '.join(FITS)}.")
        if not self.pictures:
            raise DataError("There is no picture in the data set. Choose a folder that holds some.")
        if not 0 <= self.caption_dropout <= 1:
            raise DataError(f"caption_dropout is {self.caption_dropout}, but is a share from 0 to 1.")

    @property
    def encoded(self) -> bool:
        """Whether the pictures came as latents with conditioning, so that there is no text to change."""
        return isinstance(self.pictures[0].source, Encoding)

    @property
    def has_plain(self) -> bool:
        """Whether captions can be said without the trigger word, which is what preserving the base looks at."""
        return bool(self.trigger) and not self.encoded

    def size_of(self, picture: Picture) -> Size:
        """The bucket (width, height) that a picture is trained at; of an encoding, in the latent's own units."""
        if isinstance(picture.source, Encoding):
            return picture.size
        if not self.bucket_step:
            return (self.resolution, self.resolution)
        return bucket(picture.size, self.resolution, self.bucket_step)

    def placement_of(self, picture: Picture) -> Placement:
        """How a picture lies in its bucket."""
        return place(picture.size, self.size_of(picture), self.fit)

    def pixels_of(self, picture: Picture) -> Tensor:
        """A picture as it is trained on: (height, width, 3), float32 in 0..1."""
        return picture.pixels(self.size_of(picture), self.fit)

    def weights_of(self, picture: Picture) -> Tensor | None:
        """The weight of each of its pixels, (height, width) in 0..1, or None where all counts.

        Raises:
            DataError: a mask that leaves nothing.
        """
        return picture.weights(self.size_of(picture), self.fit)

    def prompt_of(self, picture: Picture) -> str:
        """The picture's caption with the trigger word."""
        return self.prompt(picture.caption)

    def prompt(self, caption: str) -> str:
        """Any caption with the trigger word in front, unless it says that word itself."""
        says = self.plain(caption) != caption
        return caption if says else ", ".join(part for part in (self.trigger, caption) if part)

    def plain(self, caption: str) -> str:
        """Any caption without the trigger word."""
        return without(self.trigger, caption)

    def captions_of(self, picture: Picture) -> tuple[str, ...]:
        """The caption, as it is written, in every order of its tags that is shown."""
        return orders(picture.caption, self.tag_orders, self.kept_tags)

    def identity(self) -> str:
        """A hash of every picture, caption, mask and setting: of all here that decides a run."""
        settings = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "pictures"}
        shown = [
            [p.digest(), p.caption, p.mask, p.alpha, p.source.conditioning if isinstance(p.source, Encoding) else None]
            for p in self.pictures
        ]
        return digest([settings, shown])

    def split(self, share: float, seed: int) -> tuple["Dataset", "Dataset | None"]:
        """(to train on, held out): `share` of the pictures, at least one, is held out; copies stay on one side.

        A function of the pictures' bytes and the seed, not of names or order. What is held out is shown once and as
        it is: no mirroring, repeats, shuffled tags or dropped captions. None where there is nothing to hold out:
        share 0, or a single picture (and copies of it).

        Raises:
            DataError: a share outside 0..1.
        """
        if not 0 <= share < 1:
            raise DataError(f"The held-out share is {share}, but has to be from 0 up to, not including, 1.")
        copies = groups(self.pictures)
        if not share or len(copies) < 2:
            return self, None
        wanted = min(max(1, round(share * len(self.pictures))), len(self.pictures) - 1)
        names = sorted(copies)
        order = torch.randperm(len(names), generator=generator(seed, "held out")).tolist()
        drawn: list[Picture] = []
        for group in (copies[names[i]] for i in order):
            if len(drawn) + len(group) <= wanted:
                drawn += group
        chosen = {id(p) for p in drawn or min(copies.values(), key=len)}
        held_out, kept = (tuple(p for p in self.pictures if (id(p) in chosen) is held) for held in (True, False))
        plain = Dataset(held_out, self.trigger, self.resolution, self.bucket_step, self.fit)
        return replace(self, pictures=kept), plain


def groups(pictures: Iterable[Picture]) -> dict[str, list[Picture]]:
    """Pictures by their bytes: copies stand together."""
    found: dict[str, list[Picture]] = {}
    for picture in pictures:
        found.setdefault(picture.digest(), []).append(picture)
    return found


@dataclass(frozen=True)
class Batches:
    """Endless batches of indices into `sizes`, each batch of one size; a function of (seed, step) alone.

    Every index comes once an epoch, shuffled anew; a bucket's last batch is filled up from the bucket's start.

    Attributes:
        sizes: latent shape of each picture.
        batch: pictures a step.
        seed: of the order.
        samples: pictures an epoch, rounded up to whole batches and drawn anew each time; 0 for all.
    """

    sizes: tuple[tuple[int, ...], ...]
    batch: int
    seed: int
    samples: int = 0

    def at(self, step: int) -> list[int]:
        """The indices of a step, counted from 0. Without state, so that a run can go on from any step."""
        epoch, position = divmod(step, self.per_epoch)
        return self._epoch(epoch)[position]

    @property
    def per_epoch(self) -> int:
        """Batches an epoch."""
        whole = sum(-(-self.sizes.count(size) // self.batch) for size in set(self.sizes))
        return min(whole, -(-self.samples // self.batch)) if self.samples else whole

    def _epoch(self, epoch: int) -> list[list[int]]:
        draw = generator(self.seed, "batches", epoch)
        order = torch.randperm(len(self.sizes), generator=draw).tolist()
        groups: dict[tuple[int, ...], list[int]] = {}
        for index in order:
            groups.setdefault(self.sizes[index], []).append(index)
        chunks = [
            [members[i % len(members)] for i in range(start, start + self.batch)]
            for members in groups.values()
            for start in range(0, len(members), self.batch)
        ]
        return [chunks[i] for i in torch.randperm(len(chunks), generator=draw).tolist()[: self.per_epoch]]
