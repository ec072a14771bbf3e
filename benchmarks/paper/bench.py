"""The base, the pictures and the yardsticks: everything that one training after another is measured with."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor, nn

from benchmarks.paper.data import Folders, dataset
from benchmarks.paper.scale import Scale
from trilora.attach import Switch, attached
from trilora.cache import Cache
from trilora.dataset import Dataset
from trilora.disk import write
from trilora.factors import Factors
from trilora.headless.denoiser import DiffusersDenoiser
from trilora.headless.encoding import encode
from trilora.headless.pipelines import load_pipeline
from trilora.metrics.extractors import Extractor
from trilora.metrics.frechet import Moments
from trilora.objective import Denoiser, Example, Variants, gaps
from trilora.run import fixed_noise
from trilora.settings import Settings
from trilora.targets import select
from trilora.training import Training, frozen

CREATURES, GARMENTS = "zorvex", "quilmar"  # trigger words that mean nothing to a base
LEVELS = (0.3, 0.7)  # quantiles of the noise levels that are scored
TOGETHER = 24  # pictures in one pass while scoring


@dataclass(frozen=True)
class Setup:
    """What the experiment is run on."""

    base: Path
    out: Path
    folders: Folders
    scale: Scale
    extractor: Extractor


class Probe:
    """Pictures at fixed noise: the loss on them, and how far an estimate of them has moved from the base's.

    Made while nothing is attached.
    """

    def __init__(self, denoiser: Denoiser, examples: Sequence[Example]) -> None:
        self.denoiser = denoiser
        every = [(e, n, q) for e, n in zip(examples, fixed_noise(examples, 0), strict=True) for q in LEVELS]
        self.latents = torch.stack([e.latent for e, _, _ in every])
        self.levels = denoiser.levels(torch.tensor([q for *_, q in every]))
        self.noisy = denoiser.noised(self.latents, torch.stack([n for _, n, _ in every]), self.levels)
        self.conditions = [e.condition for e, _, _ in every]
        self.base = self._estimate()
        self.bare = self._distance(self.base, self.latents)  # the base's own loss

    def loss(self) -> float:
        return self._distance(self._estimate(), self.latents)

    def moved(self) -> float:
        return self._distance(self._estimate(), self.base)

    def _distance(self, one: Tensor, other: Tensor) -> float:
        return float(gaps(self.denoiser, one, other, self.levels).mean())

    @torch.no_grad()
    def _estimate(self) -> Tensor:
        parts = range(0, len(self.noisy), TOGETHER)
        return torch.cat([self._part(slice(at, at + TOGETHER)) for at in parts])

    def _part(self, part: slice) -> Tensor:
        return self.denoiser.denoised(self.noisy[part], self.levels[part], self.conditions[part])


@dataclass
class Bench:
    """Made once; each property is made when it is first asked for."""

    setup: Setup
    pipe: object = field(init=False)
    denoiser: DiffusersDenoiser = field(init=False)
    real: dict[str, Moments] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.pipe = load_pipeline(self.setup.base)
        self.pipe.set_progress_bar_config(disable=True)
        self.denoiser = DiffusersDenoiser(self.pipe)
        self.network: nn.Module = self.pipe.unet
        self.modules = select(self.network)
        self.probes = self._probes()  # now, while nothing is attached

    @property
    def scale(self) -> Scale:
        return self.setup.scale

    def dataset(self, name: str, trigger: str = "") -> Dataset:
        return dataset(self.setup.folders, name, self.setup.out, self.scale.side, trigger)

    def encoded(self, data: Dataset) -> list[Variants]:
        return encode(self.denoiser, data, plain=True, cache=Cache(self.setup.out / "encoded"))[0]

    @cached_property
    def parts(self) -> tuple[Dataset, Dataset, Dataset]:
        """Creatures to train on, to tune on, and to measure on."""
        rest, test = self.dataset("creatures", CREATURES).split(0.2, 0)
        train, validation = rest.split(0.25, 0)
        assert test
        assert validation
        return train, validation, test

    @cached_property
    def world(self) -> tuple[Dataset, Dataset]:
        """Plain pictures whose captions may be learned from, and those that forgetting is measured on."""
        lent, kept = self.dataset("plain").split(1 / 3, 0)
        assert kept
        return lent, kept

    @cached_property
    def train(self) -> list[Variants]:
        return self.encoded(self.parts[0])

    def _probes(self) -> dict[str, Probe]:
        data = {"validation": self.parts[1], "style": self.parts[2], "plain": self.world[1]}
        return {name: Probe(self.denoiser, [v[0] for v in self.encoded(d)]) for name, d in data.items()}

    def point(self, **about: float | str) -> dict[str, float | str]:
        """One place of the frontier: loss on held-out creatures, and distance to the base on plain prompts."""
        return {**about, "style": self.probes["style"].loss(), "forgotten": self.probes["plain"].moved()}

    def moments(self, name: str) -> Moments:
        """Features of the real pictures of a data set, as squares of the size that is painted."""
        if name not in self.real:
            data = self.dataset(name)
            self.real[name] = Moments()
            self.real[name].add(self.setup.extractor.pictures(torch.stack([data.pixels_of(p) for p in data.pictures])))
        return self.real[name]

    def settings(self, **more: object) -> Settings:
        return Settings(rank=self.scale.rank, alpha=self.scale.alpha, batch=self.scale.batch, **more)  # type: ignore[arg-type]

    def training(
        self, layers: Mapping[str, nn.Module], switch: Switch, examples: Sequence[Variants], settings: Settings, **more
    ) -> Training:
        return Training(self.denoiser, layers, switch, examples, settings, **more)

    @contextmanager
    def wearing(self, factors: Mapping[str, Factors]) -> Iterator[dict[str, nn.Module]]:
        """A finished adapter acts; its layers are given."""
        layers = frozen({path: self.modules[path] for path in factors}, factors)
        with attached(self.network, layers):
            yield layers


@contextmanager
def gained(layers: Mapping[str, nn.Module], gains: float | Tensor) -> Iterator[None]:
    """Within the block every singular value is multiplied by its gain: one number is the strength."""
    for layer in layers.values():
        sigma = layer.factors().sigma
        layer.gains = torch.as_tensor(gains, dtype=sigma.dtype, device=sigma.device).expand(sigma.shape[-1])
    try:
        yield
    finally:
        for layer in layers.values():
            layer.gains = None


def save_factors(path: Path, factors: Mapping[str, Factors]) -> None:
    """Canonical factors as they are, for later rows of the experiment."""
    tensors = {f"{name}|{part}": t.contiguous() for name, f in factors.items() for part, t in f._asdict().items()}
    write(path, safetensors.torch.save(tensors))


def load_factors(path: Path) -> dict[str, Factors]:
    """What `save_factors` wrote."""
    tensors = safetensors.torch.load_file(path)
    names = dict.fromkeys(key.split("|")[0] for key in tensors)
    return {name: Factors(*(tensors[f"{name}|{part}"] for part in Factors._fields)) for name in names}
