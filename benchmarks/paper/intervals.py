"""Means with their 95 % intervals, and the frontier of forgetting over fit."""

import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple

# two-sided 95 % quantile of Student's t, for 1 to 15 degrees of freedom
T_95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131)

Point = tuple[float, float]  # (held-out loss, forgetting)


class Interval(NamedTuple):
    """A mean, and how far the 95 % interval of Student's t reaches to each side; NaN for a single value."""

    mean: float
    half: float
    count: int

    def __str__(self) -> str:
        return f"{self.mean:.3f}" + (f" ± {self.half:.3f}" if self.count > 1 else "")


def interval(values: Sequence[float]) -> Interval:
    """Of independent values, one a seed."""
    count = len(values)
    if count < 2:
        return Interval(values[0] if values else math.nan, math.nan, count)
    half = T_95[min(count - 2, len(T_95) - 1)] * statistics.stdev(values) / math.sqrt(count)
    return Interval(statistics.mean(values), half, count)


class Ratio(NamedTuple):
    """The geometric mean of paired ratios with its 95 % interval, taken on logarithms."""

    mean: float
    low: float
    high: float
    count: int

    def __str__(self) -> str:
        if math.isnan(self.mean):
            return "–"
        return f"{self.mean:.2f}" + (f" ({self.low:.2f} to {self.high:.2f})" if self.count > 1 else "")


def ratio(pairs: Sequence[tuple[float, float]]) -> Ratio:
    """Of (own, other) of each seed; a seed where either is 0 can't be told in ratios and is left out."""
    found = interval([math.log(own / other) for own, other in pairs if own > 0 and other > 0])
    ends = (found.mean, found.mean - found.half, found.mean + found.half)
    return Ratio(*(math.exp(value) for value in ends), found.count)


def frontier(points: Sequence[Point]) -> list[Point]:
    """Points that no other one beats in both, from the worst fit to the best."""
    best = [p for p in points if not any(o != p and o[0] <= p[0] and o[1] <= p[1] for o in points)]
    return sorted(set(best), reverse=True)


def least(points: Sequence[Point], loss: float) -> float | None:
    """The least forgetting at a held-out loss, along the frontier; None where the frontier does not reach that far.

    Between two points the loss is linear and the forgetting geometric.
    """
    line = frontier([point for point in points if point[1] > 0])
    for (behind, low), (before, high) in zip(line, line[1:], strict=False):
        if before <= loss <= behind:
            share = (behind - loss) / (behind - before)
            return math.exp((1 - share) * math.log(low) + share * math.log(high))
    return None
