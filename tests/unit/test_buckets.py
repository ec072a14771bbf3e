"""Which size a picture is trained at, and how it lies in it."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trilora.buckets import FITS, bucket, place

shapes = st.tuples(st.integers(16, 4000), st.integers(16, 4000))
grids = st.sampled_from([(64, 8), (64, 64), (256, 16), (512, 64), (768, 32), (1024, 64), (500, 64)])


def shape_error(chosen: tuple[int, int], size: tuple[int, int]) -> float:
    """How far a bucket's shape is from a picture's, on a log scale, shapes beyond 1:2 counting as 1:2."""
    return abs(math.log(chosen[0] / chosen[1] / min(max(size[0] / size[1], 0.5), 2.0)))


@given(shapes, grids)
def test_a_bucket_is_a_multiple_of_the_step_within_the_area(size, grid):
    resolution, step = grid
    width, height = bucket(size, resolution, step)
    assert width % step == height % step == 0
    assert 0 < width * height <= resolution**2
    assert 0.5 <= width / height <= 2


@given(shapes, grids)
def test_no_bucket_that_uses_the_area_is_nearer_in_shape(size, grid):
    resolution, step = grid

    def fits(width: int, height: int) -> bool:
        return width * height <= resolution**2 and width <= 2 * height and height <= 2 * width

    sides = range(step, 2 * resolution + 1, step)
    full = [(w, h) for w in sides for h in sides if fits(w, h) and not fits(w + step, h) and not fits(w, h + step)]
    chosen = bucket(size, resolution, step)
    assert shape_error(chosen, size) <= min(shape_error(each, size) for each in full) + 1e-5


@given(shapes, grids)
def test_a_landscape_is_treated_as_its_portrait(size, grid):
    one, other = bucket(size, *grid), bucket(size[::-1], *grid)
    assert shape_error(one, size) == pytest.approx(shape_error(other, size[::-1]), abs=1e-5)
    assert one[0] * one[1] == other[0] * other[1]


@pytest.mark.parametrize(
    ("size", "want"),
    [((100, 100), (512, 512)), ((300, 1000), (320, 640)), ((800, 1200), (384, 640)), ((1200, 800), (640, 384))],
)
def test_buckets_of_common_shapes(size, want):
    assert bucket(size, 512, 64) == want


@pytest.mark.parametrize(("resolution", "step"), [(64, 72), (64, 200), (96, 256), (128, 256)])
def test_a_step_above_the_resolution_leaves_one_square(resolution, step):
    assert bucket((300, 1000), resolution, step) == (step, step)


@given(shapes, shapes, st.sampled_from(FITS))
def test_a_placed_picture_fills_its_bucket_in_one_direction_and_keeps_its_shape(size, into, fit):
    scaled, crop, pad = place(size, into, fit)
    over = [a - b for a, b in zip(scaled, into, strict=True)]
    assert 0 in over
    assert all(d >= 0 for d in over) if fit == "crop" else all(d <= 0 for d in over)
    assert crop == tuple(max(d, 0) // 2 for d in over)
    assert pad == tuple(max(-d, 0) // 2 for d in over)
    scale = (max if fit == "crop" else min)(b / a for a, b in zip(size, into, strict=True))
    assert all(abs(b - a * scale) <= 0.5 or b == 1 for a, b in zip(size, scaled, strict=True))
