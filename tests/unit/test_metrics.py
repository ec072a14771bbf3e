"""FID, NFID and CLIP score: identities, closed forms, and a reference by hand."""

import math

import numpy
import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trilora.errors import DataError
from trilora.metrics.frechet import Moments, frechet, nfid, warning
from trilora.metrics.similarity import clip_score, clip_scores

calm = settings(deadline=None)
sizes = st.tuples(st.integers(2, 40), st.integers(1, 12), st.integers(0, 10_000))  # pictures, dimensions, seed


def features(count: int, dimensions: int, seed: int, shift: float = 0.0) -> torch.Tensor:
    """Correlated features of uneven spread, far from 0 as real ones are."""
    random = torch.Generator().manual_seed(seed)
    mix = torch.randn(dimensions, dimensions, generator=random, dtype=torch.float64)
    return torch.randn(count, dimensions, generator=random, dtype=torch.float64) @ mix + 3 + shift


def moments(*batches: torch.Tensor) -> Moments:
    found = Moments()
    for batch in batches:
        found.add(batch)
    return found


def by_sqrtm(a: numpy.ndarray, b: numpy.ndarray) -> float:
    """FID as the field's first implementation has it: scipy's matrix square root of the product."""
    left, right = numpy.cov(a, rowvar=False), numpy.cov(b, rowvar=False)
    root = scipy.linalg.sqrtm(left @ right)
    return float(((a.mean(0) - b.mean(0)) ** 2).sum() + numpy.trace(left + right - 2 * root.real))


def by_eigenvalues(a: torch.Tensor, b: torch.Tensor) -> float:
    """FID as torchmetrics has it: the sum of the roots of the eigenvalues of the product."""
    left, right = a.T.cov(), b.T.cov()
    roots = torch.linalg.eigvals(left @ right).sqrt().real.sum()
    return float((a.mean(0) - b.mean(0)).square().sum() + left.trace() + right.trace() - 2 * roots)


@pytest.mark.parametrize(("count", "dimensions"), [(400, 2), (300, 64), (700, 256)])
def test_fid_is_that_of_two_reference_formulas(count: int, dimensions: int) -> None:
    a, b = features(count, dimensions, 1), features(count + 50, dimensions, 2, shift=0.2)
    ours = frechet(moments(a), moments(b))
    assert ours == pytest.approx(by_sqrtm(a.numpy(), b.numpy()), rel=1e-6)
    assert ours == pytest.approx(by_eigenvalues(a, b), rel=1e-6)


def test_fid_of_fewer_pictures_than_dimensions_is_right_too() -> None:
    """With X and Y the centred features over √(n-1), the nuclear norm of X Yᵀ (n x m) needs no matrix root at all."""
    a, b = features(20, 64, 3), features(30, 64, 4, shift=0.5)
    x, y = ((f - f.mean(0)) / math.sqrt(len(f) - 1) for f in (a, b))
    apart = (a.mean(0) - b.mean(0)).square().sum()
    exact = apart + x.square().sum() + y.square().sum() - 2 * torch.linalg.matrix_norm(x @ y.T, "nuc")
    assert frechet(moments(a), moments(b)) == pytest.approx(float(exact), rel=1e-9)


def test_fid_of_gaussians_is_the_closed_form() -> None:
    """Diagonal covariances: Σ (m - n)² + Σ (s - t)², exact for features whose moments are exactly these."""
    mean, other = torch.tensor([1.0, -2.0, 0.5]), torch.tensor([0.0, 1.0, 0.5])
    spread, wider = torch.tensor([1.0, 2.0, 0.1]), torch.tensor([3.0, 0.5, 0.0])

    def corners(centre: torch.Tensor, deviation: torch.Tensor) -> torch.Tensor:
        signs = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0])] * 3)
        return centre + signs * deviation * math.sqrt(7 / 8)  # 8 corners; variance over n - 1 is deviation²

    expected = float((mean - other).square().sum() + (spread - wider).square().sum())
    assert frechet(moments(corners(mean, spread)), moments(corners(other, wider))) == pytest.approx(expected, rel=1e-6)


