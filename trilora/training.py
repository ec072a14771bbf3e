"""Training: adapter layers learn step by step. The caller shows progress, stops and saves; no UI is known here."""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from . import optimizers
from .attach import Switch
from .draws import Draws, Item, sitting_out
from .errors import TrainingError
from .factors import Factors, canonical
from .layers import AdapterLayer, Addition, create, resume, resume_sigma, window_of
from .objective import Denoiser, Variants, gaps, level_weights
from .seeds import generator
from .settings import Settings
from .stiefel import Stiefel
from .team import Alone, Team

Teacher = Callable[[], AbstractContextManager[None]]


@dataclass(frozen=True)
class Step:
    """What is known after a step: its number (from 1), the total, and its losses, None where there is none.

    Attributes:
        number: from 1.
        total: steps of the whole run.
        loss: on the pictures, or against the teacher.
        preservation: distance to the frozen base on plain captions, at the pictures where it was taken.
        prior: on the regularisation pictures.
    """

    number: int
    total: int
    loss: float
    preservation: float | None = None
    prior: float | None = None


def create_layers(
    modules: Mapping[str, nn.Module],
    settings: Settings,
    start: Mapping[str, Factors] | None = None,
    weight_of: Callable[[nn.Module], Tensor] = lambda module: cast(Tensor, module.weight).detach(),
    device: torch.device | None = None,
) -> dict[str, nn.Module]:
    """An adapter layer for each chosen module, seeded by its path, so that one more target changes no other.

    Args:
        modules: layer path -> module.
        settings: method, rank, alpha, seed.
        start: layer path -> canonical factors to go on from; a linear layer without any begins afresh.
        weight_of: a module's weight, dense, for hosts that stream or quantise weights.
        device: where the layers go; None for where each weight is.

    Raises:
        RankError: a layer cannot hold the rank; names the layer.
        TrainingError: Σ alone was to learn, with no adapter whose U and V could be kept.
    """
    start = start or {}
    if settings.learn == "sigma" and not start:
        raise TrainingError(
            "Σ alone was to learn (learn: sigma), but there is no adapter whose U and V it belongs to. Connect one to "
            "start_from, or set learn to all."
        )
    layers: dict[str, nn.Module] = {}
    for path, module in modules.items():
        place = device or cast(Tensor, module.weight).device
        if path in start:
            layers[path] = _resumed(start[path], settings, module).to(place)
        else:
            draw = generator(settings.seed, "adapter", path)
            gain = settings.alpha / settings.rank
            form = (settings.core, settings.initialisation, path)
            layers[path] = create(settings.method, weight_of(module), settings.rank, gain, draw, *form).to(place)
    return layers


def learned(layers: Mapping[str, AdapterLayer]) -> dict[str, Factors]:
    """The present factors of every layer, canonical, on the CPU, sharing no memory with what goes on learning."""
    with torch.no_grad():
        return {path: canonical(Factors(*layer.factors()).to("cpu")) for path, layer in layers.items()}


def parameters_of(layers: Mapping[str, nn.Module]) -> dict[str, nn.Parameter]:
    """Name -> parameter of everything that learns."""
    return {
        f"{path}.{name}": parameter
        for path, layer in layers.items()
        for name, parameter in layer.named_parameters()
        if parameter.requires_grad
    }


