"""A run in words and pictures: what is about to happen, and what came of it."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from PIL import Image
from torch import nn

from .checkpoint import History
from .factors import Factors
from .plot import loss_chart, spectrum_chart, stacked
from .run import Run
from .settings import Settings

OVERFITTING = 1.02  # a held-out loss this much above its best is no longer noise


class Losses(NamedTuple):
    """Of an adapter, on pictures and captions that it did not learn on.

    Attributes:
        style: loss with the trigger word.
        moved: mean squared distance from the base with the trigger word.
        forgotten: the same without it.
    """

    style: float
    moved: float
    forgotten: float


def clock(seconds: float) -> str:
    """h:mm:ss, or m:ss below an hour."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def budget(layers: Mapping[str, nn.Module], settings: Settings) -> str:
    """Number of parameters that learn, and the size of the file, in words."""
    learning = sum(p.numel() for layer in layers.values() for p in layer.parameters() if p.requires_grad)
    whole = sum(p.numel() for layer in layers.values() for p in layer.parameters())
    what = "Σ alone" if settings.learn == "sigma" else f"rank {settings.rank}"
    return f"{settings.method}, {what}, on {len(layers)} layers: {learning:,} parameters, {whole * 4 / 1e6:.1f} MB"


def length(settings: Settings, pictures: int) -> str:
    """Steps and epochs, in words."""
    epoch = min(settings.samples or pictures, pictures)
    epochs = settings.steps * settings.pictures / epoch
    return f"{settings.steps} steps of {_count(settings.pictures, 'picture')}: {epochs:.1f} epochs of {epoch}"


def outcome(run: Run, moved: tuple[float, float] | None) -> list[str]:
    """What came of a run, a sentence each."""
    history, total = run.history, run.training.settings.steps
    lines = [f"{run.training.number} of {total} steps, {clock(history.seconds)}" + _why(run)]
    lines.append(
        f"loss {_mean(history.loss[:50]):.4f} over the first steps, {_mean(history.loss[-50:]):.4f} at the end"
    )
    if history.held_out:
        lines.append(overfitting(history))
        if run.step != run.training.number:
            lines.append(f"the adapter is that of step {run.step}, the best on the held-out pictures")
    if moved:
        lines.append(forgetting(*moved))
    return lines


def overfitting(history: History) -> str:
    """When overfitting began, in words, from the held-out losses."""
    scores = {step: value for step, value in history.held_out.items() if step and not math.isnan(value)}
    if not scores:
        return "held-out pictures were not scored yet"
    best = min(scores, key=lambda step: scores[step])
    last = max(scores)
    told = f"held-out loss {history.held_out.get(0, math.nan):.4f} before, {scores[best]:.4f} at its best (step {best})"
    if best == last:
        return f"{told}: no overfitting was seen, and more steps may still help"
    if scores[last] <= OVERFITTING * scores[best]:
        return f"{told}, {scores[last]:.4f} at the end: no overfitting to speak of, but no gain since either"
    return f"{told}, {scores[last]:.4f} at the end: overfitting began after step {best}"


def forgetting(with_trigger: float, without: float) -> str:
    """How much of the base is forgotten, in words: how far it moves without the trigger, against with it."""
    share = math.sqrt(without / with_trigger) if with_trigger > 0 else 0.0
    words = (
        "the base is as good as untouched" if share < 0.15
        else "little of the base is forgotten" if share < 0.4
        else "part of the base is forgotten" if share < 0.75
        else "the base is forgotten as much as the style is learned"
    )  # fmt: skip
    return f"prompts without the trigger word moved {share:.0%} as far as those with it: {words}"


def repaired(before: Losses, after: Losses, captions: int, held_out: bool) -> list[str]:
    """What a repair changed, a sentence each."""
    where = f"{_count(captions, 'caption')} that took " + ("no part" if held_out else "part: too few to hold any out")
    removed = 1 - after.forgotten / before.forgotten if before.forgotten else 0.0
    return [
        f"before and after, on {where}:",
        f"loss with the trigger word {before.style:.4f} -> {after.style:.4f} ({after.style / before.style - 1:+.1%})",
        f"distance to the base without it {before.forgotten:.5f} -> {after.forgotten:.5f}: {removed:.0%} of the "
        "forgetting is gone",
    ]


def picture(run: Run, layers: Mapping[str, Factors]) -> Image.Image:
    """Loss curves and spectrum below each other."""
    history = run.history
    charts = [loss_chart(history.loss, history.preservation, history.held_out, run.best.step)]
    return stacked([*charts, spectrum_chart(layers)])


def _why(run: Run) -> str:
    return f"; {run.stopping}" if run.stopping else ""


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan


def _count(number: int, word: str) -> str:
    return f"{number} {word}" + ("" if number == 1 else "s")