@calm
@given(sizes)
def test_fid_of_a_set_with_itself_is_0(size: tuple[int, int, int]) -> None:
    one = moments(features(*size))
    assert frechet(one, one) <= 1e-9 * float(one.covariance.trace())


@calm
@given(sizes, sizes)
def test_fid_is_the_same_both_ways_and_never_negative(a: tuple[int, int, int], b: tuple[int, int, int]) -> None:
    one, other = moments(features(*a)), moments(features(b[0], a[1], b[2], shift=0.1))
    scale = float(one.covariance.trace() + other.covariance.trace())
    assert frechet(one, other) == pytest.approx(frechet(other, one), abs=1e-9 * scale)
    assert frechet(one, other) >= 0


@calm
@given(sizes, st.floats(-5, 5))
def test_a_shift_of_every_picture_adds_its_square(size: tuple[int, int, int], shift: float) -> None:
    here = features(*size)
    one, moved = moments(here), moments(here + shift)
    expected = shift**2 * size[1]
    assert frechet(one, moved) == pytest.approx(expected, rel=1e-6, abs=1e-8 * float(one.covariance.trace()))


@calm
@given(sizes, st.data())
def test_moments_are_the_same_in_whatever_batches_they_come(size: tuple[int, int, int], data: st.DataObject) -> None:
    whole = features(*size)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=5)))
    parts = [whole[a:b] for a, b in zip([0, *cuts], [*cuts, len(whole)], strict=True)]
    found = moments(*parts)
    assert found.count == len(whole)
    torch.testing.assert_close(found.mean, whole.mean(0), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found.covariance, whole.T.cov().reshape(size[1], size[1]), rtol=1e-9, atol=1e-9)


def test_moments_of_large_half_precision_features_keep_their_spread() -> None:
    """Where a sum of squares in float32 would have lost it."""
    random = torch.Generator().manual_seed(0)
    fine = (1000 + torch.rand(4000, 3, generator=random)).half()
    found = moments(*fine.split(64))
    torch.testing.assert_close(found.covariance, fine.double().T.cov(), rtol=1e-9, atol=1e-12)


def test_nfid_is_fid_over_that_of_the_base() -> None:
    assert nfid(30.0, 60.0) == 0.5
    with pytest.raises(DataError, match="base's FID, and that is 0"):
        nfid(30.0, 0.0)


def test_too_few_pictures_are_told() -> None:
    assert "64 pictures are few for 64 features" in warning(moments(features(64, 64, 0)))
    assert warning(moments(features(65, 64, 0))) == ""
    with pytest.raises(DataError, match="from 1 picture,"):
        frechet(moments(features(1, 4, 0)), moments(features(9, 4, 0)))


def test_features_of_two_extractors_are_not_mixed() -> None:
    with pytest.raises(DataError, match="same extractor"):
        moments(features(5, 4, 0), features(5, 6, 0))
    with pytest.raises(DataError, match="same extractor"):
        frechet(moments(features(5, 4, 0)), moments(features(5, 6, 0)))


def test_a_feature_that_is_no_number_is_refused() -> None:
    with pytest.raises(DataError, match="not a finite number"):
        moments(torch.tensor([[1.0, math.nan]]))


@calm
@given(st.integers(1, 20), st.integers(1, 16), st.integers(0, 1000))
def test_clip_score_is_100_times_the_cosine_and_never_below_0(count: int, dimensions: int, seed: int) -> None:
    a, b = features(count, dimensions, seed) - 3, features(count, dimensions, seed + 1) - 3
    cosines = (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1))
    torch.testing.assert_close(clip_scores(a, b), (100 * cosines).clamp(min=0), rtol=1e-9, atol=1e-9)
    assert clip_score(a, b) == pytest.approx(float((100 * cosines).clamp(min=0).mean()), abs=1e-9)
    assert clip_score(a, 7 * a) == pytest.approx(100)
    assert clip_score(a, -a) == 0


def test_clip_score_wants_a_prompt_for_each_picture() -> None:
    with pytest.raises(DataError, match="one prompt for each picture"):
        clip_score(features(3, 4, 0), features(2, 4, 0))
