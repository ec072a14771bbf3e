"""A MODEL with a finished adapter on it for a while: to paint with, and to measure it on pictures that it never saw."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ..trilora.attach import Switch, attached
from ..trilora.dataset import Dataset
from ..trilora.files import Adapter
from ..trilora.film import Preview
from ..trilora.objective import score
from ..trilora.report import Losses
from ..trilora.run import LEVELS, fixed_noise, moved
from ..trilora.training import frozen
from . import sampling
from .denoiser import ComfyDenoiser
from .encoding import Tick, encode, examples
from .lending import lent
from .starting import start_factors


@contextmanager
def worn(model: ModelPatcher, adapter: Adapter) -> Iterator[tuple[ModelPatcher, Switch]]:
    """The MODEL, lent, with the adapter acting in it, and the switch that turns it off."""
    factors, _ = start_factors(model, adapter)
    with lent(model) as patcher:
        network = patcher.model.diffusion_model
        layers = frozen({path: network.get_submodule(path) for path in factors}, factors, patcher.load_device)
        with attached(network, layers) as switch:
            yield patcher, switch


def paint(
    wires: tuple, adapter: Adapter, prompts: Sequence[str], sizes: Sequence[tuple[int, int]], how: Preview,
    tick: Callable[[int], None], on: bool = True,
) -> list[Tensor]:  # fmt: skip
    """A picture of each prompt, (height, width, 3) in 0..1, each at a seed of its own, counted up from that of `how`.

    Args:
        wires: MODEL, CLIP and VAE.
        sizes: (width, height) of each.
        tick: called with the number of each finished picture.
        on: False for pictures by the bare base.
    """
    model, clip, vae = wires
    positive, negative = [sampling.encode(clip, prompt) for prompt in prompts], sampling.encode(clip, "")
    made = []
    with worn(model, adapter) as (patcher, switch), switch.turned(on):
        for i, (prompt, size) in enumerate(zip(positive, sizes, strict=True)):
            tick(i)
            pixels = sampling.sample(patcher, prompt, negative, vae, how.seed + i, how.steps, how.cfg, *size)
            made.append(pixels[0].float().cpu())
    return made


class Yardstick:
    """Measures adapters on the same pictures with the same noise."""

    def __init__(self, wires: tuple, dataset: Dataset, seed: int, tick: Tick) -> None:
        self.model, clip, vae = wires
        self.seed, self.encoded = seed, encode(dataset, clip, vae, True, tick)

    def measure(self, adapter: Adapter) -> Losses:
        """Loss with the trigger word, and how far the model moved from the base with it and without it."""
        with worn(self.model, adapter) as (patcher, switch):
            denoiser = ComfyDenoiser(patcher)
            data = [variants[0] for variants in examples(denoiser, self.encoded)]
            style = score(denoiser, data, fixed_noise(data, self.seed), LEVELS)
            return Losses(style, *moved(denoiser, switch, data, self.seed))
