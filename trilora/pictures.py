"""Pictures: read from a folder or taken from memory, whatever their format, and laid into buckets."""

import hashlib
import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy
import torch
from PIL import Image, ImageOps
from torch import Tensor

from .buckets import Size, laid
from .cache import digest
from .captions import finder
from .errors import DataError

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
FOREIGN = (".heic", ".heif", ".avif", ".jxl", ".jp2")  # pictures too, but not every Pillow reads them
SMALLEST = 16  # pixels; below this there is nothing to learn from
FAULTS = (OSError, EOFError, ValueError, SyntaxError, struct.error, Image.DecompressionBombError)


class Encoding(NamedTuple):
    """A picture that comes encoded: a latent without batch dimension, and its conditioning as the host knows it."""

    latent: Tensor
    conditioning: Any


@dataclass(frozen=True)
class Picture:
    """One picture and its caption.

    Attributes:
        name: what messages call it.
        caption: the caption as it was found, without the trigger word.
        size: (width, height) in pixels, as it will be looked at; of an encoding, those of the latent.
        source: a file, pixels (height, width, 3 or 4) in 0..1, or an encoding.
        mask: (height, width) in 0..1, the weight of each pixel's error; None where all counts.
        alpha: whether the picture's own transparency is its mask.
        note: what is remarkable about how it was read, or "".
    """

    name: str
    caption: str
    size: Size
    source: Path | Tensor | Encoding
    mask: Tensor | None = None
    alpha: bool = False
    note: str = ""

    def pixels(self, size: Size, fit: str = "crop") -> Tensor:
        """The picture, over white, scaled and centred in (width, height): (height, width, 3), float32 in 0..1."""
        picture = flat(_image(self.source))
        return torch.from_numpy(laid(picture, size, fit, Image.Resampling.LANCZOS, "edge") / 255)

    def weights(self, size: Size, fit: str = "crop") -> Tensor | None:
        """Weight of each pixel of `pixels`, (height, width) in 0..1; a padded border weighs nothing. None: all 1.

        Raises:
            DataError: nothing is left that counts.
        """
        masks = [_mask_image(self.mask, self.size)] if self.mask is not None else []
        if self.alpha and (alpha := _alpha(_image(self.source))):
            masks.append(alpha)
        if fit == "pad" and self.size != size:
            masks.append(Image.new("F", self.size, 1.0))
        if not masks:
            return None
        weights = numpy.prod([laid(mask, size, fit, Image.Resampling.BILINEAR, "constant") for mask in masks], axis=0)
        if not weights.max() > 0:
            raise DataError(
                f"The mask of {self.name} is black all over, so nothing could be learned from the picture. White "
                "is what counts: paint or invert the mask, or remove the picture."
            )
        return torch.from_numpy(weights.clip(0, 1)) if weights.min() < 1 else None

    def digest(self) -> str:
        """A hash of the picture's own bytes: equal for copies under other names. A file is read for it anew."""
        if isinstance(self.source, Path):
            try:
                return hashlib.sha256(self.source.read_bytes()).hexdigest()
            except OSError as error:
                raise DataError(f"{self.source} has gone ({error}). Put it back, or run again.") from error
        return digest(self.source.latent if isinstance(self.source, Encoding) else self.source)


def read_folder(
    folder: Path, captions: str = "automatic", subfolders: bool = False, alpha: bool = False
) -> tuple[Picture, ...]:
    """Every picture of a folder with its caption.

    Args:
        folder: where pictures lie. Hidden files and folders (.name) are left out.
        captions: where captions come from; see `captions.finder`.
        subfolders: whether folders inside count too.
        alpha: whether transparency becomes the loss mask.

    Raises:
        DataError: no such folder, no picture in it, or a picture that cannot be read; every bad one is named.
    """
    if not folder.is_dir():
        raise DataError(f"{folder} is not a folder. Put your pictures into a folder and choose that.")
    files = sorted(picture_files(folder, subfolders))
    if not files:
        raise DataError(f"{folder} holds no picture ({', '.join(PICTURES)}). Put 10 to 100 pictures there.")
    pictures, problems, caption_of = [], [], finder(folder, captions)
    for file in files:
        try:
            size, note = _looked_at(file)
            name = file.relative_to(folder).as_posix()
            pictures.append(Picture(name, caption_of(file), size, file, alpha=alpha, note=note))
        except DataError as error:
            problems.append(str(error))
    if problems:
        raise DataError("\n".join(problems))
    return tuple(pictures)


def picture_files(folder: Path, subfolders: bool = False) -> Iterator[Path]:
    """The picture files of a folder, in no order."""
    for path in folder.rglob("*") if subfolders else folder.iterdir():
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if path.suffix.lower() in PICTURES + FOREIGN and not hidden:
            yield path


