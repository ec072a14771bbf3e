"""What a run needs around its steps, in any host: what is held out, what is said before, what is said after."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Size, Tensor, nn

from . import report
from .cache import digest
from .dataset import Dataset
from .files import Adapter
from .objective import Example, Variants
from .overview import overview
from .run import Run, difference, identity, moved
from .settings import Settings
from .targets import table

FEWEST = 10  # pictures from which some are held out without being asked
LONG = 20  # steps from which a time is estimated
COMPARED = 8  # pictures at which forgetting is measured


def split(dataset: Dataset, held_out: Dataset | None, share: float, seed: int) -> tuple[Dataset, Dataset | None]:
    """Pictures to learn from and pictures to hold out: those given, else a share where there are enough."""
    if held_out is not None:
        return dataset, replace(held_out, trigger=dataset.trigger)
    if len(dataset.pictures) < FEWEST:
        return dataset, None
    return dataset.split(share, seed)


def preserving(pictures: list[Variants], plain: Sequence[Any], told: Callable[[Any, Tensor], Any]) -> list[Variants]:
    """The pictures with the user's own captions as those that preserve the base, any of them beside any picture.

    Args:
        pictures: encoded.
        plain: what was read of each caption; none leaves the pictures as they are.
        told: the condition of one of them at a latent.
    """
    if not plain:
        return pictures
    known: dict[Size, list[Any]] = {}  # a condition knows of a latent no more than its shape
    made = []
    for i, variants in enumerate(pictures):
        latent = variants[0].latent
        if latent.shape not in known:
            known[latent.shape] = [told(text, latent) for text in plain]
        turned = known[latent.shape][i % len(plain) :] + known[latent.shape][: i % len(plain)]
        made.append(tuple(replace(e, plain=condition) for condition in turned for e in variants))
    return made


def at_own_rank(asked: Settings, start: Adapter | None) -> Settings:
    """The settings with the rank of the adapter that is started from, and the gain that was asked for."""
    if start is None or not start.rank:
        return asked
    return replace(asked, rank=start.rank, alpha=asked.alpha * start.rank / asked.rank)


def named(start: Adapter | None) -> str:
    """What tells one adapter to start from from another."""
    if start is None:
        return ""
    return identity({name: digest(list(factors)) for name, factors in start.layers.items()})


def before(run: Run, dataset: Dataset, memory: Sequence[str] = ()) -> list[str]:
    """What can be known before the first step, a sentence each; `memory` is what the host knows of that."""
    training, settings = run.training, run.training.settings
    lines = [report.budget(training.layers, settings), report.length(settings, len(training.data.pictures)), *memory]
    if run.began:
        lines.append(f"going on from step {run.began} of the same run")
    elif changed := difference(run.folder.parent, run.folder, run.card):
        lines.append(changed)
    if run.held_out:
        lines.append(f"{len(run.held_out)} pictures held out, scored every {run.watch.score_every} steps")
    if not settings.preserve and not dataset.trigger:
        lines.append("the base is not preserved: without a trigger word every prompt is to learn the style")
    lines += [line for line in overview(dataset) if line.startswith(("!", "Buckets"))]
    left = 0 if run.stopping else settings.steps - training.number
    if left >= LONG:
        if training.device.type != "cpu":
            training.trial()  # a GPU's first pass loads and chooses its kernels, and is slower than all others
        lines.append(f"about {report.clock(training.trial() * left)} to go, after a trial step")
    return lines


def after(run: Run, looked_at: Sequence[Example], modules: Mapping[str, nn.Module]) -> list[str]:
    """What came of the run, a sentence each, and a table of the layers that learned.

    Args:
        run: at its end.
        looked_at: pictures at which forgetting is measured, best ones that were not learned.
        modules: layer path -> module.
    """
    training = run.training
    plain = [example for example in looked_at[:COMPARED] if example.plain is not None]
    distances = None
    if plain and training.settings.preserve:
        with run.chosen():
            distances = moved(training.denoiser, training.switch, plain, training.settings.seed)
    return [*report.outcome(run, distances), table(modules, training.settings.rank)]
