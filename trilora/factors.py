"""The algebra of W = W0 + U Σ Vᵀ (paper, Eq. 5 and 6): pure functions on factors.

Shapes, here and everywhere: `u (out, r)`, `sigma (r,)`, `vh (r, *in)`. A convolution keeps its kernel in the trailing
dimensions of `vh`. A `sigma` with two dimensions, `(r2, r1)`, is the full core C of the paper's Figure 1; then
`u` is `(out, r2)` and `vh` is `(r1, *in)`.
"""

from collections.abc import Callable, MutableMapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import linear, pad
from torch.utils.weak import WeakTensorKeyDictionary

from .errors import RankError, TriLoRAError

SMALLEST_SIGMA = 0.001  # beside u = 0, a sigma of 0 has no gradient and would never learn
Window = Callable[[Tensor, Tensor], Tensor]  # (x, kernels) -> the convolution of its module, without bias

GAUSSIAN_STD = 0.02  # std of the Gaussian factor; 1/r forgets more and fits worse


class Factors(NamedTuple):
    """U, Σ, Vᵀ of one layer; delta = u @ diag(sigma) @ vh."""

    u: Tensor  # (out, r)
    sigma: Tensor  # (r,), or the full core (r2, r1)
    vh: Tensor  # (r, *in)

    @property
    def rank(self) -> int:
        return min(self.sigma.shape)

    def to(self, device: torch.device | str) -> "Factors":
        """The same factors on another device."""
        return Factors(self.u.to(device), self.sigma.to(device), self.vh.to(device))


def left(factors: Factors) -> Tensor:
    """U Σ, the one place where Σ meets its neighbours: (out, r)."""
    u, sigma, _ = factors
    return u * sigma if sigma.ndim == 1 else u @ sigma


def delta(factors: Factors) -> Tensor:
    """ΔW = U Σ Vᵀ (Eq. 5): (out, *in)."""
    product = left(factors) @ factors.vh.flatten(1)
    return product.view(-1, *factors.vh.shape[1:])


def forward(x: Tensor, factors: Factors, window: Window | None = None) -> Tensor:
    """x ΔWᵀ without forming ΔW: (..., in) -> (..., out), in the dtype of x.

    With a window, the convolution of x with ΔW: (B, in, ...) -> (B, out, ...); U Σ then acts at each place.
    """
    weight, rows = left(factors).to(x.dtype), factors.vh.to(x.dtype)
    if window is None:
        return linear(linear(x, rows), weight)
    hidden = window(x, rows)  # (B, r, ...)
    return (weight @ hidden.flatten(2)).view(len(hidden), -1, *hidden.shape[2:])


def check_rank(rank: int, out_features: int, in_features: int, layer: str = "the layer") -> None:
    """Refuse a rank that no matrix of this shape has.

    Raises:
        RankError: rank < 1, or rank > min(out_features, in_features).
    """
    largest = min(out_features, in_features)
    if not 1 <= rank <= largest:
        raise RankError(
            f"Rank {rank} was asked for, but {layer} is {out_features} x {in_features} and holds ranks 1 to {largest}. "
            f"Choose a rank of at most {largest}, or leave this layer out of the targets."
        )


def row_space(matrix: Tensor, rank: int, generator: torch.Generator) -> Tensor:
    """Orthonormal columns that span the `rank` directions which a matrix (out, in) stretches most, and 8 more: (in, w).

    Halko, Martinsson, Tropp 2011, Algorithm 4.4 with four iterations and oversampling 8.
    """
    width = min(rank + 8, *matrix.shape)
    basis = torch.randn(matrix.shape[1], width, generator=generator).to(matrix.device)  # (in, width)
    for _ in range(4):
        basis = torch.linalg.qr(matrix @ basis).Q  # (out, width)
        basis = torch.linalg.qr(matrix.T @ basis).Q  # (in, width)
    return basis


def top_singular_values(weight: Tensor, rank: int, generator: torch.Generator) -> Tensor:
    """The largest `rank` singular values of a matrix (out, in), descending, by randomised subspace iteration."""
    matrix = weight.float()
    values: Tensor = torch.linalg.svdvals(matrix @ row_space(matrix, rank, generator))
    return values[:rank]


