"""Gains on spectra: counts, energy, curves."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from trilora import gains

sigmas = st.lists(st.floats(0, 100, width=32), min_size=1, max_size=12).map(
    lambda values: torch.tensor(sorted(values, reverse=True))
)
adapters = st.lists(sigmas, min_size=1, max_size=5).map(lambda all: {str(i): sigma for i, sigma in enumerate(all)})


@given(adapters, st.integers(0, 20))
def test_the_first_of_each_layer_act(spectra: dict[str, torch.Tensor], count: int) -> None:
    for name, kept in gains.first(spectra, count).items():
        assert kept.tolist() == [float(i < count) for i in range(len(spectra[name]))]


@given(adapters, st.integers(0, 40))
def test_of_all_layers_together_exactly_the_largest_act(spectra: dict[str, torch.Tensor], count: int) -> None:
    kept = gains.first_overall(spectra, count)
    every, chosen = torch.cat(list(spectra.values())), torch.cat(list(kept.values())).bool()
    assert int(chosen.sum()) == min(count, len(every))
    assert not chosen.any() or chosen.all() or every[chosen].min() >= every[~chosen].max()


def test_of_no_layer_nothing_acts() -> None:
    assert gains.first_overall({}, 3) == {}


@given(adapters, st.floats(0.01, 0.99))
def test_the_fewest_that_hold_the_energy_act(spectra: dict[str, torch.Tensor], share: float) -> None:
    for name, kept in gains.holding(spectra, share).items():
        squares, count = spectra[name].double().square(), int(kept.sum())
        assert kept.tolist() == [1.0] * count + [0.0] * (len(kept) - count)
        assert squares[:count].sum() >= share * squares.sum() * (1 - 1e-12)
        assert count == 0 or squares[: count - 1].sum() < share * squares.sum()


@given(adapters)
def test_all_of_the_energy_needs_all_values_even_zeros(spectra: dict[str, torch.Tensor]) -> None:
    assert all(bool((kept == 1).all()) for kept in gains.holding(spectra, 1.0).values())


def test_a_curve_is_read_from_the_strongest_to_the_weakest_value() -> None:
    spectra = {"long": torch.tensor([4.0, 3.0, 2.0, 1.0, 0.5]), "short": torch.tensor([1.0])}
    by_value = gains.along(spectra, lambda places: 1 - places)
    assert by_value["long"].tolist() == [1.0, 0.75, 0.5, 0.25, 0.0]
    assert by_value["short"].tolist() == [1.0]


def test_gains_multiply_value_by_value() -> None:
    product = gains.times({"a": torch.tensor([1.0, 0.5])}, {"a": torch.tensor([2.0, 4.0])})
    assert product["a"].tolist() == [2.0, 2.0]
