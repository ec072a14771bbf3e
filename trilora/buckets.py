"""Buckets: the few sizes that pictures are trained at, and how a picture is laid into one."""

from typing import NamedTuple

import numpy
from PIL import Image, ImageOps

FITS = ("crop", "pad")
Size = tuple[int, int]  # (width, height) in pixels


class Placement(NamedTuple):
    """How a picture lies in its bucket.

    Attributes:
        scaled: (width, height) of the whole picture after scaling.
        crop: (left, top) of what is seen, within the scaled picture.
        pad: (left, top) of the scaled picture, within the bucket.
    """

    scaled: Size
    crop: Size
    pad: Size


def bucket(size: Size, resolution: int, step: int) -> Size:
    """(width, height), multiples of `step`, of at most resolution² pixels and nearest to the shape of `size`.

    Shapes are limited to 1:2 .. 2:1. A step above the resolution leaves one square, of that side.
    """
    shape = min(max(size[0] / size[1], 0.5), 2.0)
    sides = range(step, max(2 * resolution, step) + 1, step)
    area = max(resolution * resolution, step * step)
    upright = [(w, min(area // w // step * step, 2 * w)) for w in sides if area // w >= step]
    options = [(w, h) for w, h in upright + [(h, w) for w, h in upright] if w <= 2 * h]
    return min(options, key=lambda o: (round(abs(numpy.log(o[0] / o[1] / shape)), 6), -o[0] * o[1]))


def place(size: Size, into: Size, fit: str) -> Placement:
    """`crop` scales until the bucket is filled and cuts what sticks out; `pad` until all fits and leaves a border."""
    scales = [inner / outer for inner, outer in zip(into, size, strict=True)]
    scale = max(scales) if fit == "crop" else min(scales)
    width, height = (max(1, round(side * scale)) for side in size)
    over = (width - into[0], height - into[1])
    return Placement(
        (width, height), (max(over[0], 0) // 2, max(over[1], 0) // 2), (max(-over[0], 0) // 2, max(-over[1], 0) // 2)
    )


def laid(picture: Image.Image, into: Size, fit: str, resampling: Image.Resampling, border: str) -> numpy.ndarray:
    """A picture at its bucket's size, float32; a padded border repeats the `edge` or is `constant` zero."""
    if picture.size == into:
        return numpy.asarray(picture, dtype=numpy.float32)
    if fit == "crop":
        return numpy.asarray(ImageOps.fit(picture, into, resampling), dtype=numpy.float32)
    scaled, _, (left, top) = place(picture.size, into, fit)
    inner = numpy.asarray(picture.resize(scaled, resampling), dtype=numpy.float32)
    borders = [(top, into[1] - scaled[1] - top), (left, into[0] - scaled[0] - left)] + [(0, 0)] * (inner.ndim - 2)
    return numpy.pad(inner, borders, mode=border)  # type: ignore[call-overload,no-any-return]