def gram_values(factors: Factors) -> Tensor:
    """The singular values of U Σ Vᵀ, descending, on the CPU: the roots of the eigenvalues of (UΣ)ᵀ(UΣ) · VᵀV."""
    columns, rows = left(factors), factors.vh.flatten(1)
    outer, inner = (columns.T @ columns).cpu().double(), (rows @ rows.T).cpu().double()  # (r, r) each
    lengths, turn = torch.linalg.eigh(inner)
    root = turn * lengths.clamp_min(0).sqrt()
    squares: Tensor = torch.linalg.eigvalsh(root.T @ outer @ root)
    return squares.clamp_min(0).sqrt().flip(0)


def nearest(change: Tensor, rank: int, generator: torch.Generator) -> Factors:
    """Canonical factors of the best approximation of rank at most `rank` of a matrix (out, *in), float32.

    Halko, Martinsson, Tropp 2011, Algorithm 5.1, with twice the rank in play: its error is above the least possible
    by less than 0.5 %, for random matrices, which are the hardest. An exact SVD where that is no dearer.
    """
    matrix = change.float().flatten(1)
    if 4 * rank >= min(matrix.shape):
        u, sigma, vh = torch.linalg.svd(matrix, full_matrices=False)
    else:
        basis = row_space(matrix, 2 * rank, generator)
        u, sigma, rows = torch.linalg.svd(matrix @ basis, full_matrices=False)
        vh = rows @ basis.T
    return truncated(Factors(u, sigma, vh.reshape(-1, *change.shape[1:])), rank)


def nearest_holding(change: Tensor, share: float, largest: int, generator: torch.Generator) -> Factors:
    """As `nearest`, of the smallest rank that holds `share` of the energy of the matrix, yet of at most `largest`."""
    enough = share * float(change.float().norm()) ** 2
    rank = min(16, largest)
    found = nearest(change, rank, generator)
    while energy_of(found.sigma) < enough and rank < min(largest, found.u.shape[0], found.vh[0].numel()):
        rank = min(4 * rank, largest)
        found = nearest(change, rank, generator)
    return truncated(found, rank_holding(found.sigma, enough / energy_of(found.sigma)))


def gaussian(shape: tuple[int, int], std: float, generator: torch.Generator) -> Tensor:
    """N(0, std²), drawn on the CPU so that a seed means the same everywhere."""
    return torch.randn(shape, generator=generator) * std


def orthonormal_rows(rows: int, columns: int, generator: torch.Generator) -> Tensor:
    """A random (rows, columns) matrix with orthonormal rows."""
    basis: Tensor = torch.linalg.qr(torch.randn(columns, rows, generator=generator)).Q
    return basis.T.contiguous()


def initial(kind: str, weight: Tensor, rank: int, generator: torch.Generator) -> Factors:
    """Factors to start training from, float32 on the CPU, with delta = 0.

    Args:
        kind: `balanced`: vh ~ N(0, 0.02²), sigma = the top r singular values of W0 over their RMS (0.001 at least),
            u = 0.
            `paper` (section 3.3, read literally): vh ~ N(0, 1/r²), sigma = the top r singular values, u = 0.
            `orthogonal`: u and vh orthonormal, sigma = 0.
        weight: W0, (out, in).
        rank: r.
        generator: source of every random number, on the CPU.

    Raises:
        RankError: the weight cannot hold the rank.
    """
    out_features, in_features = weight.shape
    check_rank(rank, out_features, in_features)
    if kind == "orthogonal":
        vh = orthonormal_rows(rank, in_features, generator)
        u = orthonormal_rows(rank, out_features, generator).T.contiguous()
        return Factors(u, torch.zeros(rank), vh)
    sigma = top_singular_values(weight, rank, generator).cpu()
    std = GAUSSIAN_STD
    if kind == "balanced":
        size = sigma.square().mean().sqrt().clamp_min(torch.finfo(torch.float32).tiny)
        sigma = (sigma / size).clamp_min(SMALLEST_SIGMA)
    elif kind == "paper":
        std = 1 / rank
    else:
        raise TriLoRAError(f"Initialisation {kind!r} is unknown; choose balanced, paper or orthogonal.")
    return Factors(torch.zeros(out_features, rank), sigma, gaussian((rank, in_features), std, generator))


