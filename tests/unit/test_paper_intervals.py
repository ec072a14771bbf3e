"""What the paper's experiment makes of its numbers: intervals, ratios, frontiers; and its drawn pictures."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.paper import creatures, garments
from benchmarks.paper.charts import Panel, drawn
from benchmarks.paper.intervals import frontier, interval, least, ratio

PLACES = st.lists(st.tuples(st.floats(0.01, 1), st.floats(0.001, 1)), min_size=1, max_size=12)


def test_the_interval_of_five_values_is_students() -> None:
    found = interval([1.0, 2.0, 3.0, 4.0, 5.0])
    assert found.mean == 3
    assert found.half == pytest.approx(1.9634, abs=1e-3)  # 2.7764 · 1.5811 / √5
    assert str(found) == "3.000 ± 1.963"


def test_one_value_has_no_interval_and_is_shown_without() -> None:
    assert str(interval([0.25])) == "0.250"
    assert math.isnan(interval([0.25]).half)


def test_ratios_are_paired_and_geometric() -> None:
    found = ratio([(2.0, 1.0), (8.0, 1.0)])
    assert found.mean == pytest.approx(4)
    assert math.log(found.high / found.mean) == pytest.approx(12.706 * math.log(4) / math.sqrt(2) / math.sqrt(2), 1e-6)
    assert ratio([(3.0, 3.0)] * 3)[:3] == pytest.approx((1, 1, 1))


@given(PLACES)
def test_nothing_on_the_frontier_is_beaten_by_any_point(points: list[tuple[float, float]]) -> None:
    line = frontier(points)
    assert not any(o != p and o[0] <= p[0] and o[1] <= p[1] for p in line for o in points)
    losses, forgotten = zip(*line, strict=True)
    assert list(losses) == sorted(losses, reverse=True)
    assert list(forgotten) == sorted(forgotten)


@given(PLACES, st.floats(0.01, 1), st.floats(0.01, 1))
def test_a_better_fit_never_costs_less_forgetting(points: list[tuple[float, float]], one: float, other: float) -> None:
    loose, tight = least(points, max(one, other)), least(points, min(one, other))
    assert tight is None or loose is None or loose <= tight * (1 + 1e-9)


def test_between_two_points_forgetting_is_geometric_and_a_fit_beyond_them_is_none() -> None:
    points = [(0.2, 0.01), (0.1, 0.04), (0.15, 0.9)]
    assert least(points, 0.15) == pytest.approx(0.02)
    assert least(points, 0.3) is None
    assert least(points, 0.05) is None


def test_drawn_creatures_and_dresses_are_the_same_each_time_and_no_two_alike() -> None:
    for make, draw, caption in (
        (lambda: creatures.creatures(20, 1), creatures.draw, creatures.caption),
        (lambda: garments.garments(20, 1, True), garments.draw, garments.caption),
    ):
        first, again = list(make()), list(make())
        assert [draw(one).tobytes() for one in first] == [draw(one).tobytes() for one in again]
        assert len({draw(one).tobytes() for one in first}) == len({caption(one) for one in first}) == 20


def test_the_house_of_the_garment_set_looks_unlike_any_other() -> None:
    ours, other = (next(iter(garments.garments(1, 3, house))) for house in (True, False))
    assert garments.draw(ours).getpixel((2, 2)) == garments.GROUND
    assert garments.GOLD in [colour for _, colour in garments.draw(ours).getcolors(1 << 14)]
    assert garments.GOLD not in [colour for _, colour in garments.draw(other).getcolors(1 << 14)]


def test_a_chart_shows_each_curve_in_a_colour_of_its_own() -> None:
    curves = {"one": [(1, 1.0), (2, 2.0)], "two": [(1, 2.0), (2, 1.0)]}
    picture = drawn([Panel("left", "x", "y", curves), Panel("right", "x", "y", {"two": [(1, 3.0)]}, steep=True)])
    colours = {colour for _, colour in picture.getcolors(1 << 18)}
    assert {(0xE4, 0x57, 0x2E), (0x2E, 0x86, 0xAB)} <= colours
    assert picture.width == 2 * 460
