"""The fair comparison: a training and its places on the frontier; the same adapter afterwards; very long training."""

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from benchmarks.paper.bench import CREATURES, Bench, gained, load_factors, save_factors
from benchmarks.paper.jobs import BARE, ELSEWHERE, OTHERS, PLAIN, PRESERVED, SHRUNK, Job, Store
from benchmarks.paper.methods import METHODS, begin, settings_of
from benchmarks.paper.paint import measured, paint
from trilora.attach import attached, standing_in
from trilora.dataset import Dataset
from trilora.errors import TrainingError
from trilora.factors import Factors
from trilora.objective import Variants
from trilora.pictures import from_tensors
from trilora.training import Training, create_layers, frozen, learned

LAMBDA = 0.3
HOW: Mapping[str, dict[str, float]] = {
    PLAIN: {}, BARE: {}, SHRUNK: {"shrink": 0.15},
    **dict.fromkeys((PRESERVED, OTHERS, ELSEWHERE), {"preserve": LAMBDA}),
}  # fmt: skip
TAILS, TOPS = (0.85, 0.7, 0.5), (3, 2, 1)


def fit(bench: Bench, job: Job, store: Store) -> dict[str, Any]:
    """One training at one rate: points along its steps and strengths, and the loss to tune the rate by."""
    scale, begun = bench.scale, time.process_time()
    more = {"steps": scale.steps, "learning_rate": job.rate, "seed": job.seed, **HOW[job.how]}
    settings = settings_of(job.method, bench.settings(**more))
    examples = bench.train
    if job.how in (BARE, ELSEWHERE):
        examples = without_trigger(examples)
    if job.how in (OTHERS, ELSEWHERE):
        examples = beside_others(bench, examples)
    layers = begin(job.method, bench.modules, settings)
    probe = bench.probes["validation"]
    points: list[dict[str, Any]] = []
    with attached(bench.network, layers) as switch:
        training = bench.training(layers, switch, examples, settings)

        def look(step: int) -> None:
            if step in scale.marks:
                points.append(bench.point(step=step, strength=1.0))

        if failed := _steps(training, look):
            return {"failed": failed, "points": points, "validation": float("inf")}
        for strength in scale.strengths:
            with gained(layers, strength):
                points.append(bench.point(step=scale.steps, strength=strength))
        validation = probe.loss()
        save_factors(store.factors(job), learned(layers))
    size = sum(parameter.numel() for parameter in training.parameters.values())
    seconds = time.process_time() - begun
    return {"points": points, "validation": validation, "parameters": size, "seconds": round(seconds, 1)}


def without_trigger(pictures: list[Variants]) -> list[Variants]:
    """Pictures with their captions alone."""
    return [tuple(replace(e, condition=e.plain) for e in variants) for variants in pictures]


def beside_others(bench: Bench, pictures: list[Variants]) -> list[Variants]:
    """Pictures with captions of other things, one after another, as those on which the base is kept."""
    lent = [variants[0].condition for variants in bench.encoded(bench.world[0])]
    return [tuple(replace(e, plain=lent[i % len(lent)]) for e in v) for i, v in enumerate(pictures)]


def after(bench: Bench, job: Job, store: Store) -> dict[str, Any]:
    """What can be done to a finished adapter: dials on its singular values, Σ alone tuned, and repair.

    One that was trained without a trigger word is repaired alone.
    """
    begun, bare = time.process_time(), job.how == BARE
    factors = load_factors(store.factors(replace(job, kind="fit")))
    points = []
    for name, value, gains in [("as trained", 1.0, torch.ones(bench.scale.rank)), *_dials(bench.scale.rank)]:
        if name == "as trained" or not bare:
            with bench.wearing(factors) as layers, gained(layers, gains):
                points.append(bench.point(dial=name, value=value))
    if not bare:
        points += _sigma_alone(bench, job, factors)
    points += _repair(bench, job, factors)
    return {"points": points, "seconds": round(time.process_time() - begun, 1)}


def _dials(rank: int) -> list[tuple[str, float, torch.Tensor]]:
    """Name, value, gains: the first value kept and the rest weaker; the first k alone."""
    found = []
    for tail in TAILS:
        found.append(("tail", tail, torch.tensor([1.0, *[tail] * (rank - 1)])))
    for top in TOPS:
        if top < rank:
            found.append(("top k", float(top), (torch.arange(rank) < top).float()))
    return found


def _sigma_alone(bench: Bench, job: Job, factors: Mapping[str, Factors]) -> list[dict[str, Any]]:
    """Σ tuned on the training pictures with preservation; U and V stay."""
    more = {"steps": bench.scale.after, "learning_rate": job.rate, "seed": job.seed, "learn": "sigma"}
    settings = bench.settings(preserve=1.0, **more)
    layers = create_layers(bench.modules, settings, factors)
    return _tuned_on(bench, layers, settings, bench.train, "Σ alone")


