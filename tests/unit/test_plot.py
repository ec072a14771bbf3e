"""Charts of nothing are empty charts."""

import pytest

from trilora.plot import COLOURS, SIZE, loss_chart


@pytest.mark.parametrize("held_out", [{}, {0: 0.5}])
def test_no_step_yet_is_a_chart_without_a_curve(held_out: dict[int, float]) -> None:
    assert loss_chart([], held_out=held_out).size == SIZE
    colours = {colour for _, colour in loss_chart([]).getcolors(1 << 16)}
    strong = tuple(int(COLOURS[0][i : i + 2], 16) for i in (1, 3, 5))
    assert strong not in colours
    assert strong in {colour for _, colour in loss_chart([0.5]).getcolors(1 << 16)}
