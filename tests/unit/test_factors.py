"""The identities of the algebra, over shapes, ranks, cores and dtypes."""

import gc
import math
import weakref

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import DTYPES, KERNELS, dense, factor_sets, far, make, off_identity, randn, seeded, seeds, sides, size
from torch.nn.functional import conv2d, linear

from trilora import factors as algebra
from trilora.errors import RankError, TriLoRAError
from trilora.factors import (
    Factors,
    canonical,
    canonical_once,
    delta,
    energy,
    initial,
    merged,
    root_split,
    scaled,
    truncated,
)

KINDS = ("balanced", "paper", "orthogonal")


@given(factor_sets(kernels=((),)), seeds, st.sampled_from(DTYPES), st.sampled_from([(), (3,), (2, 5)]))
def test_forward_is_the_input_times_the_adapted_weight(factors, seed, dtype, batch):
    out, inner = factors.u.shape[0], factors.vh.shape[1]
    x, base = randn(seed, *batch, inner).to(dtype), randn(seed + 9, out, inner).to(dtype)
    got = linear(x, base) + algebra.forward(x, factors)
    weight = base.double() + dense(factors)
    # the size that rounding is relative to: the terms added in quadrature, where nothing cancels
    u, sigma, vh = (tensor.double().square() for tensor in factors)
    terms = base.double().square() + (u * sigma if sigma.ndim == 1 else u @ sigma) @ vh
    scale = (x.double().square() @ terms.T).sum().sqrt()
    assert got.dtype == dtype
    assert got.shape == (*batch, out)
    assert far(got, x.double() @ weight.T) <= 8 * torch.finfo(dtype).eps * scale


@given(factor_sets())
def test_delta_is_the_product_of_the_three_factors(factors):
    got = delta(factors)
    assert got.shape == (factors.u.shape[0], *factors.vh.shape[1:])
    assert far(got, dense(factors)) <= 1e-6 * size(factors)


@pytest.mark.parametrize("core", ["diagonal", "full"])
def test_delta_of_a_convolution_adds_up_with_its_kernel(core):
    factors = make(7, 5, 3, core=core, kernel=(3, 3))
    x, base = randn(1, 2, 5, 8, 8), randn(2, 7, 5, 3, 3)
    added = conv2d(conv2d(x, factors.vh), algebra.left(factors)[:, :, None, None])
    torch.testing.assert_close(conv2d(x, base + delta(factors)), conv2d(x, base) + added, rtol=1e-4, atol=1e-4)


@given(factor_sets())
def test_canonical_form_keeps_delta(factors):
    assert far(delta(canonical(factors)), dense(factors)) <= 2e-6 * size(factors)


@given(factor_sets())
def test_canonical_form_is_a_compact_svd(factors):
    u, sigma, vh = canonical(factors)
    assert off_identity(u) <= 1e-5
    assert off_identity(vh.flatten(1).T) <= 1e-5
    assert (sigma >= 0).all()
    assert (sigma.diff() <= 0).all()
    assert u.dtype == sigma.dtype == vh.dtype == torch.float32
    assert len(sigma) == min(factors.rank, u.shape[0], math.prod(vh.shape[1:]))


@given(factor_sets(), st.sampled_from(DTYPES))
def test_canonical_form_reads_any_dtype(factors, dtype):
    factors = factors.to(dtype)
    assert far(delta(canonical(factors)), dense(factors)) <= 2e-6 * size(factors)


@given(factor_sets(), st.integers(1, 96))
def test_canonical_form_cut_at_k_is_the_best_approximation_of_rank_k(factors, k):
    exact = dense(factors).flatten(1)
    values = torch.linalg.svdvals(exact)
    cut = truncated(canonical(factors), k)
    assert cut.rank <= k
    assert far(cut.sigma, values[: cut.rank]) <= 1e-5 * size(factors)
    assert abs(far(delta(cut).flatten(1), exact) - float(values[k:].norm())) <= 1e-5 * size(factors)


@pytest.mark.parametrize("kernel", KERNELS)
def test_canonical_form_cut_at_k_is_the_truncated_dense_svd(kernel):
    factors = make(24, 20, 8, kernel=kernel)._replace(sigma=torch.logspace(1, -2, 8))
    u, sigma, vh = torch.linalg.svd(dense(factors).flatten(1), full_matrices=False)
    for k in (1, 3, 7):
        want = (u[:, :k] * sigma[:k]) @ vh[:k]
        assert far(delta(truncated(canonical(factors), k)).flatten(1), want) <= 1e-4 * float(sigma[0])


