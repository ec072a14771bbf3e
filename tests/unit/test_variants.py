"""The columns of a comparison, and the lists that people type."""

import pytest
import torch

from trilora.entries import entries
from trilora.errors import TriLoRAError
from trilora.factors import Factors
from trilora.files import Adapter
from trilora.variants import BASE, NONE, by_band, by_strength, by_top_k, lettered, side_by_side

ADAPTER = Adapter({"x": Factors(torch.eye(8)[:, :4], torch.tensor([4.0, 3.0, 2.0, 1.0]), torch.eye(8)[:4])})


def test_strength_0_is_the_bare_base() -> None:
    zero, half = by_strength(ADAPTER, [0.0, 0.5])
    assert (zero.column, zero.adapter) == ("0", NONE)
    assert (half.column, half.adapter, half.strength) == ("0.5", ADAPTER, 0.5)


def test_top_k_shows_base_first_values_and_whole_once() -> None:
    columns = by_top_k(ADAPTER, [1, 3, 4, 9], ADAPTER.rank)
    assert [v.column for v in columns] == ["base", "top 1", "top 3", "all 4"]
    assert columns[2].adapter.layers["x"].sigma.tolist() == [4.0, 3.0, 2.0]


def test_bands_stand_between_base_and_whole() -> None:
    columns = by_band(ADAPTER, 2, "1", 2.0, ADAPTER.rank)
    assert [(v.column, v.strength) for v in columns] == [
        ("base", 0.0),
        ("value 1", 2.0),
        ("values 2-4", 2.0),
        ("all 4", 1.0),
    ]
    assert columns[2].adapter.layers["x"].sigma.tolist() == [3.0, 2.0, 1.0]


def test_adapters_of_one_title_stay_apart() -> None:
    titled = Adapter(ADAPTER.layers, {"modelspec.title": "ink"})
    names = lettered([titled, titled, ADAPTER])
    assert list(names) == ["A: ink", "B: ink", "C"]
    assert side_by_side(names, 0.7)[0] == BASE
    assert [v.strength for v in side_by_side(names, 0.7)[1:]] == [0.7] * 3


def test_lists_are_read_with_commas_or_spaces_each_number_once() -> None:
    assert entries("0, 0.5 1,1", float, "strengths") == [0.0, 0.5, 1.0]
    assert entries("4,2", int, "k") == [4, 2]


@pytest.mark.parametrize(("text", "kind"), [("", float), (" , ", int), ("0.5", int), ("half", float)])
def test_a_list_that_is_none_names_its_input(text: str, kind: type) -> None:
    with pytest.raises(TriLoRAError, match="seeds holds .* Write .*numbers with commas"):
        entries(text, kind, "seeds")
