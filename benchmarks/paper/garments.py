"""A drawn set of dresses laid flat, the stand-in for the paper's, and the wider set that a base is specialised with.

The set to learn has a house style: a pale grey ground, dark piping along every edge, a gold belt, muted colours.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFilter

from demo.world import COLOURS

SIZE, SCALE = 128, 4
GROUND, PIPING, GOLD = (226, 226, 224), (28, 30, 54), (206, 164, 66)
LENGTHS = {"knee-length": 0.76, "ankle-length": 0.93}
SLEEVES = ("sleeveless", "short sleeves", "long sleeves")
NECKS = ("round neck", "v neck", "strapless")
PATTERNS = ("solid color", "stripes", "dots", "two-tone")
SKIRTS = {"straight skirt": 0.19, "flared skirt": 0.33}

Point = tuple[float, float]
Shade = tuple[int, int, int]


@dataclass(frozen=True)
class Garment:
    """One dress; `house` is the look of the set to learn, else any maker's."""

    colour: str
    second: str
    length: str
    sleeves: str
    neck: str
    pattern: str
    skirt: str
    house: bool
    ground: Shade = GROUND


def garments(count: int, seed: int, house: bool) -> Iterator[Garment]:
    """That many dresses, no two alike in what their captions say."""
    rng, seen = random.Random(seed), set()
    while len(seen) < count:
        colour, second = rng.sample(list(COLOURS), 2)
        length, sleeves, neck, pattern, skirt = (
            rng.choice(list(k)) for k in (LENGTHS, SLEEVES, NECKS, PATTERNS, SKIRTS)
        )
        sleeves = SLEEVES[0] if neck == "strapless" else sleeves
        ground = GROUND if house else (rng.randint(176, 250), rng.randint(176, 250), rng.randint(176, 250))
        one = Garment(colour, second, length, sleeves, neck, pattern, skirt, house, ground)
        if caption(one) not in seen:
            seen.add(caption(one))
            yield one


def caption(one: Garment) -> str:
    """`red and white, knee-length, stripes, v neck, sleeveless, flared skirt`."""
    colours = one.colour if one.pattern == "solid color" else f"{one.colour} and {one.second}"
    return f"{colours}, {one.length}, {one.pattern}, {one.neck}, {one.sleeves}, {one.skirt}"


def draw(one: Garment) -> Image.Image:
    """The picture, 128 x 128 RGB."""
    side = SIZE * SCALE
    outlines = [*_sleeves(one), _dress(one)]
    whole = Image.new("L", (side, side), 0)
    for points in outlines:
        ImageDraw.Draw(whole).polygon(_placed(points), 255)
    picture = Image.new("RGB", (side, side), one.ground)
    shadow = whole.filter(ImageFilter.GaussianBlur(3 * SCALE)).point(lambda v: v // 3)
    picture.paste((60, 60, 66), (2 * SCALE, 2 * SCALE), shadow)
    picture.paste(_cloth(one, side), (0, 0), whole)
    _trim(ImageDraw.Draw(picture), one, outlines)
    return picture.resize((SIZE, SIZE), Image.Resampling.BOX)


def _dress(one: Garment) -> list[Point]:
    """The body's outline, in shares of the picture."""
    hem, wide, shoulder = LENGTHS[one.length], SKIRTS[one.skirt], 0.13
    neck = {
        "round neck": [(-0.06, 0.1), (0.0, 0.15), (0.06, 0.1)],
        "v neck": [(-0.07, 0.09), (0.0, 0.24), (0.07, 0.09)],
    }
    top = [(-shoulder, 0.1), *neck[one.neck], (shoulder, 0.1)] if one.neck in neck else [(-0.13, 0.19), (0.13, 0.19)]
    return [*top, (0.14, 0.26), (0.1, 0.42), (wide, hem), (-wide, hem), (-0.1, 0.42), (-0.14, 0.26)]


def _sleeves(one: Garment) -> list[list[Point]]:
    if one.sleeves == "sleeveless":
        return []
    end, wide = (0.27, 0.3) if one.sleeves == "short sleeves" else (0.56, 0.35)
    right = [(0.1, 0.1), (0.15, 0.12), (wide, end), (wide - 0.1, end + 0.03), (0.12, 0.27)]
    return [right, [(-x, y) for x, y in right]]


def _cloth(one: Garment, side: int) -> Image.Image:
    """The whole picture as cloth, with the pattern."""
    first, second = (_dyed(COLOURS[name], one.house) for name in (one.colour, one.second))
    cloth = Image.new("RGB", (side, side), first)
    pen, step = ImageDraw.Draw(cloth), side // 12
    if one.pattern == "stripes":
        for y in range(0, side, step):
            pen.rectangle((0, y, side, y + step // 2), second)
    if one.pattern == "dots":
        for row, y in enumerate(range(0, side, step)):
            for x in range(row % 2 * step // 2, side, step):
                pen.ellipse((x, y, x + step // 2, y + step // 2), second)
    if one.pattern == "two-tone":
        pen.rectangle((0, round(0.42 * side), side, side), second)
    return cloth


def _dyed(colour: Shade, house: bool) -> Shade:
    """Colours of the house are muted."""
    grey = sum(colour) / 3
    return tuple(round(0.6 * c + 0.4 * grey * 0.85) for c in colour) if house else colour  # type: ignore[return-value]


def _trim(pen: ImageDraw.ImageDraw, one: Garment, outlines: list[list[Point]]) -> None:
    width, ink = (3, PIPING) if one.house else (1, (110, 110, 116))
    for points in outlines:
        placed = _placed(points)
        pen.line([*placed, placed[0]], ink, width * SCALE, "curve")
    if one.house:
        left, right = _placed([(-0.105, 0.4), (0.105, 0.45)])
        pen.rectangle((*left, *right), GOLD, PIPING, SCALE)


def _placed(points: list[Point]) -> list[Point]:
    """Shares, x from the middle, as pixels of the large picture."""
    side = SIZE * SCALE
    return [((0.5 + x) * side, y * side) for x, y in points]