@given(factor_sets(cores=("diagonal",)), st.sampled_from(DTYPES))
def test_gains_of_one_change_no_bit(factors, dtype):
    factors = factors.to(dtype)
    for gains in (1.0, torch.ones(factors.rank, dtype=dtype)):
        for before, after in zip(factors, scaled(factors, gains), strict=True):
            assert before.dtype == after.dtype
            assert torch.equal(before, after)


@given(factor_sets(cores=("diagonal",)), st.floats(-3, 3, width=32))
def test_the_same_gain_on_every_value_is_a_strength(factors, gain):
    each, whole = scaled(factors, torch.full((factors.rank,), gain)), scaled(factors, gain)
    assert far(delta(each), delta(whole)) <= 1e-6 * size(factors)
    assert far(delta(whole), gain * dense(factors)) <= 1e-5 * size(factors)


def test_each_gain_scales_its_own_value():
    factors = canonical(make(9, 7, 3))
    gains = torch.tensor([0.0, 2.0, 1.0])
    want = sum(
        g * s * torch.outer(factors.u[:, i], factors.vh[i])
        for i, (g, s) in enumerate(zip(gains, factors.sigma, strict=True))
    )
    torch.testing.assert_close(delta(scaled(factors, gains)), want)


def test_strength_scales_a_full_core_too():
    factors = make(9, 7, 3, core="full")
    torch.testing.assert_close(delta(scaled(factors, 0.5)), delta(factors) / 2)


@given(
    sides,
    sides,
    st.lists(st.integers(1, 8), min_size=1, max_size=4),
    seeds,
    st.sampled_from(["diagonal", "full"]),
    st.sampled_from(KERNELS),
)
def test_merging_adds_the_weighted_deltas(out, inner, ranks, seed, core, kernel):
    several = [make(out, inner, rank, seed + 10 * i, core, kernel) for i, rank in enumerate(ranks)]
    weights = [0.5 - i for i in range(len(several))]
    want = sum(w * dense(f) for w, f in zip(weights, several, strict=True))
    assert far(delta(merged(several, weights)), want) <= 1e-5 * sum(map(size, several))


def test_merging_needs_a_weight_for_each():
    with pytest.raises(ValueError, match="shorter"):
        merged([make(4, 4, 2), make(4, 4, 2)], [1.0])


@given(factor_sets(spectra=("random", "decaying", "with zeros")))
def test_energy_rises_to_one(factors):
    factors = canonical(factors)
    share = energy(factors)
    assert share.shape == factors.sigma.shape
    assert (share.diff() >= -1e-6).all()
    if factors.sigma.any():
        assert float(share[-1]) == pytest.approx(1, abs=1e-5)
        assert float(share[0]) == pytest.approx(float(factors.sigma[0] ** 2 / factors.sigma.square().sum()), abs=1e-5)


def test_energy_of_nothing_is_a_number():
    assert torch.isfinite(energy(canonical(make(5, 4, 2)._replace(sigma=torch.zeros(2))))).all()


@given(factor_sets())
def test_root_split_multiplies_back_to_delta(factors):
    exact = canonical(factors)
    up, down = root_split(exact)
    assert far((up @ down.flatten(1)).view_as(dense(factors)), dense(factors)) <= 1e-5 * size(factors)
    norms = up.norm(dim=0) * down.flatten(1).norm(dim=1)
    assert far(norms, exact.sigma) <= 1e-5 * size(factors)
    torch.testing.assert_close(up.norm(dim=0), down.flatten(1).norm(dim=1), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("rank", [-1, 0, 5, 1000])
def test_a_rank_that_the_layer_cannot_hold_is_refused_with_words(rank):
    said = rf"Rank {rank} .*blocks\.1\.q is 9 x 4 and holds ranks 1 to 4.*at most 4"
    with pytest.raises(RankError, match=said):
        algebra.check_rank(rank, 9, 4, "blocks.1.q")
    with pytest.raises(RankError, match=rf"Rank {rank} .*9 x 4"):
        initial("balanced", torch.ones(9, 4), rank, seeded(0))


@pytest.mark.parametrize("rank", [1, 4])
def test_the_smallest_and_the_largest_rank_are_taken(rank):
    algebra.check_rank(rank, 9, 4)
    assert initial("balanced", randn(0, 9, 4), rank, seeded(0)).rank == rank


@given(sides, sides, seeds, st.sampled_from(KINDS), st.sampled_from(DTYPES), st.data())
def test_training_starts_from_a_delta_of_exactly_zero(out, inner, seed, kind, dtype, data):
    rank = data.draw(st.integers(1, min(out, inner)))
    start = initial(kind, randn(seed, out, inner).to(dtype), rank, seeded(seed))
    assert not delta(start).any()
    assert (start.u.shape, start.sigma.shape, start.vh.shape) == ((out, rank), (rank,), (rank, inner))
    assert start.u.dtype == start.sigma.dtype == start.vh.dtype == torch.float32


@pytest.mark.parametrize("kind", KINDS)
def test_the_seed_decides_every_bit_of_the_start(kind):
    weight = randn(0, 40, 30)
    first, again, other = (initial(kind, weight, 6, seeded(seed)) for seed in (5, 5, 6))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first.vh, other.vh)


