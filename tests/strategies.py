"""What the unit tests share: how factors are drawn, how close is close, and a toy model to train."""

import math

import torch
from hypothesis import settings
from hypothesis import strategies as st
from torch import Tensor, nn

from trilora.factors import Factors

settings.register_profile("unit", max_examples=40, deadline=None)
settings.load_profile("unit")
torch.set_num_threads(1)  # the matrices are small: threads would only wait for each other

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
SPECTRA = ("random", "decaying", "with zeros", "all zero")
KERNELS = ((), (1, 1), (3, 3), (1, 3))

sides = st.integers(1, 96)
seeds = st.integers(0, 2**16)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def randn(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=seeded(seed))


def spectrum(kind: str, rank: int, seed: int) -> Tensor:
    """Singular values as training may leave them: of either sign, in any order, some of them zero."""
    values = randn(seed, rank)
    if kind == "decaying":
        return values.sign() * torch.logspace(1, -3, rank)
    if kind == "with zeros":
        values[:: 2 if rank > 1 else 1] = 0
    return torch.zeros(rank) if kind == "all zero" else values


def make(
    out: int, inner: int, rank: int, seed: int = 0, core: str = "diagonal", kernel: tuple[int, ...] = ()
) -> Factors:
    """Random factors of a given shape, far from canonical."""
    sigma = randn(seed + 1, rank, rank) if core == "full" else spectrum("random", rank, seed + 1)
    return Factors(randn(seed + 2, out, rank), sigma, randn(seed + 3, rank, inner, *kernel))


@st.composite
def factor_sets(draw, cores=("diagonal", "full"), kernels=KERNELS, surplus=True, spectra=SPECTRA):
    """Factors over shapes 1..96, ranks up to a side and, with `surplus`, past it."""
    out, inner, seed = draw(sides), draw(sides), draw(seeds)
    largest = min(out, inner)
    ranks = st.integers(1, largest)
    rank = draw(st.one_of(ranks, st.integers(largest + 1, 2 * largest + 4)) if surplus else ranks)
    factors = make(out, inner, rank, seed, draw(st.sampled_from(cores)), draw(st.sampled_from(kernels)))
    if factors.sigma.ndim == 1:
        factors = factors._replace(sigma=spectrum(draw(st.sampled_from(spectra)), rank, seed))
    return factors


def dense(factors: Factors) -> Tensor:
    """U Σ Vᵀ in float64, written out a second time so that the tests do not ask the code about itself."""
    u, sigma, vh = (tensor.double() for tensor in factors)
    middle = torch.diag(sigma) if sigma.ndim == 1 else sigma
    return torch.einsum("or,rs,s...->o...", u, middle, vh)


def size(factors: Factors) -> float:
    """An upper bound on the Frobenius norm of delta, which cancellation in the product cannot make small."""
    return math.prod(float(tensor.double().norm()) for tensor in factors) + 1e-30


def far(a: Tensor, b: Tensor) -> float:
    """Frobenius distance of two tensors."""
    return float((a.double() - b.double()).norm())


def off_identity(columns: Tensor) -> float:
    """Largest entry of |XᵀX - I|: how far columns are from orthonormal."""
    columns = columns.double()
    return float((columns.T @ columns - torch.eye(columns.shape[1], dtype=torch.float64)).abs().max())


def bits(module: nn.Module) -> dict[str, Tensor]:
    return {key: tensor.clone() for key, tensor in module.state_dict().items()}


def same_bits(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return list(a) == list(b) and all(torch.equal(a[key], b[key]) and a[key].dtype == b[key].dtype for key in a)


def network(*paths: str, width: int = 4) -> nn.Module:
    """A module tree with a linear layer at each path."""
    root = nn.Module()
    for path in paths:
        *parents, last = path.split(".")
        here = root
        for part in parents:
            if part not in here._modules:
                here.add_module(part, nn.Module())
            here = here._modules[part]
        here.add_module(last, nn.Linear(width, width))
    return root


LATENT = (2, 3, 4)
CONDITION = 6


class ToyNet(nn.Module):
    """A frozen two-layer network on (latent, level, condition), whose layers adapters may sit on."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        latent = math.prod(LATENT)
        self.first = nn.Linear(latent + 1 + CONDITION, 32)
        self.last = nn.Linear(32, latent)
        for i, parameter in enumerate(self.parameters()):
            parameter.data = randn(seed + i, *parameter.shape) / 5
        self.requires_grad_(False)

    def forward(self, noisy: Tensor, levels: Tensor, conditions: Tensor) -> Tensor:
        hidden = self.first(torch.cat([noisy.flatten(1), levels[:, None], conditions], dim=1))
        return self.last(hidden.tanh()).view(noisy.shape)


def wide(levels: Tensor) -> Tensor:
    """Levels (B,) so that they multiply latents (B, C, H, W)."""
    return levels[:, None, None, None]


class Toy:
    """The trainer's view of a ToyNet that predicts the noise (`eps`), the velocity (`v`) or the flow (`flow`)."""

    def __init__(self, kind: str = "eps", net: nn.Module | None = None) -> None:
        self.kind = kind
        self.net = net or ToyNet()

    def levels(self, quantiles: Tensor) -> Tensor:
        return 0.05 + 0.9 * quantiles

    def noised(self, latents: Tensor, noise: Tensor, levels: Tensor) -> Tensor:
        t = wide(levels)
        return {
            "eps": lambda: latents + 3 * t * noise,
            "v": lambda: t.cos() * latents + t.sin() * noise,
            "flow": lambda: (1 - t) * latents + t * noise,
        }[self.kind]()

    def denoised(self, noisy: Tensor, levels: Tensor, conditions: list[Tensor]) -> Tensor:
        output, t = self.net(noisy, levels, torch.stack(list(conditions))), wide(levels)
        return {
            "eps": lambda: noisy - 3 * t * output,
            "v": lambda: t.cos() * noisy - t.sin() * output,
            "flow": lambda: noisy - t * output,
        }[self.kind]()

    def output_scale(self, levels: Tensor) -> Tensor:
        return {"eps": lambda: 3 * levels, "v": levels.sin, "flow": lambda: levels}[self.kind]()