class Training:
    """A run of optimizer steps over attached adapter layers; iterating makes the steps that are left.

    Everything random is a function of the seed and the number of the step, so that the state after a step is the
    factors, the optimizer and the average, and nothing else.

    Args:
        denoiser: the model, with the layers attached.
        layers: layer path -> adapter layer; see `create_layers`.
        switch: of `attach.attached`; turned off for the base's own prediction.
        examples: encoded pictures; those of one latent shape are batched together.
        settings: everything else.
        prior: regularisation pictures (DreamBooth), as many of them in a step as others.
        teacher: a context in which the denoiser shows how it should be; None where the pictures do.
        team: the processes that train together, each `settings.batch` pictures of a pass; None for this one alone.

    Raises:
        TrainingError: no example, no layer, or plain captions missing where the base is to be preserved.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        layers: Mapping[str, nn.Module],
        switch: Switch,
        examples: Sequence[Variants],
        settings: Settings,
        prior: Sequence[Variants] = (),
        teacher: Teacher | None = None,
        team: Team | None = None,
    ) -> None:
        _check(layers, examples, settings)
        self.team = team or Alone()
        settings = replace(settings, batch=settings.batch * self.team.count)
        self.denoiser, self.layers, self.switch, self.settings, self.teacher = (
            denoiser, layers, switch, settings, teacher
        )  # fmt: skip
        self.parameters = parameters_of(layers)
        self.optimizer, self.schedule = optimizers.create(layers, settings)
        self.manifold = Stiefel(layers.values())  # type: ignore[arg-type]
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=settings.precision == "float16")
        self.average = {name: p.detach().clone() for name, p in self.parameters.items()} if settings.average else {}
        self.data = Draws(examples, settings, team=self.team)
        self.prior = Draws(prior, settings, "prior", self.team) if prior else None
        self.number = 0  # steps made
        self.whole = True  # the state is that after a step, not amid its update

    @property
    def device(self) -> torch.device:
        """Where the layers are."""
        return next(iter(self.parameters.values())).device

    @property
    def rate(self) -> float:
        """The learning rate of the next step; what the optimizer makes of it, where it finds its own."""
        group = self.optimizer.param_groups[0]
        return float(group["lr"]) * float(group.get("d", 1.0))

    def __iter__(self) -> Iterator[Step]:
        while self.number < self.settings.steps:
            yield self.step()

    def step(self) -> Step:
        """One optimizer step.

        Raises:
            TrainingError: a loss or gradient that is not finite; the layers then hold the last good step.
        """
        number = self.number + 1
        self.optimizer.zero_grad(set_to_none=True)
        parts = [self._backward(number, chunk) for chunk in range(self.settings.accumulate)]
        losses = self._together([_sum(values) for values in zip(*parts, strict=True)])
        self._update(number)
        self.number, self.whole = number, True
        loss, preservation, prior = losses
        assert loss is not None
        return Step(number, self.settings.steps, loss, preservation, prior)

    def trial(self) -> float:
        """Seconds that one step will take, told by its passes through the network; nothing is learned."""
        begin = time.monotonic()
        for chunk in range(self.settings.accumulate):
            self._backward(self.number + 1, chunk)
        self.optimizer.zero_grad(set_to_none=True)
        return time.monotonic() - begin

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Within the block the layers hold what is to be kept: the moving average, where there is one."""
        free: Any = self.optimizer if hasattr(self.optimizer, "eval") else None  # schedule-free keeps its own average
        changed = self.parameters if free else self.average  # its way there and back rounds
        before = {name: self.parameters[name].detach().clone() for name in changed}
        if free:
            free.eval()
        self.put(self.average)
        try:
            yield
        finally:
            if free:
                free.train()
            self.put(before)

    def put(self, values: Mapping[str, Tensor]) -> None:
        """Set parameters by name."""
        with torch.no_grad():
            for name, value in values.items():
                self.parameters[name].copy_(value)

    def team_mean(self, value: float) -> float:
        """The mean over the processes, the same bits in all: so that all end, or go on, where a device rounds apart."""
        if self.team.count == 1:
            return value
        both = torch.tensor([value], dtype=torch.float64, device=self.device)
        self.team.add([both])
        return both.item() / self.team.count

    def _together(self, losses: Sequence[float | None]) -> list[float | None]:
        """The losses of all processes, and in place of each gradient that of all."""
        if self.team.count == 1:
            return list(losses)
        told = [[float(loss is not None), loss or 0.0] for loss in losses]
        sums = torch.tensor(told, dtype=torch.float64, device=self.device)
        self.team.add([*(p.grad for p in self.parameters.values() if p.grad is not None), sums])
        if not sums.isfinite().all():  # of whose pictures it was: nobody is left waiting for one that has gone
            raise self._broken(self.number + 1, "")
        return [total if there else None for there, total in sums.tolist()]

    def _backward(self, number: int, chunk: int) -> tuple[float, float | None, float | None]:
        """Gradients of one pass: loss on the pictures + λ · distance to the base + weight · loss on the prior."""
        settings = self.settings
        items = self.data.at(number, chunk)
        share = len(items) / settings.pictures
        with sitting_out(self.layers, settings, number, chunk):
            kept = [place for place, item in enumerate(items) if settings.preserve and item.preserved]
            style, distance = self._losses(items, kept)
            total, preservation, prior = style.mean() * share, None, None
            if len(distance):
                preservation = distance.sum() / settings.pictures * settings.preserve_every
                total = total + settings.preserve * preservation
            if self.prior:
                prior = self._losses(self.prior.at(number, chunk))[0].mean() * share
                total = total + settings.prior * prior
            self.scaler.scale(total).backward(inputs=list(self.parameters.values()))  # type: ignore[no-untyped-call]
            if self.team.count == 1 and not torch.isfinite(total):  # asked only now, because a GPU is waited for
                raise self._broken(number, self._where(items))
        return float(style.detach().mean()) * share, _float(preservation), _float(prior)

    def _losses(self, items: Sequence[Item], kept: Sequence[int] = ()) -> tuple[Tensor, Tensor]:
        """Error on each picture (or distance to the teacher), and distance to the base at the kept places: (B,), (K,).

        A kept picture goes through with its plain caption too, in the same pass and the same noise (method: preserve).
        """
        levels, noisy, latents = self._noised(items)
        places = list(kept)
        conditions = [item.example.condition for item in items]
        plain = [items[place].example.plain for place in kept]
        target, base = latents, latents[places]
        with torch.no_grad():
            if self.teacher:
                with self.teacher():
                    target = self.denoiser.denoised(noisy, levels, conditions)
            if kept:
                with self.switch.off():
                    base = self.denoiser.denoised(noisy[places], levels[places], plain)
        both = (torch.cat([noisy, noisy[places]]), torch.cat([levels, levels[places]])) if kept else (noisy, levels)
        estimate = self.denoiser.denoised(*both, [*conditions, *plain])
        style, distance = estimate[: len(items)], estimate[len(items) :]
        masks = [item.example.mask for item in items]
        huber = self.settings.huber_delta if self.settings.loss == "huber" else 0.0
        error = gaps(self.denoiser, style, target, levels, masks, huber)
        weights = level_weights(self.denoiser, levels, self.settings.min_snr).to(error)
        return error * weights, gaps(self.denoiser, distance, base, levels[places])

    def _noised(self, items: Sequence[Item]) -> tuple[Tensor, Tensor, Tensor]:
        latents = torch.stack([item.example.latent for item in items])
        noise = torch.stack([item.noise for item in items]).to(latents)
        levels = self.denoiser.levels(torch.tensor([item.quantile for item in items]))
        return levels, self.denoiser.noised(latents, noise, levels), latents

    def _update(self, number: int) -> None:
        """Clip, step on the manifold, move the rates and the average."""
        parameters: list[Tensor] = list(self.parameters.values())
        self.scaler.unscale_(self.optimizer)
        strict = not self.scaler.is_enabled()  # a scaler skips the step and scales less
        try:
            nn.utils.clip_grad_norm_(parameters, self.settings.clip or math.inf, error_if_nonfinite=strict)
        except RuntimeError as error:  # raised before all are scaled by what is no number
            if "non-finite" not in str(error):
                raise
            bad = (name for name, p in self.parameters.items() if p.grad is not None and not p.grad.isfinite().all())
            raise self._broken(number, next(bad, "").rpartition(".")[0]) from None
        self.whole = False
        self.manifold.prepare()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.manifold.retract()
        self.schedule.step()
        if self.average:
            decay = min(self.settings.average, (1 + number) / (10 + number))  # a short run is not held at its start
            with torch.no_grad():
                torch._foreach_lerp_(list(self.average.values()), parameters, 1 - decay)

    def _where(self, items: Sequence[Item]) -> str:
        """The first layer, in the order of the network, that what is no number came to or came from."""
        found: list[str] = []

        def watch(path: str) -> Callable[..., None]:
            def hook(_layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
                if not (inputs[0].isfinite().all() and output.isfinite().all()):
                    found.append(path)

            return hook

        handles = [layer.register_forward_hook(watch(path)) for path, layer in self.layers.items()]
        try:
            with torch.no_grad():
                self._losses(items)
        finally:
            for handle in handles:
                handle.remove()
        return found[0] if found else ""

    def _broken(self, number: int, layer: str) -> TrainingError:
        where = f", first at the layer {layer}" if layer else ""
        return TrainingError(
            f"The loss is no longer a number at step {number}{where} (learning rate {self.settings.learning_rate:g}). "
            "What was learned up to the step before is kept. Lower the learning rate, to a third of it, say."
        )


def train(
    denoiser: Denoiser,
    layers: Mapping[str, nn.Module],
    switch: Switch,
    examples: Sequence[Variants],
    settings: Settings,
) -> Iterator[Step]:
    """The steps of a `Training`, one each time the caller asks for the next."""
    yield from Training(denoiser, layers, switch, examples, settings)


def frozen(
    modules: Mapping[str, nn.Module], factors: Mapping[str, Factors], device: torch.device | None = None
) -> dict[str, nn.Module]:
    """Layers that show an adapter as it is: nothing of them learns."""
    layers = create_layers(modules, Settings(learn="sigma"), factors, device=device)
    return {path: layer.requires_grad_(False) for path, layer in layers.items()}


def _resumed(start: Factors, settings: Settings, module: nn.Module) -> nn.Module:
    if settings.learn == "sigma":
        layer: Addition = resume_sigma(start)
    else:
        gain = settings.alpha / settings.rank
        layer = resume(settings.method, start, gain, settings.initialisation == "orthogonal", settings.core)
    layer.window = window_of(module)
    return layer


def _check(layers: Mapping[str, nn.Module], examples: Sequence[Variants], settings: Settings) -> None:
    if not examples:
        raise TrainingError("There is no picture to train on. Connect a dataset that holds at least one.")
    if not layers:
        raise TrainingError("There is no layer to train. Change the targets.")
    every = [example for variants in examples for example in variants]
    if settings.preserve and any(example.plain is None for example in every):
        raise TrainingError(
            f"The base was to be preserved (preserve {settings.preserve:g}), but there are pictures whose caption "
            "without the trigger word was not encoded. Encode it, or set preserve to 0."
        )
    if settings.caption_dropout and any(example.blank is None for example in every):
        raise TrainingError(
            f"Captions were to be dropped (caption_dropout {settings.caption_dropout:g}), but the empty caption was "
            "not encoded. Encode it, or set caption_dropout to 0."
        )


def _float(value: Tensor | None) -> float | None:
    return None if value is None else float(value.detach())


def _sum(values: Sequence[float | None]) -> float | None:
    there = [value for value in values if value is not None]
    return sum(there) if there else None
