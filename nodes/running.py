"""A training from the graph's wires to an adapter: encode, lend, attach, run, report."""

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import comfy.model_management
import folder_paths
from comfy.model_patcher import ModelPatcher

from ..trilora import files, report
from ..trilora.attach import attached, standing_in
from ..trilora.dataset import Dataset
from ..trilora.errors import TrainingError
from ..trilora.factors import Factors
from ..trilora.files import Adapter
from ..trilora.metadata import base_named, describe
from ..trilora.objective import Variants
from ..trilora.run import Run, Watch, difference, folder_of, identity, moved
from ..trilora.settings import Settings
from ..trilora.targets import select
from ..trilora.training import Training, create_layers, frozen
from .denoiser import ComfyDenoiser, lent
from .encoding import Encoded, encode, examples, fingerprint
from .patching import file_of, portable_names
from .previews import Film, Preview
from .progress import RUNNING, Progress
from .starting import start_factors

UNFINISHED = "unfinished"  # folder under models/loras for what a cancelled or failed run had learned
ACTIVATIONS = 6  # memory of a training step over that of a sampling step, roughly
FEWEST = 10  # pictures from which some are held out without being asked
COMPARED = 8  # pictures at which forgetting is measured


@dataclass(frozen=True)
class Task:
    """Everything that a training is asked for."""

    model: ModelPatcher
    clip: object
    vae: object
    dataset: Dataset
    settings: Settings
    watch: Watch = Watch()
    preview: Preview = Preview()
    share: float = 0.1  # of the pictures held out, where there are enough and no others are given
    held_out: Dataset | None = None
    regularisation: Dataset | None = None
    start: Adapter | None = None
    imitate: bool = False  # what is learned is the output of the adapter that is started from, not the pictures
    plain: tuple[str, ...] = ()  # captions on which the base is preserved, in place of the pictures' own
    checkpointing: bool = False


@dataclass
class Outcome:
    """What a training has come to: `said` are sentences for people, before and after."""

    task: Task
    run: Run
    film: Film
    carried: Mapping[str, Factors] = field(default_factory=dict)
    said: list[str] = field(default_factory=list)

    def adapter(self) -> Adapter:
        """The adapter, under names that files use."""
        factors = self.run.result()
        names = portable_names(self.task.model, factors)
        layers = {names[path]: value for path, value in factors.items()} | dict(self.carried)
        base = base_named(type(self.task.model.model).__name__)
        losses = self.run.history.loss[: self.run.step]
        return Adapter(layers, describe(self.task.settings, self.task.dataset, base, file_of(self.task.model), losses))

    def keep(self) -> None:
        """State and adapter on disk, for a run that ends before its end."""
        if not self.run.training.number:
            return
        self.run.save()
        title = self.task.dataset.trigger or "trilora"
        name = f"{title}-seed-{self.task.settings.seed}-step-{self.run.step}".replace("/", "_")
        path = files.inside(Path(folder_paths.get_folder_paths("loras")[0]) / UNFINISHED, name)
        files.save(self.adapter(), path)
        logging.warning("Training ended at step %d; what was learned is in %s", self.run.training.number, path)


def run_training(task: Task, progress: Progress) -> Outcome:
    """Train. The MODEL is as it was afterwards, whatever happens."""
    train, held = _split(task)
    sets = {"train": train, "held out": held, "regularisation": task.regularisation}
    wanted = task.settings.preserve > 0 and not task.plain
    encoded = {
        name: encode(data, task.clip, task.vae, wanted, progress.say) for name, data in sets.items() if data is not None
    }
    plain = [task.clip.encode_from_tokens_scheduled(task.clip.tokenize(text)) for text in task.plain]
    shape = [task.settings.batch, *encoded["train"].largest]
    memory = ACTIVATIONS * task.model.memory_required(shape)
    with lent(task.model, memory) as patcher, _advice(task.settings, progress):
        denoiser = ComfyDenoiser(patcher)
        data = {name: _preserving(denoiser, examples(denoiser, e), plain) for name, e in encoded.items()}
        progress.say("starting the adapters")
        network = patcher.model.diffusion_model
        start, carried = start_factors(task.model, task.start) if task.start else ({}, {})
        modules = {path: network.get_submodule(path) for path in start} or select(network, task.settings.targets)
        layers = create_layers(modules, task.settings, start)
        teaching = frozen(modules, start) if task.imitate else {}
        with attached(network, layers) as switch, standing_in(network, teaching, switch) as teacher:
            prior, taught_by = data.get("regularisation", ()), teacher if task.imitate else None
            training = Training(denoiser, layers, switch, data["train"], task.settings, prior, taught_by)
            run = _run(task, training, encoded, data)
            size = train.size_of(train.pictures[0])
            film = Film(task.preview, task.clip, task.vae, train.prompt_of(train.pictures[0]), size, run.folder)
            outcome = Outcome(task, run, film, carried)
            with _listed(progress.node_id, run):
                _go(outcome, patcher, progress, [e for (e, *_) in data.get("held out") or data["train"]])
    return outcome


