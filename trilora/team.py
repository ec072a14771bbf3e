"""Several processes that train together: each takes its share of a pass, and all make the same step."""

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor


class Team(Protocol):
    """The processes of a training.

    Attributes:
        index: of this process, from 0; that of 0 alone writes.
        count: of processes.
    """

    index: int
    count: int

    def add(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by its sum over all processes, in place."""
        ...


class Alone:
    """A team of one."""

    index, count = 0, 1

    def add(self, tensors: Sequence[Tensor]) -> None:
        """Nothing to add."""
