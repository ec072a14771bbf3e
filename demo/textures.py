"""Pictures of every kind for the autoencoder: the world, and random cells, dots, stripes and shapes in random inks."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from .draw import draw
from .scenery import SIZE
from .world import SceneSpec, training_specs

Array = np.ndarray


def ink(rng: np.random.Generator) -> Array:
    """A random colour; near black, near white and saturated ones come up more often than in a cube."""
    kind = rng.random()
    if kind < 0.15:
        return rng.integers(0, 50, 3)
    if kind < 0.3:
        return rng.integers(205, 256, 3)
    rgb = rng.integers(0, 256, 3)
    rgb[rng.integers(3)] = rng.integers(0, 2) * 255
    return rgb


def cells(rng: np.random.Generator) -> Array:
    """Voronoi cells, each in an own colour, with or without lines between them."""
    n = int(rng.integers(6, 60))
    points = rng.uniform(0, SIZE, (n, 2))
    grid = np.stack(np.mgrid[:SIZE, :SIZE], -1)[:, :, None]
    distance = np.sort(((grid - points) ** 2).sum(-1) ** 0.5, -1)
    nearest = ((grid - points) ** 2).sum(-1).argmin(-1)
    picture = np.stack([ink(rng) for _ in range(n)])[nearest].astype(np.float32)
    edge = distance[..., 1] - distance[..., 0]
    width = rng.choice([0, 3, 5, 8])
    return np.where((edge < width)[..., None], ink(rng), picture)


def dots(rng: np.random.Generator) -> Array:
    """A halftone: dots on a grid whose size follows a slow gradient."""
    y, x = np.mgrid[:SIZE, :SIZE].astype(np.float32)
    period, angle = rng.uniform(5, 11), rng.choice([0, 0, 0.4, 0.785])
    if rng.random() < 0.5:  # in step with the autoencoder's own grid, as a print would be made for it
        period, angle, x, y = rng.choice([8.0, 16.0]), 0.0, x + 4, y + 4
    u, v = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    wave = (np.cos(2 * np.pi * u / period) + np.cos(2 * np.pi * v / period)) / 2
    slope = np.linspace(rng.uniform(-0.8, 0.8), rng.uniform(-0.8, 0.8), SIZE)[:, None]
    return _two_inks(rng, np.clip((wave - slope) * 4 + 0.5, 0, 1))


def stripes(rng: np.random.Generator) -> Array:
    """Straight or wavy stripes."""
    y, x = np.mgrid[:SIZE, :SIZE].astype(np.float32)
    angle, period = rng.uniform(0, np.pi), rng.uniform(5, 24)
    phase = x * np.cos(angle) + y * np.sin(angle) + rng.uniform(0, 4) * np.sin(x / rng.uniform(5, 20))
    return _two_inks(rng, np.clip(np.sin(2 * np.pi * phase / period) * 4 + rng.uniform(-2, 2), 0, 1))


def _two_inks(rng: np.random.Generator, t: Array) -> Array:
    """One ink where t is 0, another where it is 1."""
    return ink(rng) * (1 - t[..., None]) + ink(rng) * t[..., None]


def scraps(rng: np.random.Generator) -> Array:
    """Polygons, ovals and lines over a gradient."""
    ramp = np.linspace(0, 1, SIZE)[:, None, None] * np.ones((1, SIZE, 1))
    base = Image.fromarray((ink(rng) * (1 - ramp) + ink(rng) * ramp).astype(np.uint8)).resize((SIZE * 3,) * 2)
    pen = ImageDraw.Draw(base)
    for _ in range(int(rng.integers(4, 24))):
        at, size = rng.uniform(0, SIZE * 3, 2), rng.uniform(12, 150)
        points = [tuple(at + rng.uniform(-size, size, 2)) for _ in range(int(rng.integers(3, 6)))]
        shape, colour = rng.integers(3), tuple(int(v) for v in ink(rng))
        if shape == 0:
            pen.polygon(points, fill=colour)
        elif shape == 1:
            pen.ellipse((*(at - size / 2), *(at + size / 2)), fill=colour)
        else:
            pen.line(points, fill=colour, width=int(rng.integers(3, 20)))
    return np.asarray(base.resize((SIZE, SIZE), Image.Resampling.BOX), np.float32)


def world(rng: np.random.Generator, spec: SceneSpec) -> Array:
    """A picture of the world as the base sees it."""
    return np.asarray(draw(spec), np.float32)


def restyled(rng: np.random.Generator, spec: SceneSpec) -> Array:
    """A picture of the world in few tones, perhaps with dark contours, perhaps through a texture."""
    picture = draw(spec)
    flat = picture.filter(ImageFilter.MedianFilter(5)).quantize(int(rng.integers(3, 9))).convert("L")
    levels = np.asarray(flat, np.float32)
    palette = np.stack([ink(rng) for _ in range(256)])
    out = palette[levels.astype(int)].astype(np.float32)
    if rng.random() < 0.5:
        edge = np.asarray(flat.filter(ImageFilter.FIND_EDGES).filter(ImageFilter.MaxFilter(3)), np.float32) > 8
        out = np.where(edge[..., None], ink(rng) * 0.5, out)
    if rng.random() < 0.5:
        texture = (cells, dots, stripes)[rng.integers(3)](rng)
        chosen = np.isin(levels, rng.choice(np.unique(levels), 2))
        out = np.where(chosen[..., None], texture, out)
    return out


def pool(count: int, seed: int = 0) -> Array:
    """(count, 128, 128, 3) uint8: half the world, half everything else."""
    rng = np.random.default_rng(seed)
    specs = training_specs(count, seed + 1)
    out = np.empty((count, SIZE, SIZE, 3), np.uint8)
    makers = (restyled, restyled, restyled, cells, cells, dots, dots, stripes, scraps, scraps)
    for i, spec in enumerate(specs):
        maker = world if i % 2 == 0 else makers[rng.integers(len(makers))]
        picture = maker(rng, spec) if maker in (world, restyled) else maker(rng)
        out[i] = np.clip(picture, 0, 255).astype(np.uint8)
    return out
