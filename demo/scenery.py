"""A SceneSpec as a list of coloured layers in pixels of a 128 x 128 picture, back to front."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

from .shapes import PARTS, Point, oval
from .world import COLOURS, SceneSpec

SIZE = 128
RGB = tuple[int, int, int]
CENTRE = {"left": 32, "middle": 64, "right": 96}
FIXED = {  # tones that do not follow the thing's colour
    "cream": (255, 247, 226),
    "glow": (255, 236, 150),
    "wood": (128, 82, 52),
    "leaf": (70, 140, 66),
    "ink": (46, 36, 52),
}


@dataclass(frozen=True)
class Layer:
    """A polygon, or a line if `width` is set; `role` is sky, back, front, detail, shadow, outline or thing."""

    points: list[Point]
    top: RGB
    bottom: RGB
    role: str
    width: float = 0.0
    alpha: int = 255
    tone: str = ""


def mix(a: RGB, b: RGB, t: float) -> RGB:
    """a at t = 0, b at t = 1."""
    return tuple(round(x + (y - x) * t) for x, y in zip(a, b, strict=True))


def layers(spec: SceneSpec) -> list[Layer]:
    """The whole picture: sky and land, a soft shadow, the thing."""
    rng = random.Random(f"{spec.thing}{spec.colour}{spec.place}{spec.scene}{spec.seed}")
    land = BACKDROPS[spec.scene](rng)
    x, y, half, flip, tilt = _pose(spec, rng)
    under = [] if spec.thing == "balloon" else _ground(spec, x, y + half * 0.95, half)
    return [*land, *under, *_thing(spec, rng, x, y, half, flip, tilt)]


def _pose(spec: SceneSpec, rng: random.Random) -> tuple[float, float, float, int, float]:
    """Centre, half size, mirroring and tilt of the thing."""
    half = rng.uniform(28, 33)
    x = CENTRE[spec.place] + rng.uniform(-4, 4)
    x = min(max(x, half - 1), SIZE + 1 - half)
    foot = 56 + 2 * half * 0.5 if spec.thing == "balloon" else rng.uniform(108, 116)
    y = foot - half
    flip = rng.choice([-1, 1]) if spec.thing in ("boat", "fish", "cat", "house") else 1
    return x, y, half, flip, rng.uniform(-0.06, 0.06)


def _thing(spec: SceneSpec, rng: random.Random, x: float, y: float, half: float, flip: int, tilt: float) -> list[Layer]:
    """The thing's parts, first all as a dark outline, then filled."""
    shade = _shade(COLOURS[spec.colour], rng)
    c, s = math.cos(tilt), math.sin(tilt)

    def place(p: Point) -> Point:
        u, v = p[0] * flip, p[1]
        return x + half * (u * c - v * s), y + half * (u * s + v * c)

    outline, fill = [], []
    for part in PARTS[spec.thing]():
        points = [place(p) for p in part.points]
        width = part.width * half
        top, bottom = shade[part.tone]
        if part.tone != "ink" and not (part.tone in ("light", "pale") and part.width):
            closed = points if width else [*points, points[0]]
            outline.append(Layer(closed, shade["line"], shade["line"], "outline", width + 3.2, tone="line"))
        fill.append(Layer(points, top, bottom, "thing", width, tone=part.tone))
    return [*outline, *fill]


def _shade(base: RGB, rng: random.Random) -> dict:
    """The tones of a thing, as (top, bottom) colours."""
    base = tuple(min(255, max(0, v + rng.randint(-8, 8))) for v in base)
    deep = mix(base, (40, 24, 60), 0.26)
    tones = {"main": (mix(base, (255, 255, 255), 0.1), mix(base, (50, 20, 70), 0.1))}
    tones["dark"] = (deep, mix(deep, (40, 20, 60), 0.12))
    tones["light"] = (mix(base, (255, 255, 255), 0.42), mix(base, (255, 255, 255), 0.24))
    tones["pale"] = (mix(base, (255, 255, 255), 0.72), mix(base, (255, 255, 255), 0.6))
    tones.update({name: (rgb, mix(rgb, (60, 30, 60), 0.12)) for name, rgb in FIXED.items()})
    tones["line"] = mix(base, (30, 18, 44), 0.72)
    return tones


