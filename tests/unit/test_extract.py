"""Extraction: the best approximation of a difference, found without its whole SVD."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import KERNELS, dense, far, make, network, off_identity, randn, seeded, seeds, sides
from torch import nn

from trilora.cutting import Report
from trilora.errors import TriLoRAError
from trilora.extract import CHOICES, extract, layers_of
from trilora.factors import energy_of, nearest, nearest_holding
from trilora.files import Adapter


def with_spectrum(out: int, inner: int, values: torch.Tensor) -> torch.Tensor:
    u, _, vh = torch.linalg.svd(randn(3, out, inner), full_matrices=False)
    return (u * values) @ vh


def pull(changes: dict[str, torch.Tensor], rank: int = 4) -> tuple[Adapter, Report]:
    return extract(
        {name: lambda change=change: change for name, change in changes.items()},
        lambda change: nearest(change, rank, seeded(0)),
        {},
    )


@given(sides, sides, st.integers(1, 8), st.sampled_from(KERNELS), seeds)
def test_a_change_of_rank_r_comes_back_from_its_sum_with_the_base(out, inner, rank, kernel, seed):
    change = dense(make(out, inner, rank, seed, kernel=kernel)).float()
    base = change.square().mean().sqrt() * randn(seed + 1, *change.shape)
    found = nearest((base + change) - base, 8, seeded(0))
    assert far(dense(found), change) <= 1e-5 * float(change.norm())
    assert off_identity(found.u) < 1e-5
    assert off_identity(found.vh.flatten(1).T) < 1e-5
    assert (found.sigma.diff() <= 0).all()
    assert found.vh.shape[1:] == change.shape[1:]


@pytest.mark.parametrize("shape", [(300, 200), (200, 300), (64, 900)])
@pytest.mark.parametrize(("power", "worse"), [(0.0, 1.01), (0.5, 1.001), (1.0, 1.0001)])
def test_the_error_is_close_to_the_least_that_any_matrix_of_the_rank_has(shape, power, worse):
    values = torch.arange(1, min(shape) + 1).float() ** -power
    change = with_spectrum(*shape, values)
    for rank in (1, 8, 32):
        error = far(dense(nearest(change, rank, seeded(0))), change)
        assert error <= worse * float(values[rank:].norm()) + 1e-5


def test_the_seed_decides_every_bit():
    change = randn(0, 200, 150)
    first, again = (nearest(change, 5, seeded(1)) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


@pytest.mark.parametrize("share", [0.3, 0.9, 0.99])
def test_energy_takes_no_more_values_than_needed(share):
    values = torch.arange(1, 161).float() ** -0.8
    held = values.square().cumsum(0) / values.square().sum()
    needed = int((held < share).sum()) + 1
    found = nearest_holding(with_spectrum(200, 160, values), share, 160, seeded(0))
    assert needed <= found.rank <= needed + 1
    assert energy_of(found.sigma) >= (share - 1e-5) * energy_of(values)


@given(st.integers(1, 40), sides, sides)
def test_energy_stops_at_the_largest_rank_allowed_or_possible(largest, out, inner):
    found = nearest_holding(randn(0, out, inner), 1.0, largest, seeded(0))
    assert found.rank <= min(largest, out, inner)
    assert found.rank >= min(largest, out, inner) - 1  # the last value may be zero to float32 rounding


def test_the_report_holds_the_energy_of_the_whole_change():
    change = with_spectrum(60, 50, torch.arange(1, 51).float() ** -0.5)
    adapter, report = pull({"lora_unet_q": change, "lora_unet_conv": randn(5, 20, 10, 3, 3)})
    error = math.hypot(*(far(dense(adapter.layers[n]), c) for n, c in
                         {"lora_unet_q": change, "lora_unet_conv": randn(5, 20, 10, 3, 3)}.items()))  # fmt: skip
    whole = math.hypot(float(change.norm()), float(randn(5, 20, 10, 3, 3).norm()))
    assert math.sqrt(1 - report.share) == pytest.approx(error / whole, rel=1e-3)
    assert [(row.rank, row.full_rank) for row in report.rows] == [(4, 50), (4, 20)]
    assert adapter.metadata["trilora.rank"] == "4"


def test_a_layer_that_did_not_change_is_left_out_and_told():
    adapter, report = pull({"a": randn(0, 9, 9), "b": torch.zeros(9, 9)})
    assert list(adapter.layers) == ["a"]
    assert "1 of 2 layers are the same in both models" in report.summary()


def test_models_that_do_not_differ_are_an_error():
    with pytest.raises(TriLoRAError, match="the same in all 2 chosen layers.*Connect the model that was tuned"):
        pull({"a": torch.zeros(9, 9), "b": torch.zeros(9, 9)})


def test_a_damaged_model_is_named_by_its_layer():
    with pytest.raises(TriLoRAError, match="layer b holds NaN or inf"):
        pull({"a": randn(0, 9, 9), "b": torch.full((9, 9), math.nan)})


def test_the_widest_choice_has_the_convolutions_too():
    root = network("blocks.0.attn1.to_q", "blocks.0.ff.net.2")
    root.conv, root.norm, root.words = nn.Conv2d(3, 4, 3), nn.LayerNorm(4), nn.Embedding(5, 4)
    assert layers_of(root, "all linear") == ["blocks.0.attn1.to_q", "blocks.0.ff.net.2"]
    assert layers_of(root, CHOICES[-1]) == ["blocks.0.attn1.to_q", "blocks.0.ff.net.2", "conv"]