def from_tensors(images: Iterable[Tensor], captions: Sequence[str], alpha: bool = False) -> tuple[Picture, ...]:
    """Pictures from memory, each (height, width, 3 or 4) in 0..1, with one caption each.

    Raises:
        DataError: the numbers of pictures and captions differ, or a picture is too small.
    """
    images = list(images)
    _as_many(len(captions), "caption", len(images))
    return tuple(
        Picture(name, caption.strip(), _big_enough(name, (pixels.shape[1], pixels.shape[0])), pixels, alpha=alpha)
        for name, pixels, caption in zip(_names("picture", images), images, captions, strict=True)
    )


def from_encodings(latents: Sequence[Tensor], conditionings: Sequence[Any]) -> tuple[Picture, ...]:
    """Encoded pictures, videos or sounds, each latent (channels, ...) with one conditioning, or one for them all.

    Raises:
        DataError: the numbers of latents and conditionings differ.
    """
    if len(conditionings) == 1:
        conditionings = list(conditionings) * len(latents)
    _as_many(len(conditionings), "conditioning", len(latents))
    return tuple(
        Picture(name, "", (latent.shape[-1], latent.shape[-2]), Encoding(latent, conditioning))
        for name, latent, conditioning in zip(_names("latent", latents), latents, conditionings, strict=True)
    )


def with_masks(pictures: Sequence[Picture], masks: Sequence[Tensor]) -> tuple[Picture, ...]:
    """Pictures with a loss mask (height, width) in 0..1 each, in the same order.

    Raises:
        DataError: the numbers differ.
    """
    _as_many(len(masks), "mask", len(pictures))
    return tuple(replace(picture, mask=mask) for picture, mask in zip(pictures, masks, strict=True))


def flat(picture: Image.Image) -> Image.Image:
    """RGB over white: transparency would otherwise show whatever colour hides beneath it."""
    if picture.mode == "RGBA":
        white = Image.new("RGBA", picture.size, "white")
        return Image.alpha_composite(white, picture).convert("RGB")
    return picture


def _names(kind: str, things: Sequence[Any]) -> list[str]:
    return [f"{kind} {number}" for number in range(1, len(things) + 1)]


def _as_many(count: int, thing: str, pictures: int) -> None:
    if count != pictures:
        raise DataError(
            f"{pictures} pictures came with {count} {thing}s, so pairs can't be told. "
            f"Give one {thing} for each picture, in the same order."
        )


def _image(source: Path | Tensor | Encoding) -> Image.Image:
    """RGB, or RGBA where anything may be transparent."""
    if isinstance(source, Path):
        return opened(source)[0]
    if isinstance(source, Encoding):
        raise DataError("This picture came as a latent, so there are no pixels to look at. Connect images instead.")
    return Image.fromarray((source[..., :4].clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy())


def opened(path: Path) -> tuple[Image.Image, str]:
    """A file as RGB, or RGBA where anything may be transparent, upright; and what is remarkable about it, or "".

    Raises:
        DataError: not a picture that can be read.
    """
    try:
        with Image.open(path) as picture:
            count = 1 if picture.format == "MPO" else getattr(picture, "n_frames", 1)  # MPO: a phone's JPEG
            note = f"moves or has pages: only the first of {count} is used" if count > 1 else ""
            return _eight_bits(ImageOps.exif_transpose(picture)), note
    except FAULTS as error:
        raise DataError(f"{path} can't be read as a picture ({error}). Save it again as PNG, or remove it.") from error


def _eight_bits(picture: Image.Image) -> Image.Image:
    """RGB or RGBA of any mode; Pillow would clip 16 bits at 255."""
    if picture.mode.startswith("I"):
        return _grey(numpy.asarray(picture) / 65535)
    if picture.mode == "F":
        return _grey(numpy.asarray(picture))
    if picture.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in picture.info:
        return picture.convert("RGBA")
    return picture.convert("RGB")


def _grey(values: numpy.ndarray) -> Image.Image:
    low, high = float(values.min()), float(values.max())
    if not 0 <= low <= high <= 1:
        raise ValueError(f"its values go from {low:g} to {high:g}, and which of them is white can't be told")
    return Image.fromarray((values * 255).round().astype(numpy.uint8)).convert("RGB")


def _alpha(picture: Image.Image) -> Image.Image | None:
    """The opacity of a picture in 0..1, or None where it has none."""
    if picture.mode != "RGBA":
        return None
    return Image.fromarray(numpy.asarray(picture.getchannel("A"), dtype=numpy.float32) / 255)


def _mask_image(mask: Tensor, size: Size) -> Image.Image:
    return Image.fromarray(mask.float().cpu().numpy()).resize(size, Image.Resampling.BILINEAR)


def _looked_at(path: Path) -> tuple[Size, str]:
    picture, note = opened(path)
    return _big_enough(str(path), picture.size), note


def _big_enough(name: str, size: Size) -> Size:
    if min(size) < SMALLEST:
        raise DataError(f"{name} is only {size[0]} x {size[1]} pixels. Use a larger picture, or remove it.")
    return size
