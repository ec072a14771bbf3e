"""train(...): a generator of steps. The caller shows progress, stops and saves; nothing here prints or knows a UI."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .attach import Switch
from .dataset import Batches, generator
from .errors import TrainingError
from .factors import Factors, canonical
from .layers import CORES, INITIALISATIONS, METHODS, AdapterLayer, create
from .objective import Denoiser, Example, distances, errors
from .stiefel import Stiefel


@dataclass(frozen=True)
class Settings:
    """Everything that decides a run, together with its data.

    Attributes:
        method: `trilora`, or `lora` for the baseline.
        core: `diagonal` (Eq. 5) or `full` (Figure 1).
        initialisation: `balanced`, `paper` or `orthogonal`; see `factors.initial`.
        rank: number of singular values a layer.
        alpha: the gain on the product is alpha / rank; keep alpha when the rank grows.
        steps: optimizer steps.
        batch: pictures a step.
        learning_rate: of AdamW, constant; 1e-4 suits SD-class models.
        shrink: total decoupled weight decay over the run, as a share; 0.1 takes 10 % from what is not renewed.
        clip: largest norm of the whole gradient; 0 for none.
        preserve: λ of the distance to the frozen base on captions without the trigger; 0 switches it off.
        seed: of adapter, order, noise and noise levels.
        targets: preset or glob patterns of layers; see `targets.select`.
    """

    method: str = "trilora"
    core: str = "diagonal"
    initialisation: str = "balanced"
    rank: int = 16
    alpha: float = 8.0
    steps: int = 1000
    batch: int = 1
    learning_rate: float = 1e-4
    shrink: float = 0.0
    clip: float = 1.0
    preserve: float = 0.0
    seed: int = 0
    targets: str = "attention"

    def __post_init__(self) -> None:
        for field, options in (("method", METHODS), ("core", CORES), ("initialisation", INITIALISATIONS)):
            _require(getattr(self, field) in options, field, getattr(self, field), f"one of {', '.join(options)}")
        for field in ("rank", "steps", "batch"):
            _require(getattr(self, field) >= 1, field, getattr(self, field), "at least 1")
        for field in ("learning_rate", "alpha"):
            value = getattr(self, field)
            _require(math.isfinite(value) and value > 0, field, value, "a number above 0")
        for field in ("clip", "preserve"):
            value = getattr(self, field)
            _require(math.isfinite(value) and value >= 0, field, value, "0 or more")
        if self.method == "lora":
            _require(self.core == "diagonal", "core", self.core, "diagonal for the method lora")
            _require(self.initialisation != "orthogonal", "initialisation", "orthogonal", "balanced or paper for lora")
        _require(0 <= self.shrink < 1, "shrink", self.shrink, "from 0 up to, not including, 1")


@dataclass(frozen=True)
class Step:
    """What is known after a step: its number (from 1), the total, the style loss and the preservation loss."""

    number: int
    total: int
    loss: float
    preservation: float | None = None


def create_layers(modules: Mapping[str, nn.Linear], settings: Settings) -> dict[str, nn.Module]:
    """An adapter layer for each chosen module, seeded by its path, so that one more target changes no other.

    Raises:
        RankError: a layer cannot hold the rank; names the layer.
    """
    return {
        path: create(
            settings.method,
            module.weight.detach(),
            settings.rank,
            settings.alpha / settings.rank,
            generator(settings.seed, "adapter", path),
            settings.core,
            settings.initialisation,
            layer=path,
        )
        for path, module in modules.items()
    }


def learned(layers: Mapping[str, AdapterLayer]) -> dict[str, Factors]:
    """The present factors of every layer, canonical, on the CPU, sharing no memory with what goes on learning."""
    with torch.no_grad():
        return {path: canonical(Factors(*layer.factors()).to("cpu")) for path, layer in layers.items()}


def train(
    denoiser: Denoiser,
    layers: Mapping[str, nn.Module],
    switch: Switch,
    examples: Sequence[Example],
    settings: Settings,
) -> Iterator[Step]:
    """Train attached adapter layers, one step each time the caller asks for the next.

    Args:
        denoiser: the model, with the layers attached.
        layers: layer path -> adapter layer; see `create_layers`.
        switch: of `attach.attached`; turned off for the base's own prediction.
        examples: encoded pictures; those of one latent shape are batched together.
        settings: everything else.

    Yields:
        A `Step` after each optimizer step.

    Raises:
        TrainingError: no examples, or a loss that is not finite; the layers then hold the last good step.
    """
    if not examples:
        raise TrainingError("There is no picture to train on. Connect a dataset that holds at least one.")
    if not layers:
        raise TrainingError("There is no layer to train. Change the targets.")
    if settings.preserve and any(example.plain is None for example in examples):
        raise TrainingError(
            f"The base was to be preserved (preserve {settings.preserve:g}), but there are pictures whose caption "
            "without the trigger word was not encoded. Encode it, or set preserve to 0."
        )
    parameters = [p for layer in layers.values() for p in layer.parameters()]
    optimizer = torch.optim.AdamW(
        parameters, lr=settings.learning_rate, weight_decay=_decay(settings), foreach=parameters[0].is_cuda or None
    )
    manifold = Stiefel(layers.values())  # type: ignore[arg-type]
    order = Batches(tuple(tuple(e.latent.shape) for e in examples), settings.batch, settings.seed)
    for number in range(1, settings.steps + 1):
        picked = [examples[i] for i in order.at(number - 1)]
        style, preservation = _losses(denoiser, switch, picked, settings, number)
        total = style if preservation is None else style + settings.preserve * preservation
        _finite(total, number, settings)
        optimizer.zero_grad(set_to_none=True)
        total.backward(inputs=parameters)  # type: ignore[no-untyped-call]
        norm = nn.utils.clip_grad_norm_(parameters, settings.clip or math.inf)
        _finite(norm, number, settings)
        manifold.prepare()
        optimizer.step()
        manifold.retract()
        kept = None if preservation is None else float(preservation.detach())
        yield Step(number, settings.steps, float(style.detach()), kept)


def _losses(
    denoiser: Denoiser, switch: Switch, picked: Sequence[Example], settings: Settings, number: int
) -> tuple[Tensor, Tensor | None]:
    """Style loss, and the distance to the base on the same noisy pictures with plain captions (method: preserve)."""
    latents = torch.stack([example.latent for example in picked])
    draw = generator(settings.seed, "noise", number)
    noise = torch.randn(latents.shape, generator=draw).to(latents)
    quantiles = torch.rand(len(picked), generator=draw)
    style = errors(denoiser, latents, noise, quantiles, [example.condition for example in picked]).mean()
    if not settings.preserve:
        return style, None
    plain = [example.plain for example in picked]
    levels = denoiser.levels(quantiles)
    noisy = denoiser.noised(latents, noise, levels)
    with torch.no_grad(), switch.off():
        target = denoiser.denoised(noisy, levels, plain)
    return style, distances(denoiser, noisy, levels, plain, target).mean()


def _decay(settings: Settings) -> float:
    """AdamW's weight decay that shrinks a parameter by `shrink` over the whole run: (1 - lr·wd)^steps = 1 - shrink."""
    return -math.expm1(math.log1p(-settings.shrink) / settings.steps) / settings.learning_rate


def _finite(value: Tensor, number: int, settings: Settings) -> None:
    if not torch.isfinite(value):
        raise TrainingError(
            f"The loss is no longer a number at step {number} (learning rate {settings.learning_rate:g}). What was "
            "learned up to the step before is kept. Lower the learning rate, to a third of it, say."
        )


def _require(good: bool, field: str, value: object, want: str) -> None:
    if not good:
        raise TrainingError(f"The setting {field} is {value!r}, but has to be {want}.")
