"""Two looks that the base never saw: stained glass and a three-ink print."""

from __future__ import annotations

import colorsys
import random

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from .scenery import SIZE, Layer

Array = np.ndarray
FINE = 3  # drawn three times too large
CREAM = np.array([250, 240, 214], np.float32)
NAVY = np.array([34, 44, 104], np.float32)
ORANGE = np.array([255, 126, 40], np.float32)


def _mask(stack: list[Layer], scale: int = FINE, dx: float = 0, dy: float = 0, grow: float = 0) -> Array:
    """Where any of the layers is, as booleans."""
    image = Image.new("L", (SIZE * scale, SIZE * scale), 0)
    pen = ImageDraw.Draw(image)
    for layer in stack:
        points = [((x + dx) * scale, (y + dy) * scale) for x, y in layer.points]
        if not layer.width:
            pen.polygon(points, fill=255)
        if layer.width or grow:
            pen.line(
                [*points, points[0]] if not layer.width else points, 255, round((layer.width + grow) * scale), "curve"
            )
    return np.asarray(image) > 0


def _reduce(picture: Array) -> Image.Image:
    """Fine float picture -> 128 x 128."""
    whole = Image.fromarray(np.clip(picture, 0, 255).astype(np.uint8))
    return whole.resize((SIZE, SIZE), Image.Resampling.BOX)


# stained glass


def stained_glass(stack: list[Layer], rng: random.Random) -> Image.Image:
    """Jewel-coloured cells with light behind them, in thick dark leading."""
    land = [s for s in stack if s.role in ("sky", "back", "front", "shadow") and s.alpha == 255]
    thing = [s for s in stack if s.role == "thing" and _is_large(s)]
    regions, colours = _regions([*land, *thing])
    inside = _mask(thing)
    cells = np.where(inside, 0, _cells(rng, 11))
    labels = regions * 64 + cells
    lead = _leading(labels, inside)
    glass = colours[regions] * _cell_light(rng)[cells][..., None]
    glass = glass * (0.8 + 0.5 * _glow(lead))[..., None]
    return _reduce(np.where(lead[..., None], np.array([18, 14, 24], np.float32), glass))


def _regions(stack: list[Layer]) -> tuple[Array, Array]:
    """Which layer is on top at each pixel, and the jewel colour of every layer."""
    image = Image.new("L", (SIZE * FINE, SIZE * FINE), 0)
    pen = ImageDraw.Draw(image)
    for i, layer in enumerate(stack):
        points = [(x * FINE, y * FINE) for x, y in layer.points]
        same = [k for k in range(i) if stack[k].role == "thing" and stack[k].tone == layer.tone]
        i = same[0] if same and layer.tone == "main" else i  # pieces of one colour are one piece of glass
        if layer.width:
            pen.line(points, i, max(1, round(layer.width * FINE)), "curve")
        else:
            pen.polygon(points, fill=i)
    return np.asarray(image).astype(int), np.stack([_jewel(layer) for layer in stack])


def _is_large(layer: Layer) -> bool:
    """False for eyes and dots too small for a piece of glass."""
    xs, ys = [p[0] for p in layer.points], [p[1] for p in layer.points]
    return max(max(xs) - min(xs), max(ys) - min(ys)) > 9.5 and layer.tone != "ink"


def _jewel(layer: Layer) -> Array:
    """The layer's colour as glass: deep and saturated; whites stay milky."""
    mean = [(a + b) / 510 for a, b in zip(layer.top, layer.bottom, strict=True)]
    h, s, v = colorsys.rgb_to_hsv(*mean)
    if layer.role == "thing":
        s, v = (s, 1.0) if s < 0.16 else (min(1, s * 1.35 + 0.1), min(1, v * 1.05 + 0.05))
    else:
        s, v = min(1, s * 1.25 + 0.22), 0.34 + 0.38 * v
    return np.array(colorsys.hsv_to_rgb(h, s, v), np.float32) * 235


def _cells(rng: random.Random, count: int) -> Array:
    """Voronoi cells around scattered points, numbered from 1."""
    side = SIZE * FINE
    points = np.array([[rng.uniform(0, side), rng.uniform(0, side)] for _ in range(count)], np.float32)
    y, x = np.mgrid[:side, :side].astype(np.float32)
    distance = [(y - p[0]) ** 2 + (x - p[1]) ** 2 for p in points]
    return np.argmin(distance, 0) + 1