def _ground(spec: SceneSpec, x: float, foot: float, half: float) -> list[Layer]:
    """What the thing stands on: a soft shadow; on the sea ripples under what swims, a sandbank under the rest."""
    if spec.scene != "sea":
        return [Layer(oval(x + 3, foot, half * 1.02, 5), (30, 26, 60), (30, 26, 60), "shadow", alpha=70)]
    if spec.thing in ("boat", "fish"):
        waves = ((half * 1.1, 6, (24, 92, 142)), (half * 0.95, 3.5, (150, 222, 230)))
        return [Layer(oval(x, foot - 1, rx, ry), rgb, rgb, "shadow") for rx, ry, rgb in waves]
    banks = ((half * 1.16, 8.5, (222, 244, 240)), (half * 1.08, 7, (240, 216, 150)))
    return [Layer(oval(x, foot + 1, rx, ry), rgb, mix(rgb, (150, 110, 70), 0.25), "shadow") for rx, ry, rgb in banks]


def _sky(top: RGB, bottom: RGB, rng: random.Random) -> Layer:
    """The whole picture, as a gradient that reaches the horizon colour at the bottom."""
    t = rng.uniform(-0.06, 0.06)
    return Layer([(0, 0), (SIZE, 0), (SIZE, 96), (0, 96)], mix(top, bottom, max(t, 0)), bottom, "sky")


def _hill(rng: random.Random, y: float, swing: float, top: RGB, bottom: RGB, role: str) -> Layer:
    """Land below a wavy line around y."""
    f, p, q = rng.uniform(0.6, 1.1), rng.uniform(0, 6.3), rng.uniform(0, 6.3)
    edge = []
    for i in range(33):
        x = i * SIZE / 32
        edge.append((x, y + swing * (math.sin(f * x / 16 + p) + 0.4 * math.sin(f * x / 7 + q))))
    return Layer([*edge, (SIZE, SIZE + 2), (0, SIZE + 2)], top, bottom, role)


def _disc(x: float, y: float, r: float, rgb: RGB, alpha: int = 255) -> Layer:
    return Layer(oval(x, y, r, r), rgb, rgb, "detail", alpha=alpha)


def _sun(rng: random.Random, rgb: RGB, r: float) -> list[Layer]:
    """A disc with two soft rings."""
    x, y = rng.uniform(14, 114), rng.uniform(14, 24)
    return [
        _disc(x, y, r * 1.9, rgb, 50),
        _disc(x, y, r * 1.4, rgb, 80),
        _disc(x, y, r, mix(rgb, (255, 255, 255), 0.3)),
    ]


def _clouds(rng: random.Random, rgb: RGB, count: int) -> list[Layer]:
    """Clouds of three puffs on a flat base."""
    out = []
    for _ in range(count):
        x, y, r = rng.uniform(8, 120), rng.uniform(12, 40), rng.uniform(6, 9)
        puffs = ((x - r, y, r * 0.7), (x, y - r * 0.35, r), (x + r * 1.1, y, r * 0.75))
        out += [Layer(oval(px, py, pr * 1.1, pr * 0.8), rgb, rgb, "detail", alpha=225) for px, py, pr in puffs]
    return out


def _meadow(rng: random.Random) -> list[Layer]:
    land = [
        _hill(rng, rng.uniform(66, 74), 5, (150, 204, 150), (120, 190, 120), "back"),
        _hill(rng, rng.uniform(84, 92), 4, (166, 214, 98), (104, 176, 74), "front"),
    ]
    sky = [
        _sky((104, 190, 240), (240, 248, 226), rng),
        *_sun(rng, (255, 228, 120), 9),
        *_clouds(rng, (255, 255, 255), 2),
    ]
    tufts = []
    for _ in range(6):
        x, y = rng.uniform(3, 125), rng.uniform(100, 125)
        blades = ((-2.5, -4), (0, -6), (2.5, -4))
        tufts += [Layer([(x, y), (x + a, y + b)], (70, 140, 62), (70, 140, 62), "detail", 1.4) for a, b in blades]
    return [*sky, *land, *tufts]


