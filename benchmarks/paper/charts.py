"""Curves as pictures, drawn with Pillow alone: several panels beside each other, one legend."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw

from trilora.plot import FAINT, INK, PAPER, font

COLOURS = ("#e4572e", "#2e86ab", "#3c9d5b", "#8a4fbf", "#b8860b", "#d1478f", "#5b6770", "#17a398")
WIDTH, HEIGHT, LEFT, TOP, BOTTOM = 460, 400, 64, 34, 46
ACROSS = 3  # names in a row of the legend

Curve = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Panel:
    """One chart.

    Attributes:
        title, below, beside: its words.
        curves: name -> (x, y), drawn in the order given, a dot each.
        steep: whether x is on a logarithmic scale; y always is.
    """

    title: str
    below: str
    beside: str
    curves: Mapping[str, Curve]
    steep: bool = False


def drawn(panels: Sequence[Panel]) -> Image.Image:
    """Panels side by side; a name has one colour in all of them."""
    names = list(dict.fromkeys(name for panel in panels for name in panel.curves))
    colours = {name: COLOURS[i % len(COLOURS)] for i, name in enumerate(names)}
    rows = -(-len(names) // ACROSS)
    picture = Image.new("RGB", (WIDTH * len(panels), HEIGHT + 22 * rows + 8), PAPER)
    pen = ImageDraw.Draw(picture)
    for i, panel in enumerate(panels):
        _panel(pen, panel, i * WIDTH, colours)
    room = WIDTH * len(panels) // min(ACROSS, len(names))
    for i, name in enumerate(names):
        x, y = 14 + i % ACROSS * room, HEIGHT + 14 + i // ACROSS * 22
        pen.ellipse((x - 5, y - 5, x + 5, y + 5), colours[name])
        pen.text((x + 12, y), name.replace("Σ", "sigma"), INK, font(12), anchor="lm")
    return picture


def _panel(pen: ImageDraw.ImageDraw, panel: Panel, offset: int, colours: Mapping[str, str]) -> None:
    every = [point for curve in panel.curves.values() for point in curve]
    across = _Scale([x for x, _ in every], offset + LEFT, offset + WIDTH - 20, panel.steep)
    up = _Scale([y for _, y in every], HEIGHT - BOTTOM, TOP, True)
    pen.text((offset + LEFT, 10), panel.title, INK, font(15))
    for value in up.ticks():
        pen.line((across.start, up(value), across.end, up(value)), FAINT)
        pen.text((across.start - 6, up(value)), f"{value:.3g}", INK, font(11), anchor="rm")
    for value in across.ticks():
        pen.text((across(value), HEIGHT - BOTTOM + 6), f"{value:.3g}", INK, font(11), anchor="ma")
    pen.text(((across.start + across.end) / 2, HEIGHT - 4), panel.below, INK, font(12), anchor="ms")
    pen.text((across.start + 6, TOP + 4), panel.beside, INK, font(12))
    for name, curve in panel.curves.items():
        points = [(across(x), up(y)) for x, y in curve]
        if len(points) > 1:
            pen.line(points, colours[name], 2)
        for x, y in points:
            pen.ellipse((x - 3, y - 3, x + 3, y + 3), colours[name])


class _Scale:
    """Values to pixels, linear or logarithmic, with a little room at both ends."""

    def __init__(self, values: Sequence[float], start: float, end: float, steep: bool) -> None:
        self.start, self.end, self.steep = start, end, steep
        low, high = (self._on(v) for v in (min(values), max(values)))
        room = (high - low) * 0.05 or 0.5
        self.low, self.high = low - room, high + room

    def __call__(self, value: float) -> float:
        return self.start + (self.end - self.start) * (self._on(value) - self.low) / (self.high - self.low)

    def ticks(self) -> list[float]:
        places = [self.low + (self.high - self.low) * i / 4 for i in range(5)]
        return [math.exp(place) for place in places] if self.steep else places

    def _on(self, value: float) -> float:
        return math.log(value) if self.steep else value
