"""Optimizers and schedules of the learning rate: all from libraries, some of which have to be installed."""

import importlib
import math
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from .errors import TrainingError
from .layers import TriLoRALayer
from .settings import Settings

Group = dict[str, Any]


def groups(layers: Mapping[str, nn.Module], settings: Settings) -> list[Group]:
    """Parameters that learn, with the learning rate and the weight decay of each: Σ, orthonormal factors, the rest."""
    sigma: list[nn.Parameter] = []
    kept: list[nn.Parameter] = []
    rest: list[nn.Parameter] = []
    for layer in layers.values():
        orthonormal = isinstance(layer, TriLoRALayer) and layer.orthonormal
        for name, parameter in layer.named_parameters():
            if parameter.requires_grad:
                (sigma if name == "sigma" else kept if orthonormal else rest).append(parameter)
    rate, shrink = settings.learning_rate, settings.shrink
    made = [(sigma, rate * settings.sigma_rate, shrink), (kept, rate, 0.0), (rest, rate, shrink)]
    multipliers = [multiplier(settings)(step) for step in range(settings.steps)] if shrink else []
    return [
        {"params": parameters, "lr": rate, "weight_decay": decay(share, rate, multipliers) if share else 0.0}
        for parameters, rate, share in made
        if parameters
    ]


def create(layers: Mapping[str, nn.Module], settings: Settings) -> tuple[Optimizer, LambdaLR]:
    """The optimizer that the settings name, and the schedule of its learning rates.

    Raises:
        TrainingError: the optimizer's package is not installed.
    """
    parameters = groups(layers, settings)
    optimizer = _MAKERS[settings.optimizer](parameters)
    return optimizer, LambdaLR(optimizer, multiplier(settings))


def multiplier(settings: Settings) -> Callable[[int], float]:
    """Step, counted from 0 -> factor on the learning rate."""
    if settings.schedule == "constant" and not settings.warmup:
        return lambda _step: 1.0
    name = "constant_with_warmup" if settings.schedule == "constant" else settings.schedule
    probe = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    get = _package("transformers", "the schedule " + settings.schedule).get_scheduler
    # a warm-up of n steps begins with 1/n, not with a step that does nothing
    schedule = get(name, probe, num_warmup_steps=settings.warmup, num_training_steps=settings.steps)
    chosen: Callable[[int], float] = schedule.lr_lambdas[0]
    return lambda step: chosen(step + 1) if step < settings.warmup else chosen(step)


def decay(shrink: float, rate: float, multipliers: Sequence[float]) -> float:
    """Decoupled weight decay w that takes `shrink` over the whole run: Π (1 - rate·mₜ·w) = 1 - shrink, by Newton."""
    rates = [rate * m for m in multipliers]
    goal = math.log1p(-shrink)
    w = min(-goal / sum(rates), (1 - 1e-9) / max(rates))
    for _ in range(100):
        value = sum(math.log1p(-r * w) for r in rates) - goal
        step = value / sum(r / (1 - r * w) for r in rates)
        w += step
        if abs(step) <= 1e-12 * w:
            break
    return w


def _adamw(parameters: list[Group]) -> Optimizer:
    one_pass = parameters[0]["params"][0].device.type in ("cpu", "cuda")  # else a kernel for each term of the update
    return torch.optim.AdamW(parameters, fused=one_pass or None)


def _adamw_8bit(parameters: list[Group]) -> Optimizer:
    made: Optimizer = _package("bitsandbytes", "the optimizer adamw 8-bit").optim.AdamW8bit(parameters)
    return made


def _adafactor(parameters: list[Group]) -> Optimizer:
    made: Optimizer = _package("transformers", "the optimizer adafactor").Adafactor(
        parameters, scale_parameter=False, relative_step=False, warmup_init=False
    )
    return made


def _prodigy(parameters: list[Group]) -> Optimizer:
    made: Optimizer = _package("prodigyopt", "the optimizer prodigy").Prodigy(
        parameters, decouple=True, safeguard_warmup=True, use_bias_correction=True
    )
    return made


def _schedule_free(parameters: list[Group]) -> Optimizer:
    made: Optimizer = _package("schedulefree", "the optimizer schedule-free").AdamWScheduleFree(parameters)
    made.train()  # type: ignore[attr-defined]
    return made


_MAKERS: Mapping[str, Callable[[list[Group]], Optimizer]] = {
    "adamw": _adamw,
    "adamw 8-bit": _adamw_8bit,
    "adafactor": _adafactor,
    "prodigy": _prodigy,
    "schedule-free": _schedule_free,
}


def _package(name: str, purpose: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError:
        raise TrainingError(
            f"For {purpose}, the Python package {name} is needed, which is not installed here. Install it "
            f"into the Python that runs this (python -m pip install {name}), or choose another."
        ) from None