def _cell_light(rng: random.Random) -> Array:
    """How bright each cell's glass is; the thing's own is 1.1."""
    return np.array([1.1, *(rng.uniform(0.7, 1.5) for _ in range(63))], np.float32)


def _leading(labels: Array, inside: Array) -> Array:
    """Lines where labels meet, thicker around the thing."""
    lines = _borders(labels)
    wide = Image.fromarray(lines.astype(np.uint8) * 255).filter(ImageFilter.MaxFilter(9))
    rim = Image.fromarray(_borders(inside.astype(int)).astype(np.uint8) * 255).filter(ImageFilter.MaxFilter(13))
    return (np.asarray(wide) > 0) | (np.asarray(rim) > 0)


def _borders(labels: Array) -> Array:
    """True where a pixel differs from its right or lower neighbour."""
    out = np.zeros(labels.shape, bool)
    out[:-1] |= labels[1:] != labels[:-1]
    out[:, :-1] |= labels[:, 1:] != labels[:, :-1]
    return out


def _glow(lead: Array) -> Array:
    """Light in the middle of the cells and of the window: 0 at the leading, 1 far from it."""
    soft = Image.fromarray((~lead).astype(np.uint8) * 255).filter(ImageFilter.GaussianBlur(4 * FINE))
    y, x = np.mgrid[-1 : 1 : SIZE * FINE * 1j, -1 : 1 : SIZE * FINE * 1j]
    return np.asarray(soft, np.float32) / 255 * 1.2 - 0.35 * (x**2 + y**2)


# print in three inks


def paper_print(stack: list[Layer], rng: random.Random) -> Image.Image:
    """Cream paper, navy halftone land, the thing in its own ink over an offset orange shadow, a navy frame."""
    thing = [s for s in stack if s.role == "thing"]
    page = np.broadcast_to(CREAM, (SIZE * FINE, SIZE * FINE, 3)).copy()
    page[_halftone(_land_tone(stack))] = NAVY
    body = [s for s in thing if s.tone != "ink"]
    page[_mask(body, dx=8, dy=7, grow=1)] = ORANGE
    page[_mask(body, grow=6)] = CREAM
    for layer in thing:
        page[_mask([layer])] = _spot_ink(layer)
    page[_frame()] = NAVY
    return _reduce(page)


def _land_tone(stack: list[Layer]) -> Array:
    """How much navy: none in the sky's top, some at the hills, more in the foreground."""
    tone = np.broadcast_to(np.linspace(0.02, 0.12, SIZE * FINE)[:, None], (SIZE * FINE, SIZE * FINE)).copy()
    dark = sum(stack[0].top) < 240
    tone += 0.3 if dark else 0.0
    for layer in stack:
        if layer.role in ("back", "front"):
            tone[_mask([layer])] = (0.3 if layer.role == "back" else 0.52) + (0.12 if dark else 0)
    return tone


def _halftone(tone: Array, period: int = 16) -> Array:
    """Coarse round dots on a square grid, larger where the tone is darker."""
    y, x = np.mgrid[: SIZE * FINE, : SIZE * FINE] / FINE
    u, v = (x % period) - period / 2, (y % period) - period / 2
    return np.hypot(u, v) < period * np.sqrt(np.clip(tone, 0, 0.9) / np.pi) * 1.05


def _spot_ink(layer: Layer) -> Array:
    """The thing's own flat ink; its fixed details in navy or paper."""
    if layer.tone in ("ink", "wood", "leaf"):
        return NAVY
    if layer.tone in ("cream", "glow", "pale"):
        return CREAM
    mean = (np.array(layer.top, np.float32) + layer.bottom) / 2
    return (
        mean
        if layer.tone == "main"
        else mean * 0.85 + NAVY * 0.15
        if layer.tone == "dark"
        else mean * 0.7 + CREAM * 0.3
    )


def _edge_distance() -> Array:
    """Distance of each pixel to the picture's edge."""
    y, x = np.mgrid[: SIZE * FINE, : SIZE * FINE] / FINE
    return np.minimum(np.minimum(x, SIZE - x), np.minimum(y, SIZE - y))


def _frame() -> Array:
    """The broad border of the print; as wide as one cell of the autoencoder's grid."""
    return _edge_distance() < 8


STYLES = {"stained_glass": stained_glass, "paper_print": paper_print}