def _repair(bench: Bench, job: Job, factors: Mapping[str, Factors]) -> list[dict[str, Any]]:
    """As the node TriLoRA Repair: no pictures; the adapter's own output is the target, the base is kept beside it."""
    settings = bench.settings(
        steps=bench.scale.after, learning_rate=job.rate, seed=job.seed, preserve=LAMBDA, preserve_every=1,
        schedule="cosine",
    )  # fmt: skip
    settings = replace(settings, method=METHODS[job.method].method, batch=max(1, settings.batch // 2))
    trigger = "" if job.how == BARE else f"{CREATURES}, "
    examples = bench.encoded(_painted(bench, job.seed, factors, trigger))
    if job.how == BARE:  # what the adapter does to other things is no target, where no word asks for it
        examples = beside_others(bench, without_trigger(examples[: bench.scale.captions]))
    teaching, layers = frozen(bench.modules, factors), create_layers(bench.modules, settings, factors)
    return _tuned_on(bench, layers, settings, examples, "repair", teaching)


def _painted(bench: Bench, seed: int, factors: Mapping[str, Factors], trigger: str) -> Dataset:
    """Pictures of the training captions by the adapter, and of plain captions by the base, without a data set."""
    count = bench.scale.captions
    ours = [picture.caption for picture in bench.parts[0].pictures[:count]]
    others = [picture.caption for picture in bench.world[0].pictures[:count]]
    with bench.wearing(factors):
        painted, _ = paint(bench, [trigger + words for words in ours], seed, steps=12, guidance=3.5)
    by_base, _ = paint(bench, others, seed, steps=12, guidance=3.5)
    pictures = from_tensors([*painted, *by_base], [*ours, *others])
    return Dataset(pictures, CREATURES, bench.scale.side, 0)


def _tuned_on(
    bench: Bench, layers: Mapping[str, nn.Module], settings: Any, examples: list[Variants], dial: str,
    teaching: Mapping[str, nn.Module] | None = None,
) -> list[dict[str, Any]]:  # fmt: skip
    points: list[dict[str, Any]] = []
    half = settings.steps // 2

    def look(step: int) -> None:
        if step in (half, settings.steps):
            points.append(bench.point(dial=dial, value=float(step)))

    with attached(bench.network, layers) as switch, standing_in(bench.network, teaching or {}, switch) as teacher:
        training = bench.training(layers, switch, examples, settings, teacher=teacher if teaching else None)
        if failed := _steps(training, look):
            points.append({"dial": dial, "failed": failed})
    return points


def long(bench: Bench, job: Job, store: Store) -> dict[str, Any]:
    """Very long training on very few pictures: losses along the way, and pictures at three places."""
    scale, begun = bench.scale, time.process_time()
    unseen = [picture.caption for part in bench.parts[1:] for picture in part.pictures]
    sheet = store.folder / "pictures" / job.name
    if job.method == "base":
        return measured(bench, "creatures", unseen, CREATURES, sheet)
    examples = bench.train[: scale.long_pictures]
    steps = scale.long_epochs * len(examples) // scale.batch
    settings = settings_of(job.method, bench.settings(steps=steps, learning_rate=job.rate, seed=job.seed))
    layers = begin(job.method, bench.modules, settings)
    marks = sorted({max(1, round(steps * share)) for share in (0.02, 0.05, 0.1, 0.2, 0.35, 0.5, 0.75, 1.0)})
    shown = {marks[len(marks) // 3], marks[-1]}
    points: list[dict[str, Any]] = []
    with attached(bench.network, layers) as switch:
        training = bench.training(layers, switch, examples, settings)
        losses: list[float] = []

        def look(step: int) -> None:
            if step in marks:
                epoch = step * scale.batch / len(examples)
                point = bench.point(step=step, epoch=round(epoch, 1))
                points.append(point | {"train": sum(losses[-50:]) / len(losses[-50:])})
            if step in shown:
                place = sheet.with_name(f"{job.name}-{step}")
                points[-1] |= measured(bench, "creatures", unseen, CREATURES, place)

        failed = _steps(training, look, losses)
    seconds = round(time.process_time() - begun, 1)
    return {"points": points, "pictures": len(examples), "seconds": seconds} | ({"failed": failed} if failed else {})


def _steps(training: Training, look: Callable[[int], None], losses: list[float] | None = None) -> str:
    """All steps; the reason, where the loss is no longer a number."""
    try:
        for step in training:
            if losses is not None:
                losses.append(step.loss)
            look(step.number)
    except TrainingError as error:
        return str(error)
    return ""
