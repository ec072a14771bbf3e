"""Small charts and sheets as pictures, drawn with Pillow alone."""

import math
from collections.abc import Mapping, Sequence

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from .factors import Factors, energy

PAPER, INK, FAINT = "#ffffff", "#22303c", "#c9d3dc"
COLOURS = ("#e4572e", "#2e86ab", "#3c9d5b", "#8a4fbf")
SIZE = (640, 360)
MARGIN = (64, 40, 20, 44)  # left, top, right, bottom

Point = tuple[float, float]


def font(size: int) -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    """Pillow's own font; no file of the system is needed."""
    return ImageFont.load_default(size)


def smoothed(values: Sequence[float], share: float = 0.05) -> list[float]:
    """Running mean over `share` of the series, shorter at its beginning."""
    window = max(1, round(len(values) * share))
    sums = [0.0]
    for value in values:
        sums.append(sums[-1] + value)
    return [(sums[i + 1] - sums[max(0, i + 1 - window)]) / min(i + 1, window) for i in range(len(values))]


def loss_chart(
    losses: Sequence[float],
    preservation: Sequence[float] = (),
    held_out: Mapping[int, float] | None = None,
    best: int = 0,
) -> Image.Image:
    """Loss over steps: each step faint, the running mean strong.

    Args:
        losses: of every step.
        preservation: distance to the base at every step, NaN where it was not taken.
        held_out: step -> loss on the held-out pictures; a line with dots.
        best: step whose held-out loss was best, marked; 0 for none.
    """
    series = {"pictures": list(losses), "distance to the base": _carried(preservation)}
    series = {name: values for name, values in series.items() if any(values)}
    strong = {name: smoothed(values) for name, values in series.items()}
    highest = [max(values) for values in strong.values()] + list((held_out or {}).values())
    top = max(highest, default=1.0) * 1.6 or 1.0
    picture, draw = _canvas("Loss", "step", (1, max(len(losses), 2)), (0.0, top))
    for colour, (name, values) in zip(COLOURS, series.items(), strict=False):
        draw.line(_points(values, top), fill=_pale(colour), width=1)
        draw.line(_points(strong[name], top), fill=colour, width=3)
    legend = [(name, colour) for colour, name in zip(COLOURS, series, strict=False)]
    if held_out:
        legend.append(("held out" + (f", best at step {best}" if best else ""), COLOURS[2]))
        _dotted(draw, held_out, best, len(losses), top)
    _legend(draw, legend)
    return picture


def _dotted(draw: ImageDraw.ImageDraw, values: Mapping[int, float], best: int, steps: int, top: float) -> None:
    """Held-out losses at their steps, the best one ringed."""
    axis = _points([0.0] * max(steps, 2), top)
    points = {s: (axis[min(max(s - 1, 0), len(axis) - 1)][0], _points([v, v], top)[0][1]) for s, v in values.items()}
    if len(points) > 1:
        draw.line(list(points.values()), fill=COLOURS[2], width=2)
    for step, (x, y) in points.items():
        size = 6 if step == best else 3
        draw.ellipse((x - size, y - size, x + size, y + size), fill=None if step == best else COLOURS[2], outline=INK)


def _carried(values: Sequence[float]) -> list[float]:
    """Values with each gap filled by what came before it."""
    filled: list[float] = []
    for value in values:
        filled.append((filled[-1] if filled else 0.0) if math.isnan(value) else value)
    return filled


def spectrum_chart(layers: Mapping[str, Factors]) -> Image.Image:
    """Singular values of an adapter: every layer faint, their root mean square strong, and the energy they hold."""
    sigmas = [factors.sigma for factors in layers.values()]
    rank = max(len(sigma) for sigma in sigmas)
    mean = torch.stack([_padded(sigma.square(), rank) for sigma in sigmas]).mean(0)
    top = max(float(mean.sqrt().max()) * 1.5, 1e-12)
    picture, draw = _canvas(
        f"Singular values of {len(sigmas)} layers", "singular value, strongest first", (1, max(rank, 2)), (0.0, top)
    )
    for sigma in sigmas:
        draw.line(_points(sigma.tolist(), top, rank), fill=FAINT, width=1)
    draw.line(_points(mean.sqrt().tolist(), top, rank), fill=COLOURS[0], width=3)
    share = energy(Factors(mean, mean.sqrt(), mean))
    draw.line(_points((share * top * 0.97).tolist(), top, rank), fill=COLOURS[1], width=2)
    half = int((share < 0.9).sum()) + 1
    _legend(draw, [("root mean square", COLOURS[0]), (f"energy (90 % in the first {half})", COLOURS[1])])
    return picture


def stacked(pictures: Sequence[Image.Image]) -> Image.Image:
    """Pictures of one width below each other."""
    sheet = Image.new("RGB", (pictures[0].width, sum(p.height for p in pictures)), PAPER)
    top = 0
    for picture in pictures:
        sheet.paste(picture, (0, top))
        top += picture.height
    return sheet