def _go(outcome: Outcome, patcher: ModelPatcher, progress: Progress, looked_at: Sequence) -> None:
    """Say what is coming, take every step, say what came of it; keep everything if it is broken off."""
    run, settings = outcome.run, outcome.task.settings
    try:
        outcome.film.begin(run.training.number)
        outcome.said += _before(outcome)
        progress.say("\n".join(outcome.said), at_once=True)
        if not run.training.number:
            _preview(outcome, patcher, progress, 0)
        for step in run:
            progress.step(step)
            _preview(outcome, patcher, progress, step.number)
        plain = [example for example in looked_at[:COMPARED] if example.plain is not None]
        outcome.said += report.outcome(run, _moved(run.training, plain) if plain and settings.preserve else None)
    except BaseException:
        outcome.keep()
        raise


def _moved(training: Training, examples: Sequence) -> tuple[float, float]:
    with training.averaged():
        return moved(training.denoiser, training.switch, examples, training.settings.seed)


def _before(outcome: Outcome) -> list[str]:
    """What can be known before the first step."""
    task, run = outcome.task, outcome.run
    lines = [report.budget(run.training.layers, task.settings)]
    lines.append(report.length(task.settings, len(run.training.data.pictures)))
    if run.began:
        lines.append(f"going on from step {run.began} of the same run")
    elif changed := difference(run.folder.parent, run.folder, run.card):
        lines.append(changed)
    if run.held_out:
        lines.append(f"{len(run.held_out)} pictures held out, scored every {run.watch.score_every} steps")
    if not task.settings.preserve and not task.dataset.trigger:
        lines.append("the base is not preserved: without a trigger word every prompt is to learn the style")
    left = task.settings.steps - run.training.number
    if left:
        run.training.trial()  # the first pass is slower than all others
        lines.append(f"about {report.clock(run.training.trial() * left)} to go, after a trial step")
    return lines


def _preview(outcome: Outcome, patcher: ModelPatcher, progress: Progress, number: int) -> None:
    total = outcome.task.settings.steps
    if outcome.film.due(number, total):
        with outcome.run.training.averaged():
            taken = outcome.film.take(patcher, number, lambda step: progress.say(f"preview at step {number}: {step}"))
        progress.show(taken, number, total)


def _run(task: Task, training: Training, encoded: Mapping[str, Encoded], data: Mapping[str, list[Variants]]) -> Run:
    settings = task.settings.course()
    identities = {name: each.identity for name, each in encoded.items()}
    about = {
        "data": [identities, task.plain],
        "model": fingerprint(task.model),
        "start": [_named(task.start), task.imitate],
    }
    root = Path(folder_paths.get_output_directory()) / "TriLoRA" / "runs"
    folder = folder_of(root, task.dataset.trigger, identity(settings, about))
    held_out = [variants[0] for variants in data.get("held out", [])]
    card = json.loads(json.dumps({**about, "settings": asdict(task.settings)}))
    return Run(training, folder, held_out, task.watch, card)


def _split(task: Task) -> tuple[Dataset, Dataset | None]:
    """Pictures to learn from and pictures to hold out."""
    if task.held_out is not None:
        return task.dataset, replace(task.held_out, trigger=task.dataset.trigger)
    if not task.share or len(task.dataset.pictures) < FEWEST:
        return task.dataset, None
    return task.dataset.split(task.share, task.settings.seed)


def _preserving(denoiser: ComfyDenoiser, pictures: list[Variants], plain: Sequence) -> list[Variants]:
    """The pictures with the user's own captions as those on which the base is preserved, one after another."""
    if not plain:
        return pictures
    return [
        tuple(replace(e, plain=denoiser.encode(plain[i % len(plain)], e.latent)) for e in variants)
        for i, variants in enumerate(pictures)
    ]


def _named(start: Adapter | None) -> str:
    """What tells one adapter to start from from another."""
    if start is None:
        return ""
    sums = {name: [float(tensor.double().abs().sum()) for tensor in factors] for name, factors in start.layers.items()}
    return identity(sums)


@contextmanager
def _listed(node_id: str, run: Run) -> Iterator[None]:
    RUNNING[node_id] = run
    try:
        yield
    finally:
        del RUNNING[node_id]


@contextmanager
def _advice(settings: Settings, progress: Progress) -> Iterator[None]:
    """Says what to lower, and by how much, where the memory does not suffice."""
    try:
        yield
    except comfy.model_management.OOM_EXCEPTION as error:
        raise TrainingError(f"{out_of_memory(settings)} What was learned is on disk. ({error})") from error


def out_of_memory(settings: Settings, checkpointing: bool = False) -> str:
    """The next thing to lower."""
    if settings.batch > 1:
        half = settings.batch // 2
        return (
            f"The memory does not suffice for a batch of {settings.batch}. Lower batch to {half} and raise accumulate "
            f"to {settings.accumulate * settings.batch // half}: the steps stay the same."
        )
    if not checkpointing:
        return "The memory does not suffice. Switch on checkpointing in TriLoRA Training Options."
    return "The memory does not suffice. Lower the dataset's resolution to three quarters of what it is."
