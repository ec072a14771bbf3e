"""Fréchet distance of two sets of features: FID, and NFID, which is FID over that of the base."""

import torch
from torch import Tensor

from ..errors import DataError


class Moments:
    """Mean and covariance of features that come in batches, in float64; no feature is kept.

    Attributes:
        count: how many features have come.
        mean: (D,); covariance: (D, D), unbiased, with count - 1.
    """

    def __init__(self) -> None:
        self.count = 0
        self._mean = torch.zeros(0, dtype=torch.float64)
        self._scatter = torch.zeros(0, 0, dtype=torch.float64)  # sum of (x - mean)(x - mean)'

    def add(self, features: Tensor) -> None:
        """Takes in features (N, D), N >= 0 (Chan, Golub, LeVeque 1979: two sets of moments become one).

        Raises:
            DataError: not (N, D), another D than before, or a value that is no number.
        """
        new = self._checked(features)
        if not len(new):
            return
        if not self.count:
            self._mean, self._scatter = new.new_zeros(new.shape[1]), new.new_zeros(new.shape[1], new.shape[1])
        mean = new.mean(0)
        centred, apart, total = new - mean, mean - self._mean, self.count + len(new)
        self._scatter = self._scatter + centred.T @ centred + apart.outer(apart) * (self.count * len(new) / total)
        self._mean = self._mean + apart * (len(new) / total)
        self.count = total

    @property
    def dimensions(self) -> int:
        """D, or 0 before the first feature."""
        return len(self._mean)

    @property
    def mean(self) -> Tensor:
        """(D,) in float64."""
        return self._mean

    @property
    def covariance(self) -> Tensor:
        """(D, D) in float64.

        Raises:
            DataError: fewer than two features.
        """
        if self.count < 2:
            raise DataError(
                f"A spread can't be told from {self.count} picture{'' if self.count == 1 else 's'}, and FID needs one. "
                "Give at least 2 pictures; below some hundreds FID is rough."
            )
        return self._scatter / (self.count - 1)

    def _checked(self, features: Tensor) -> Tensor:
        if features.ndim != 2 or (self.count and features.shape[1] != self.dimensions):
            wanted = f"(N, {self.dimensions})" if self.count else "(N, D)"
            raise DataError(
                f"Features of shape {tuple(features.shape)} can't be added to {wanted}. Take all features from the "
                "same extractor, one row a picture."
            )
        if not features.isfinite().all():
            raise DataError("A feature is not a finite number. Look for broken pictures, or run in float32.")
        return features.detach().to("cpu", torch.float64)


def frechet(a: Moments, b: Moments) -> float:
    """|mean_a - mean_b|² + tr(A) + tr(B) - 2 tr((A B)^½), A and B the covariances (Heusel et al. 2017).

    tr((A B)^½) is the sum of the singular values of A^½ B^½, which holds for singular A and B too.

    Raises:
        DataError: fewer than two features on a side, or features of two extractors.
    """
    left, right = a.covariance, b.covariance
    if a.dimensions != b.dimensions:
        raise DataError(
            f"{a.dimensions} and {b.dimensions} numbers a picture can't be compared. Take both sides from the same "
            "extractor."
        )
    shared = torch.linalg.svdvals(_half(left).T @ _half(right)).sum()
    distance = (a.mean - b.mean).square().sum() + left.trace() + right.trace() - 2 * shared
    return max(float(distance), 0.0)  # rounding alone goes below 0


def nfid(of: float, base: float) -> float:
    """FID / FID of the base on the same prompts: below 1 is nearer to the real pictures than the base is.

    Raises:
        DataError: the base's FID is 0.
    """
    if not base > 0:
        raise DataError(
            f"NFID divides by the base's FID, and that is {base:g}. Give pictures made by the base, not the real ones."
        )
    return of / base


def warning(moments: Moments) -> str:
    """A sentence where the pictures are fewer than the numbers they are described with, else ""."""
    if moments.count > moments.dimensions:
        return ""
    return (
        f"{moments.count} pictures are few for {moments.dimensions} features a picture: their covariance is singular "
        "and FID comes out too large. Compare it only with an FID of equally many pictures."
    )


def _half(covariance: Tensor) -> Tensor:
    """Columns H (D, rank) with H Hᵀ = covariance; directions that are rounding alone are left out."""
    values, vectors = torch.linalg.eigh(covariance)
    real = values > values[-1].clamp(min=0) * len(values) * torch.finfo(values.dtype).eps
    half: Tensor = vectors[:, real] * values[real].sqrt()
    return half