def contact_sheet(
    pictures: Sequence[Tensor], captions: Sequence[str], heading: Sequence[str] = (), columns: int = 6, cell: int = 160
) -> Image.Image:
    """Pictures (height, width, 3) in 0..1 with their captions, in rows, below a heading.

    A missing caption and a line of the heading that begins with "!" are marked.
    """
    columns = min(columns, max(len(pictures), 4 if heading else 1))
    width, height = columns * cell, cell + 40
    words = [(line[0], part) for line in heading for part in wrapped(line, width - 16, 13)]
    head = 18 * len(words) + 12 if words else 0
    sheet = Image.new("RGB", (width, head + math.ceil(len(pictures) / columns) * height), PAPER)
    draw = ImageDraw.Draw(sheet)
    for i, (mark, text) in enumerate(words):
        draw.text((8, 6 + 18 * i), text, COLOURS[0] if mark == "!" else INK, font(13))
    for i, (pixels, caption) in enumerate(zip(pictures, captions, strict=True)):
        left, top = i % columns * cell, head + i // columns * height
        thumbnail = picture_of(pixels)
        thumbnail.thumbnail((cell - 8, cell - 8), Image.Resampling.LANCZOS)
        sheet.paste(thumbnail, (left + (cell - thumbnail.width) // 2, top + (cell - thumbnail.height) // 2))
        for line, text in enumerate(wrapped(caption or "(no caption)", cell - 8, 11)[:3]):
            draw.text((left + 4, top + cell - 2 + line * 13), text, INK if caption else COLOURS[0], font(11))
    return sheet


def tiles(
    pictures: Sequence[Tensor], columns: int = 8, cell: int = 160
) -> tuple[Image.Image, list[tuple[int, int, int, int]]]:
    """Small pictures in rows on one sheet, and where each is: (left, top, width, height)."""
    sheet = Image.new("RGB", (columns * cell, max(1, math.ceil(len(pictures) / columns)) * cell), PAPER)
    places = []
    for i, pixels in enumerate(pictures):
        small = picture_of(pixels)
        small.thumbnail((cell, cell), Image.Resampling.LANCZOS)
        place = (i % columns * cell, i // columns * cell)
        sheet.paste(small, place)
        places.append((*place, *small.size))
    return sheet, places


def wrapped(text: str, width: int, size: int) -> list[str]:
    """Words broken into lines of at most `width` pixels."""
    lines, face = [""], font(size)
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and face.getlength(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines


def picture_of(pixels: Tensor) -> Image.Image:
    """(height, width, 3) in 0..1 as a picture."""
    return Image.fromarray((pixels[..., :3].clamp(0, 1) * 255).round().byte().cpu().numpy())


def to_tensor(picture: Image.Image) -> Tensor:
    """A picture as ComfyUI's IMAGE: (1, height, width, 3) in 0..1."""
    data = torch.frombuffer(bytearray(picture.convert("RGB").tobytes()), dtype=torch.uint8)
    return data.view(1, picture.height, picture.width, 3).float() / 255


def _canvas(
    title: str, below: str, x: tuple[float, float], y: tuple[float, float]
) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    picture = Image.new("RGB", SIZE, PAPER)
    draw = ImageDraw.Draw(picture)
    left, top, right, bottom = MARGIN
    draw.text((left, 10), title, INK, font(17))
    for i in range(5):
        level = SIZE[1] - bottom - (SIZE[1] - top - bottom) * i / 4
        draw.line([(left, level), (SIZE[0] - right, level)], fill="#e8edf1")
        draw.text((left - 8, level), f"{y[0] + (y[1] - y[0]) * i / 4:.3g}", INK, font(12), anchor="rm")
        column = left + (SIZE[0] - left - right) * i / 4
        draw.text((column, SIZE[1] - bottom + 6), f"{x[0] + (x[1] - x[0]) * i / 4:.0f}", INK, font(12), anchor="ma")
    draw.text(((left + SIZE[0] - right) / 2, SIZE[1] - 6), below, INK, font(12), anchor="ms")
    return picture, draw


def _points(values: Sequence[float], top: float, count: int = 0) -> list[Point]:
    left, upper, right, bottom = MARGIN
    width, height = SIZE[0] - left - right, SIZE[1] - upper - bottom
    span = max((count or len(values)) - 1, 1)
    shown = [min(max(value / top, 0.0), 1.0) if math.isfinite(value) else 0.0 for value in values]
    points = [(left + width * i / span, SIZE[1] - bottom - height * value) for i, value in enumerate(shown)]
    return points if len(points) > 1 else points * 2


def _legend(draw: ImageDraw.ImageDraw, entries: Sequence[tuple[str, str]]) -> None:
    right = SIZE[0] - MARGIN[2]
    for name, colour in reversed(entries):
        draw.text((right, 20), name, colour, font(13), anchor="rm")
        right -= int(font(13).getlength(name)) + 18


def _pale(colour: str) -> str:
    channels = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return "#" + "".join(f"{(channel + 2 * 255) // 3:02x}" for channel in channels)


def _padded(values: Tensor, length: int) -> Tensor:
    return torch.nn.functional.pad(values, (0, length - len(values)))