def canonical(factors: Factors) -> Factors:
    """The compact SVD (Eq. 4) of the same delta: u, vh orthonormal, sigma >= 0 and descending, float32.

    QR of u and of vhᵀ, then the SVD of the small middle R_u Σ R_vᵀ: nothing of size out x in is formed.
    Where the rank exceeds a side of the layer, the surplus values, which are zero, are dropped.

    Raises:
        TriLoRAError: NaN or inf in the factors.
    """
    # in float64 where that is cheap, so that rounding stays below that of a float32 product
    work = torch.float64 if factors.u.device.type == "cpu" else torch.float32
    u, sigma, vh = (tensor.to(work) for tensor in factors)
    q_u, r_u = torch.linalg.qr(u)
    q_v, r_v = torch.linalg.qr(vh.flatten(1).T)
    middle = (r_u * sigma if sigma.ndim == 1 else r_u @ sigma) @ r_v.T
    if not middle.isfinite().all():
        raise TriLoRAError(
            f"The adapter of a layer of {len(u)} x {vh[0].numel()} holds NaN or inf, so it has no singular values. "
            "What made it went wrong: load an earlier save, or another file."
        )
    left_vectors, values, right_vectors = torch.linalg.svd(middle, full_matrices=False)
    rows = (right_vectors @ q_v.T).reshape(-1, *vh.shape[1:])
    return Factors((q_u @ left_vectors).float(), values.float(), rows.float())


def canonical_once(factors: Factors, device: torch.device | str | None = None) -> Factors:
    """As `canonical`, found once for as long as this very `u` lives; with a device, it is found there."""
    known = _CANONICAL.get(factors.u)
    if known is None or known[0] is not factors.sigma or known[1] is not factors.vh:
        found = canonical(factors.to(device or factors.u.device)).to(factors.u.device)
        known = _CANONICAL[factors.u] = (factors.sigma, factors.vh, found)
    return known[2]


_CANONICAL: MutableMapping[Tensor, tuple[Tensor, Tensor, Factors]] = WeakTensorKeyDictionary()
"""u -> (sigma, vh, canonical factors)."""


def scaled(factors: Factors, gains: Tensor | float) -> Factors:
    """Each singular value times its gain; one number is the gain common to all (the strength)."""
    return factors._replace(sigma=factors.sigma * gains)


def truncated(factors: Factors, rank: int) -> Factors:
    """The first `rank` components: of canonical factors, the best approximation of that rank (Eckart, Young)."""
    first = Factors(factors.u[:, :rank], factors.sigma[:rank], factors.vh[:rank])
    return Factors(*(tensor.clone() for tensor in first))  # views would keep the whole in memory


def energy(factors: Factors) -> Tensor:
    """Share of the squared Frobenius norm held by the first k components, k = 1..r, of canonical factors: (r,)."""
    squares = factors.sigma.square()
    return squares.cumsum(0) / squares.sum().clamp_min(torch.finfo(squares.dtype).tiny)


def energy_of(sigma: Tensor) -> float:
    """The squared Frobenius norm of canonical factors."""
    return float(sigma.cpu().double().square().sum())


def rank_holding(sigma: Tensor, share: float) -> int:
    """The smallest k whose first k values hold `share` of the energy; all of them where `share` is above 1."""
    sums = sigma.cpu().double().square().cumsum(0)
    return int((pad(sums[:-1], (1, 0)) < share * sums[-1]).sum())


def merged(several: Sequence[Factors], weights: Sequence[float]) -> Factors:
    """Canonical factors of Σᵢ weightᵢ · deltaᵢ, exact: concatenated along the rank, never out x in."""
    return canonical(
        Factors(
            torch.cat([left(f) * w for f, w in zip(several, weights, strict=True)], dim=1),
            torch.ones(sum(len(f.vh) for f in several), device=several[0].vh.device),
            torch.cat([f.vh for f in several], dim=0),
        )
    )


def root_split(factors: Factors) -> tuple[Tensor, Tensor]:
    """(u·√sigma, √sigma·vh): the two factors of a LoRA file, of equal size, so that sigma is the product of norms."""
    root = factors.sigma.sqrt()
    return factors.u * root, factors.vh * root.view(-1, *[1] * (factors.vh.ndim - 1))