@pytest.mark.parametrize(("shape", "rank"), [((64, 96), 16), ((96, 64), 1), ((50, 50), 50)])
@pytest.mark.parametrize(
    ("decay", "tolerance"), [(True, 1e-3), (False, 0.05)], ids=["decaying spectrum", "random spectrum"]
)
def test_sigma_starts_as_the_top_of_the_spectrum(shape, rank, decay, tolerance):
    weight = randn(0, *shape)
    if decay:
        u, sigma, vh = torch.linalg.svd(weight, full_matrices=False)
        weight = (u * torch.logspace(2, -1, len(sigma))) @ vh
    true = torch.linalg.svdvals(weight)[:rank]
    balanced = initial("balanced", weight, rank, seeded(1)).sigma
    assert float(balanced.square().mean().sqrt()) == pytest.approx(1, rel=1e-5)
    torch.testing.assert_close(balanced, true / true.square().mean().sqrt(), rtol=tolerance, atol=0)
    torch.testing.assert_close(initial("paper", weight, rank, seeded(1)).sigma, true, rtol=tolerance, atol=0)


@pytest.mark.parametrize(("kind", "std"), [("balanced", 0.02), ("paper", 1 / 16)])
def test_the_gaussian_factor_has_its_std(kind, std):
    start = initial(kind, randn(0, 24, 4000), 16, seeded(0))
    assert float(start.vh.std()) == pytest.approx(std, rel=0.02)
    assert abs(float(start.vh.mean())) < std / 50


def test_the_orthogonal_start_is_orthonormal_with_sigma_zero():
    start = initial("orthogonal", randn(0, 40, 30), 30, seeded(0))
    assert off_identity(start.u) < 1e-5
    assert off_identity(start.vh.T) < 1e-5
    assert not start.sigma.any()


def test_an_unknown_initialisation_is_named_with_the_known_ones():
    with pytest.raises(TriLoRAError, match="'xavier' is unknown; choose balanced, paper or orthogonal"):
        initial("xavier", randn(0, 8, 8), 2, seeded(0))


def test_factors_move_to_another_dtype_together():
    assert {tensor.dtype for tensor in make(4, 4, 2).to(torch.float16)} == {torch.float16}


def test_the_rank_of_a_full_core_is_its_smaller_side():
    assert Factors(randn(0, 5, 3), randn(1, 3, 2), randn(2, 2, 4)).rank == 2


@pytest.mark.parametrize("part", ["u", "sigma", "vh"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_factors_that_hold_no_numbers_have_no_canonical_form(part, value):
    factors = make(6, 5, 3)
    getattr(factors, part).view(-1)[1] = value
    with pytest.raises(TriLoRAError, match="6 x 5 holds NaN or inf"):
        canonical(factors)


def test_canonical_factors_are_found_once_for_the_same_tensors_and_go_with_them():
    factors = make(9, 7, 3)
    once = canonical_once(factors)
    assert canonical_once(factors) is once
    for other in (scaled(factors, 2.0), factors._replace(vh=factors.vh * 2)):
        assert far(delta(canonical_once(other)), 2 * dense(factors)) <= 1e-5 * size(factors)
    gone = weakref.ref(canonical_once(factors).u)
    del factors, once, other
    gc.collect()
    assert gone() is None
