"""The eight things of the world as polygons in a box from -1 to 1 (x right, y down)."""

from __future__ import annotations

import math
from dataclasses import dataclass

Point = tuple[float, float]


@dataclass(frozen=True)
class Part:
    """A filled polygon, or (width > 0) a thick line; `tone` names its shade."""

    points: list[Point]
    tone: str
    width: float = 0.0


def oval(x: float, y: float, rx: float, ry: float, start: float = 0, end: float = 360) -> list[Point]:
    """An ellipse, or the sector of one between two angles in degrees, as a polygon."""
    angles = [math.radians(start + (end - start) * i / 40) for i in range(41)]
    return [(x + rx * math.cos(a), y + ry * math.sin(a)) for a in angles]


def box(x0: float, y0: float, x1: float, y1: float) -> list[Point]:
    """A rectangle as a polygon."""
    return [(x0, y0), (x1, y0), (x1, y1), (x0, y1)]


def house() -> list[Part]:
    window = [Part(box(x, 0.2, x + 0.3, 0.52), "glow") for x in (-0.56, 0.28)]
    return [
        Part(box(0.36, -0.9, 0.62, -0.2), "dark"),
        Part(box(-0.76, -0.1, 0.76, 0.97), "main"),
        Part([(-1.0, 0.02), (0, -0.97), (1.0, 0.02)], "dark"),
        Part(box(-0.17, 0.38, 0.17, 0.97), "wood"),
        *window,
    ]


def tree() -> list[Part]:
    crown = [(0, -0.42, 0.62, 0.54), (-0.46, -0.02, 0.44, 0.4), (0.46, -0.02, 0.44, 0.4), (0, 0.08, 0.4, 0.3)]
    return [
        Part([(-0.13, 0.1), (0.13, 0.1), (0.22, 0.98), (-0.22, 0.98)], "wood"),
        *[Part(oval(*c), "main") for c in crown],
        Part(oval(-0.2, -0.55, 0.27, 0.2), "light"),
        Part(oval(0.42, -0.1, 0.2, 0.15), "light"),
    ]


def boat() -> list[Part]:
    return [
        Part([(0, -0.98), (0, 0.4)], "wood", 0.09),
        Part([(0.08, -0.92), (0.08, 0.22), (0.88, 0.22)], "light"),
        Part([(-0.08, -0.72), (-0.08, 0.22), (-0.68, 0.22)], "main"),
        Part([(-0.98, 0.34), (0.98, 0.34), (0.62, 0.9), (-0.62, 0.9)], "main"),
        Part([(-0.86, 0.5), (0.86, 0.5)], "pale", 0.1),
    ]


def fish() -> list[Part]:
    return [
        Part([(0.4, 0), (0.98, -0.5), (0.84, 0), (0.98, 0.5)], "dark"),
        Part([(-0.3, -0.35), (0.12, -0.82), (0.35, -0.25)], "dark"),
        Part(oval(-0.16, 0, 0.74, 0.52), "main"),
        Part(oval(-0.22, 0.24, 0.46, 0.2), "light"),
        Part([(0.08, -0.42), (0.18, 0), (0.08, 0.42)], "dark", 0.1),
        Part([(0.3, -0.32), (0.38, 0), (0.3, 0.32)], "dark", 0.1),
        Part(oval(-0.54, -0.14, 0.15, 0.15), "cream"),
        Part(oval(-0.56, -0.14, 0.08, 0.08), "ink"),
    ]


def mushroom() -> list[Part]:
    dots = [(-0.45, -0.28, 0.14, 0.12), (0, -0.55, 0.17, 0.14), (0.47, -0.25, 0.14, 0.12), (0.05, -0.16, 0.1, 0.08)]
    return [
        Part([(-0.22, -0.1), (0.22, -0.1), (0.34, 0.97), (-0.34, 0.97)], "cream"),
        Part(oval(0, 0.06, 0.96, 0.98, 180, 360), "main"),
        Part(oval(0, 0.06, 0.9, 0.14), "dark"),
        *[Part(oval(*d), "cream") for d in dots],
    ]


def cat() -> list[Part]:
    eyes = [Part(oval(x, -0.36, 0.1, 0.12), "cream") for x in (-0.2, 0.2)]
    pupils = [Part(oval(x, -0.35, 0.055, 0.09), "ink") for x in (-0.2, 0.2)]
    ears = [Part([(s * 0.46, -0.98), (s * 0.52, -0.3), (s * 0.1, -0.62)], "main") for s in (-1, 1)]
    return [
        Part([(0.4, 0.82), (0.8, 0.76), (0.86, 0.3), (0.7, 0.06)], "dark", 0.2),
        Part(oval(0, 0.5, 0.56, 0.5), "main"),
        Part(oval(0, 0.62, 0.28, 0.34), "light"),
        *ears,
        Part(oval(0, -0.3, 0.54, 0.44), "main"),
        *eyes,
        *pupils,
        Part([(-0.08, -0.18), (0.08, -0.18), (0, -0.08)], "ink"),
    ]


def balloon() -> list[Part]:
    return [
        Part([(-0.5, 0.1), (-0.16, 0.74)], "ink", 0.05),
        Part([(0.5, 0.1), (0.16, 0.74)], "ink", 0.05),
        Part(oval(0, -0.28, 0.76, 0.7), "main"),
        Part([(-0.52, 0.2), (0.52, 0.2), (0.2, 0.54), (-0.2, 0.54)], "main"),
        Part(oval(0, -0.28, 0.32, 0.7), "light"),
        Part([(-0.24, 0.36), (0.24, 0.36), (0.14, 0.54), (-0.14, 0.54)], "light"),
        Part(box(-0.22, 0.7, 0.22, 0.98), "wood"),
    ]


def flower() -> list[Part]:
    ring = [(0.46 * math.cos(a), -0.36 + 0.42 * math.sin(a)) for a in [math.tau * i / 7 for i in range(7)]]
    return [
        Part([(0, -0.1), (0.03, 0.98)], "leaf", 0.12),
        Part([(0, 0.85), (0.2, 0.5), (0.62, 0.4), (0.42, 0.75)], "leaf"),
        Part([(0, 0.95), (-0.2, 0.6), (-0.62, 0.5), (-0.42, 0.85)], "leaf"),
        *[Part(oval(x, y, 0.27, 0.25), "main") for x, y in ring],
        Part(oval(0, -0.36, 0.24, 0.22), "wood"),
    ]


PARTS = {f.__name__: f for f in (house, tree, boat, fish, mushroom, cat, balloon, flower)}
