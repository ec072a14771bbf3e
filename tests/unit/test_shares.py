"""What the strength panel is told: every number of it follows from the spectra."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import randn

from trilora import gains
from trilora.shares import along_places


def spectra(ranks: list[int]) -> dict[str, torch.Tensor]:
    return {f"{i}": randn(i, rank).abs().sort(descending=True).values for i, rank in enumerate(ranks)}


@given(st.lists(st.integers(1, 24), min_size=1, max_size=6), st.floats(0, 1), st.floats(0.1, 1))
def test_the_groups_tell_what_a_curve_and_a_choice_keep(ranks: list[int], slope: float, share: float) -> None:
    sigmas = spectra(ranks)

    def curve(places: torch.Tensor) -> torch.Tensor:
        return 1 - slope * places

    kept = gains.holding(sigmas, share)
    told = along_places((sigmas[name], kept[name]) for name in sigmas)
    whole = sum(float(sigma.double().square().sum()) for sigma in sigmas.values())
    both = gains.times(kept, gains.along(sigmas, curve))
    truth = sum(float((sigmas[name] * both[name]).double().square().sum()) for name in sigmas) / whole
    left = sum(
        energy * float(curve(torch.tensor(i / max(group["rank"] - 1, 1)))) ** 2
        for group in told["groups"]
        for i, energy in enumerate(group["kept"])
    )
    assert left == pytest.approx(truth, rel=1e-4)
    assert sum(told["share"]) == pytest.approx(1, abs=1e-4)
    assert sum(sum(group["energy"]) for group in told["groups"]) == pytest.approx(1, abs=1e-4)


def test_bars_are_the_root_mean_square_over_the_layers() -> None:
    told = along_places([(torch.tensor([3.0, 1.0]), torch.ones(2)), (torch.tensor([4.0, 0.0]), torch.ones(2))])
    assert told["sigma"] == pytest.approx([12.5**0.5, 0.5**0.5], rel=1e-4)
    assert told["share"] == pytest.approx([25 / 26, 1 / 26], rel=1e-4)
    assert told["layers"] == 2


def test_values_of_a_smaller_rank_count_where_they_lie() -> None:
    told = along_places(
        [(torch.tensor([2.0, 1.0, 1.0, 1.0, 1.0]), torch.ones(5)), (torch.tensor([4.0]), torch.ones(1))]
    )
    assert told["sigma"] == pytest.approx([10**0.5, 1, 1, 1, 1], rel=1e-4)
    assert [group["rank"] for group in told["groups"]] == [1, 5]


@pytest.mark.parametrize("sigma", [torch.zeros(3), torch.zeros(1)])
def test_a_spectrum_of_zeros_has_no_energy(sigma: torch.Tensor) -> None:
    assert set(along_places([(sigma, torch.ones(len(sigma)))])["share"]) == {0.0}


def test_nothing_is_told_of_nothing() -> None:
    assert along_places([]) == {}
