"""Pictures and captions: from a folder or from memory, sorted into buckets of one size, drawn batch by batch."""

import hashlib
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy
import torch
from PIL import Image, ImageOps
from torch import Tensor

from .errors import DataError

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
CAPTIONS = (".txt", ".caption")
SMALLEST = 16  # pixels; below this there is nothing to learn from


@dataclass(frozen=True)
class Picture:
    """One picture and its caption.

    Attributes:
        name: what messages call it.
        caption: the caption as it was found, without the trigger word.
        size: (width, height) in pixels, as it will be looked at.
        source: a file, or pixels (height, width, 3) in 0..1.
    """

    name: str
    caption: str
    size: tuple[int, int]
    source: Path | Tensor

    def pixels(self, size: tuple[int, int]) -> Tensor:
        """The picture scaled and centre-cropped to (width, height): (height, width, 3), float32 in 0..1."""
        picture = _open(self.source) if isinstance(self.source, Path) else _to_image(self.source)
        fitted = ImageOps.fit(picture, size, Image.Resampling.LANCZOS) if picture.size != size else picture
        return torch.from_numpy(numpy.asarray(fitted, dtype=numpy.float32) / 255)


@dataclass(frozen=True)
class Dataset:
    """What travels on a TRILORA_DATASET wire.

    Attributes:
        pictures: at least one.
        trigger: word put before every caption, or "".
        resolution: side in pixels of the square whose area every bucket keeps.
        bucket_step: sides of buckets are multiples of this; 0 for one square bucket.
    """

    pictures: tuple[Picture, ...]
    trigger: str = ""
    resolution: int = 512
    bucket_step: int = 64
    caption_dropout: float = 0.0

    def split(self, share: float, seed: int) -> "tuple[Dataset, Dataset]":
        from dataclasses import replace

        count = max(1, round(share * len(self.pictures)))
        order = torch.randperm(len(self.pictures), generator=generator(seed, "split")).tolist()
        held = set(order[:count])
        return (
            replace(self, pictures=tuple(p for i, p in enumerate(self.pictures) if i not in held)),
            replace(self, pictures=tuple(p for i, p in enumerate(self.pictures) if i in held)),
        )

    def size_of(self, picture: Picture) -> tuple[int, int]:
        """The bucket (width, height) that a picture is trained at."""
        if not self.bucket_step:
            return (self.resolution, self.resolution)
        return bucket(picture.size, self.resolution, self.bucket_step)

    def prompt_of(self, picture: Picture) -> str:
        """The caption with the trigger word in front."""
        return ", ".join(part for part in (self.trigger, picture.caption) if part)


def bucket(size: tuple[int, int], resolution: int, step: int) -> tuple[int, int]:
    """(width, height), multiples of `step`, of at most resolution² pixels and nearest to the shape of `size`.

    Shapes are limited to 1:2 .. 2:1.
    """
    shape = min(max(size[0] / size[1], 0.5), 2.0)
    sides = range(step, 2 * resolution + 1, step)
    area = max(resolution * resolution, step * step)
    upright = [(w, min(area // w // step * step, 2 * w)) for w in sides if area // w >= step]
    options = [(w, h) for w, h in upright + [(h, w) for w, h in upright] if w <= 2 * h]
    return min(options, key=lambda o: (round(abs(numpy.log(o[0] / o[1] / shape)), 6), -o[0] * o[1]))


def read_folder(folder: Path) -> tuple[Picture, ...]:
    """Every picture of a folder with its caption: `name.txt` or `name.caption` beside it, else the empty caption.

    Raises:
        DataError: no such folder, no picture in it, or a picture that cannot be read; every bad one is named.
    """
    if not folder.is_dir():
        raise DataError(f"{folder} is not a folder. Put your pictures into a folder and choose that.")
    files = sorted(path for path in folder.iterdir() if path.suffix.lower() in PICTURES)
    if not files:
        raise DataError(f"{folder} holds no picture ({', '.join(PICTURES)}). Put 10 to 100 pictures there.")
    pictures, problems = [], []
    for file in files:
        try:
            pictures.append(Picture(file.name, caption_beside(file), _size_of(file), file))
        except DataError as error:
            problems.append(str(error))
    if problems:
        raise DataError("\n".join(problems))
    return tuple(pictures)


def from_tensors(images: Iterable[Tensor], captions: Sequence[str]) -> tuple[Picture, ...]:
    """Pictures from memory, each (height, width, 3) in 0..1, with one caption each.

    Raises:
        DataError: the numbers of pictures and captions differ, or a picture is too small.
    """
    images = list(images)
    if len(images) != len(captions):
        raise DataError(
            f"{len(images)} pictures came with {len(captions)} captions, so pairs can't be told. "
            "Give one caption for each picture, in the same order."
        )
    return tuple(
        Picture(
            f"picture {i}", caption.strip(), _big_enough(f"picture {i}", (pixels.shape[1], pixels.shape[0])), pixels
        )
        for i, (pixels, caption) in enumerate(zip(images, captions, strict=True), start=1)
    )


def caption_beside(file: Path) -> str:
    """The text of `name.txt` or `name.caption` beside a picture, or ""."""
    for suffix in CAPTIONS:
        beside = file.with_suffix(suffix)
        if beside.is_file():
            try:
                return " ".join(beside.read_text(encoding="utf-8-sig").split())
            except UnicodeDecodeError:
                raise DataError(f"{beside} is not UTF-8 text. Save it again as UTF-8.") from None
    return ""


@dataclass(frozen=True)
class Batches:
    """Endless batches of indices into `sizes`, each batch of one size; a function of (seed, step) alone.

    Every index comes once an epoch, shuffled anew; a bucket's last batch is filled up from the bucket's start.
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
        return sum(-(-self.sizes.count(size) // self.batch) for size in set(self.sizes))

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
        return [chunks[i] for i in torch.randperm(len(chunks), generator=draw).tolist()]


def generator(seed: int, *stream: str | int) -> torch.Generator:
    """A CPU generator that is a function of the seed and of what it is for, so that no draw depends on another."""
    digest = hashlib.sha256(repr((seed, *stream)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "little"))


def _open(path: Path) -> Image.Image:
    try:
        with Image.open(path) as picture:
            return _flat(ImageOps.exif_transpose(picture))
    except (OSError, ValueError, SyntaxError, struct.error, Image.DecompressionBombError) as error:
        raise DataError(f"{path} can't be read as a picture ({error}). Save it again as PNG, or remove it.") from error


def _flat(picture: Image.Image) -> Image.Image:
    """RGB over white: transparency would otherwise show whatever colour hides beneath it."""
    if picture.mode.startswith("I"):  # 16 bits, which Pillow would clip at 255
        picture = Image.fromarray((numpy.asarray(picture) / 257).round().clip(0, 255).astype(numpy.uint8))
    if picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        white = Image.new("RGBA", picture.size, "white")
        return Image.alpha_composite(white, picture).convert("RGB")
    return picture.convert("RGB")


def _size_of(path: Path) -> tuple[int, int]:
    return _big_enough(str(path), _open(path).size)


def _big_enough(name: str, size: tuple[int, int]) -> tuple[int, int]:
    if min(size) < SMALLEST:
        raise DataError(f"{name} is only {size[0]} x {size[1]} pixels. Use a larger picture, or remove it.")
    return size


def _to_image(pixels: Tensor) -> Image.Image:
    array = (pixels[..., :3].clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy()
    return Image.fromarray(array)