def _sea(rng: random.Random) -> list[Layer]:
    y = rng.uniform(66, 74)
    water = Layer([(0, y), (SIZE, y), (SIZE, SIZE), (0, SIZE)], (70, 176, 200), (22, 92, 150), "front")
    waves = []
    for i in range(9):
        x, wy = rng.uniform(0, 118), y + 6 + i * 6
        line = [(x + k * 4, wy + 1.4 * math.sin(k * 1.5)) for k in range(5)]
        waves.append(Layer(line, (176, 230, 232), (176, 230, 232), "detail", 1.6))
    sky = [
        _sky((96, 196, 214), (255, 228, 196), rng),
        *_sun(rng, (255, 214, 130), 10),
        *_clouds(rng, (255, 246, 236), 2),
    ]
    return [*sky, water, *waves]


def _desert(rng: random.Random) -> list[Layer]:
    land = [
        _hill(rng, rng.uniform(64, 72), 6, (226, 160, 110), (214, 140, 92), "back"),
        _hill(rng, rng.uniform(84, 92), 5, (246, 204, 136), (222, 164, 96), "front"),
    ]
    x, y, h = rng.choice([rng.uniform(6, 30), rng.uniform(98, 122)]), rng.uniform(82, 90), rng.uniform(16, 22)
    arms = ([(x, y), (x, y - h)], [(x, y - h * 0.4), (x + 6, y - h * 0.45), (x + 6, y - h * 0.8)])
    cactus = [Layer(a, (84, 130, 84), (84, 130, 84), "detail", w) for a, w in zip(arms, (5, 3.6), strict=True)]
    sky = [_sky((248, 178, 130), (255, 236, 196), rng), *_sun(rng, (255, 240, 190), 13)]
    return [*sky, land[0], *cactus, land[1]]


def _night(rng: random.Random) -> list[Layer]:
    stars = []
    for _ in range(22):
        r = rng.choice([0.7, 0.9, 1.5])
        stars.append(_disc(rng.uniform(2, 126), rng.uniform(3, 62), r, (255, 250, 220)))
    x, y = rng.uniform(14, 114), rng.uniform(15, 24)
    moon = [
        _disc(x, y, 15, (150, 160, 230), 60),
        _disc(x, y, 10, (255, 246, 206)),
        _disc(x + 4.5, y - 2.5, 8, (44, 44, 112)),
    ]
    land = [
        _hill(rng, rng.uniform(66, 74), 5, (52, 62, 130), (46, 54, 118), "back"),
        _hill(rng, rng.uniform(84, 92), 4, (48, 84, 120), (28, 46, 88), "front"),
    ]
    return [_sky((20, 20, 66), (92, 82, 160), rng), *stars, *moon, *land]


def _snow(rng: random.Random) -> list[Layer]:
    land = [
        _hill(rng, rng.uniform(64, 72), 6, (206, 218, 240), (190, 206, 234), "back"),
        _hill(rng, rng.uniform(84, 92), 4, (246, 250, 255), (208, 222, 244), "front"),
    ]
    pines = []
    for _ in range(4):
        x, y, h = rng.uniform(4, 124), rng.uniform(80, 88), rng.uniform(15, 24)
        for k in (0, 0.35):
            pts = [
                (x - h * (0.36 - k * 0.3), y - h * k),
                (x + h * (0.36 - k * 0.3), y - h * k),
                (x, y - h * (0.65 + k)),
            ]
            pines.append(Layer(pts, (128, 160, 176), (92, 130, 152), "detail"))
    flakes = [_disc(rng.uniform(2, 126), rng.uniform(2, 80), rng.uniform(0.9, 1.6), (255, 255, 255)) for _ in range(24)]
    return [_sky((164, 178, 216), (236, 234, 246), rng), land[0], *pines, land[1], *flakes]


BACKDROPS = {"meadow": _meadow, "sea": _sea, "desert": _desert, "night": _night, "snow": _snow}
