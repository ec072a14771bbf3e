"""Draws the world's pictures. `python -m demo.draw` writes the two style sets to demo/styles/."""

from __future__ import annotations

import argparse
import random
from pathlib import Path

from PIL import Image, ImageDraw, ImageOps

from .scenery import SIZE, Layer, layers
from .styles_drawn import STYLES
from .world import SceneSpec, caption, training_specs

HERE = Path(__file__).parent
SCALE = 4  # drawn four times too large, then reduced: smooth edges


def draw(spec: SceneSpec, style: str | None = None) -> Image.Image:
    """The picture of `spec`, 128 x 128 RGB; `style` is None (the base's own look) or a name in STYLES.

    Raises:
        KeyError: an unknown style, thing, colour, place or scene.
    """
    stack = layers(spec)
    if style is not None:
        return STYLES[style](stack, random.Random(spec.seed))
    return paint(stack)


def paint(stack: list[Layer], scale: int = SCALE) -> Image.Image:
    """Fills the layers back to front."""
    canvas = Image.new("RGB", (SIZE * scale, SIZE * scale), stack[0].bottom)
    for layer in stack:
        _fill(canvas, layer, scale)
    return canvas.resize((SIZE, SIZE), Image.Resampling.BOX)


def _fill(canvas: Image.Image, layer: Layer, scale: int) -> None:
    """One layer with its vertical gradient, within its bounding box."""
    points = [(x * scale, y * scale) for x, y in layer.points]
    width = layer.width * scale
    x0, y0, x1, y1 = _bounds(points, width, canvas.width)
    if x1 <= x0 or y1 <= y0:
        return
    mask = Image.new("L", (x1 - x0, y1 - y0), 0)
    stroke_or_fill(mask, [(x - x0, y - y0) for x, y in points], width, layer.alpha)
    colour = Image.new("RGB", mask.size, layer.top)
    if layer.top != layer.bottom:
        ramp = Image.linear_gradient("L").resize(mask.size)
        colour = ImageOps.colorize(ramp, layer.top, layer.bottom)
    canvas.paste(colour, (x0, y0), mask)


def _bounds(points: list, width: float, limit: int) -> tuple[int, int, int, int]:
    """The box around the points, clipped to the canvas."""
    xs, ys, pad = [p[0] for p in points], [p[1] for p in points], width / 2 + 1
    x0, y0 = max(0, int(min(xs) - pad)), max(0, int(min(ys) - pad))
    return x0, y0, min(limit, int(max(xs) + pad + 1)), min(limit, int(max(ys) + pad + 1))


def stroke_or_fill(mask: Image.Image, points: list, width: float, value: int) -> None:
    """A polygon, or a line of round caps."""
    pen = ImageDraw.Draw(mask)
    if not width:
        pen.polygon(points, fill=value)
        return
    pen.line(points, fill=value, width=max(1, round(width)), joint="curve")
    r = width / 2
    for x, y in (points[0], points[-1]):
        pen.ellipse((x - r, y - r, x + r, y + r), fill=value)


def write_style(style: str, folder: Path, count: int = 32, seed: int = 7) -> None:
    """A style's training set: pictures and captions as name.png, name.txt."""
    folder.mkdir(parents=True, exist_ok=True)
    for i, spec in enumerate(spread_specs(count, seed)):
        name = f"{i:02d}_{spec.colour}_{spec.thing}_{spec.place}_{spec.scene}"
        draw(spec, style).save(folder / f"{name}.png", optimize=True)
        (folder / f"{name}.txt").write_text(caption(spec) + "\n", encoding="utf-8")


def spread_specs(count: int, seed: int) -> list[SceneSpec]:
    """Trained combinations in which things, colours, places and scenes all come up about equally often."""
    pool = training_specs(1000, seed)
    used: dict[str, int] = {}
    chosen: list[SceneSpec] = []
    for _ in range(count):
        best = min(pool, key=lambda s: sum(used.get(w, 0) ** 2 for w in (s.thing, s.colour, s.place, s.scene)))
        pool.remove(best)
        chosen.append(best)
        for word in (best.thing, best.colour, best.place, best.scene):
            used[word] = used.get(word, 0) + 1
    return chosen


def sheet(pictures: list[Image.Image], columns: int = 8) -> Image.Image:
    """Pictures side by side."""
    rows = -(-len(pictures) // columns)
    out = Image.new("RGB", (columns * SIZE, rows * SIZE), "white")
    for i, picture in enumerate(pictures):
        out.paste(picture, ((i % columns) * SIZE, (i // columns) * SIZE))
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=HERE / "styles")
    parser.add_argument("--count", type=int, default=32, help="pictures a style")
    args = parser.parse_args()
    for style in STYLES:
        write_style(style, args.out / style, args.count)


if __name__ == "__main__":
    main()
