"""A drawn creature set, the stand-in for the paper's: invented beings on white paper, flat colours, dark outlines."""

import random
from collections.abc import Iterator
from dataclasses import dataclass

from PIL import Image, ImageDraw

from demo.world import COLOURS, article

SIZE, SCALE = 128, 4  # drawn four times too large, then reduced: smooth edges
INK, PAPER = (34, 28, 40), (253, 252, 248)
BODIES = {"round": (1.0, 1.0), "tall": (0.78, 1.25), "wide": (1.3, 0.82)}
EYES = {1: "one eye", 2: "two eyes", 3: "three eyes"}
PARTS = ("horns", "ears", "wings", "a tail", "spots", "stripes", "long legs", "a crest")

Box = tuple[float, float, float, float]
Shade = tuple[int, int, int]


@dataclass(frozen=True)
class Creature:
    """One being; `size` is half its body's height in hundredths of the picture."""

    colour: str
    belly: str
    body: str
    eyes: int
    parts: tuple[str, ...]
    size: int


def creatures(count: int, seed: int) -> Iterator[Creature]:
    """That many beings, no two alike in what their captions say."""
    rng, seen = random.Random(seed), set()
    while len(seen) < count:
        colour, belly = rng.sample(list(COLOURS), 2)
        parts = tuple(sorted(rng.sample(PARTS, rng.randint(1, 3)), key=PARTS.index))
        one = Creature(colour, belly, rng.choice(list(BODIES)), rng.choice((1, 2, 2, 3)), parts, rng.randint(20, 25))
        if caption(one) not in seen:
            seen.add(caption(one))
            yield one


def caption(one: Creature) -> str:
    """`a red and white round creature with two eyes, horns and a tail`."""
    *first, last = (EYES[one.eyes], *one.parts)
    return f"{article(one.colour)} {one.colour} and {one.belly} {one.body} creature with {', '.join(first)} and {last}"


def draw(one: Creature) -> Image.Image:
    """The picture, 128 x 128 RGB."""
    side = SIZE * SCALE
    pen = _Pen(Image.new("RGB", (side, side), PAPER), one)
    for part in ("a tail", "wings", "horns", "ears", "a crest"):
        if part in one.parts:
            BEHIND[part](pen)
    pen.legs(0.5 if "long legs" in one.parts else 0.28)
    pen.oval((-1, -1, 1, 1), pen.main)
    if "spots" in one.parts:
        for x, y in ((-0.55, -0.05), (0.6, 0.1), (-0.2, -0.7), (0.35, -0.6)):
            pen.oval((x - 0.14, y - 0.14, x + 0.14, y + 0.14), pen.dark, 0)
    pen.oval((-0.55, 0.1, 0.55, 0.92), pen.pale, 2)
    if "stripes" in one.parts:
        for y in (0.32, 0.52, 0.72):
            pen.line([(-0.4, y), (0.4, y)], pen.dark, 4)
    pen.face()
    return pen.image.resize((SIZE, SIZE), Image.Resampling.BOX)


class _Pen:
    """Draws in units of the body: -1 to 1 from its left to its right and from its top to its foot."""

    def __init__(self, image: Image.Image, one: Creature) -> None:
        self.image, self.one, self.on = image, one, ImageDraw.Draw(image)
        self.main, self.pale = COLOURS[one.colour], COLOURS[one.belly]
        self.dark: Shade = tuple(int(0.62 * c) for c in self.main)  # type: ignore[assignment]
        wide, high = BODIES[one.body]
        self.radius = (one.size / 100 * wide * image.width, one.size / 100 * high * image.height)
        self.centre = (image.width / 2, image.height * 0.52)

    def at(self, x: float, y: float) -> tuple[float, float]:
        return self.centre[0] + x * self.radius[0], self.centre[1] + y * self.radius[1]

    def oval(self, box: Box, fill: Shade, outline: int = 3) -> None:
        self.on.ellipse((*self.at(*box[:2]), *self.at(*box[2:])), fill, INK if outline else None, outline * SCALE)

    def line(self, points: list[tuple[float, float]], fill: Shade, width: float) -> None:
        self.on.line([self.at(*p) for p in points], fill, round(width * SCALE), "curve")

    def shape(self, points: list[tuple[float, float]], fill: Shade) -> None:
        placed = [self.at(*p) for p in points]
        self.on.polygon(placed, fill)
        self.on.line([*placed, placed[0]], INK, 3 * SCALE, "curve")

    def both(self, points: list[tuple[float, float]], fill: Shade) -> None:
        """A shape and its mirror image."""
        for way in (-1, 1):
            self.shape([(way * x, y) for x, y in points], fill)

    def legs(self, long: float) -> None:
        for x in (-0.5, 0.5):
            self.oval((x - 0.24, 0.7, x + 0.24, 0.95 + long), self.dark)

    def face(self) -> None:
        places = {1: (0.0,), 2: (-0.36, 0.36), 3: (-0.5, 0.0, 0.5)}[self.one.eyes]
        wide = 0.3 if self.one.eyes == 1 else 0.2
        for x in places:
            self.oval((x - wide, -0.52, x + wide, -0.52 + 2 * wide), (255, 255, 255), 2)
            self.oval((x - 0.09, -0.44 + wide / 2, x + 0.09, -0.26 + wide / 2), INK, 0)
        self.line([(-0.18, 0.02), (0, 0.09), (0.18, 0.02)], INK, 3)


def _tail(pen: _Pen) -> None:
    points = [(0.7, 0.6), (1.3, 0.5), (1.45, 0.0), (1.3, -0.25)]
    pen.line(points, INK, 13)
    pen.line(points, pen.main, 8)
    pen.oval((1.12, -0.5, 1.48, -0.1), pen.pale)


BEHIND = {
    "a tail": _tail,
    "wings": lambda pen: pen.both([(0.6, -0.1), (1.55, -0.85), (1.6, -0.1), (1.3, 0.05), (1.2, 0.35)], pen.pale),
    "horns": lambda pen: pen.both([(0.2, -0.85), (0.5, -1.55), (0.62, -0.7)], pen.pale),
    "ears": lambda pen: pen.both([(0.35, -0.8), (0.85, -1.4), (1.05, -0.9), (0.8, -0.45)], pen.main),
    "a crest": lambda pen: pen.shape(
        [(-0.3, -0.85), (-0.34, -1.3), (-0.1, -1.1), (0.0, -1.5), (0.1, -1.1), (0.34, -1.3), (0.3, -0.85)], pen.dark
    ),
}
