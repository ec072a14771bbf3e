"""A training from the graph's wires to an adapter: encode, lend, attach, run, report."""

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path

import comfy.model_management
import folder_paths
from comfy.model_patcher import ModelPatcher
from torch import nn

from ..trilora import files, session
from ..trilora.attach import attached, standing_in
from ..trilora.dataset import Dataset
from ..trilora.errors import FileError, TrainingError
from ..trilora.factors import Factors
from ..trilora.files import Adapter
from ..trilora.film import Film, Preview
from ..trilora.metadata import base_named, describe
from ..trilora.objective import Variants
from ..trilora.run import Run, Watch, folder_of, identity
from ..trilora.settings import Settings
from ..trilora.targets import select
from ..trilora.training import Training, create_layers, frozen
from . import sampling
from .denoiser import ComfyDenoiser
from .encoding import Encoded, encode, examples, kept_on_disk
from .fingerprint import of_model
from .lending import lent, weight_of
from .memory import TRAINED, estimate
from .patching import file_of, portable_names
from .previews import Painter
from .progress import Progress
from .starting import start_factors

UNFINISHED = "unfinished"  # folder under models/loras for what a cancelled or failed run had learned


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
    modules: Mapping[str, nn.Module]
    memory: int  # bytes that a step takes beside the model, by estimate
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

    def keep(self, progress: Progress) -> None:
        """State and adapter on disk before the run is at its end."""
        if not self.run.training.number:
            return
        self.run.save()
        name = f"{self.run.folder.name}-step-{self.run.step}"  # the folder's: a name on any disk, and of this run alone
        path = files.inside(Path(folder_paths.get_folder_paths("loras")[0]) / UNFINISHED, name)
        files.save(self.adapter(), path)
        logging.warning("What was learned up to step %d is in %s", self.run.training.number, path)
        at = self.run.training.number
        progress.live.set(saved={"at": at, "step": self.run.step, "file": f"{UNFINISHED}/{path.name}"})


def run_training(task: Task, progress: Progress) -> Outcome:
    """Train. The MODEL is as it was afterwards, whatever happens."""
    train, held = session.split(task.dataset, task.held_out, task.share, task.settings.seed)
    task = replace(task, dataset=train, held_out=held, settings=session.at_own_rank(task.settings, task.start))
    encoded = _encoded(task, progress)
    plain = [sampling.encode(task.clip, text) for text in task.plain]
    painter = _painter(task, encoded["train"])
    memory = _memory(task, encoded["train"].largest)
    with lent(task.model, memory, task.checkpointing) as patcher, _advice(task):
        denoiser = ComfyDenoiser(patcher, task.settings.precision)
        data = {name: session.preserving(examples(denoiser, e), plain, denoiser.encode) for name, e in encoded.items()}
        progress.say("starting the adapters")
        network, device = patcher.model.diffusion_model, patcher.load_device
        start, carried = start_factors(task.model, task.start) if task.start else ({}, {})
        modules = {path: network.get_submodule(path) for path in start}
        modules = modules or select(network, task.settings.targets, task.settings.blocks)
        layers = create_layers(modules, task.settings, start, partial(weight_of, device=device), device)
        teaching = frozen(modules, start, device) if task.imitate else {}
        with attached(network, layers) as switch, standing_in(network, teaching, switch) as teacher:
            prior, taught_by = data.get("regularisation", ()), teacher if task.imitate else None
            training = Training(denoiser, layers, switch, data["train"], task.settings, prior, taught_by)
            run = _run(task, training, encoded, data)
            outcome = Outcome(task, run, Film(task.preview, run.folder, painter), modules, memory, carried)
            with progress.learning(run):
                _go(outcome, progress, [e for (e, *_) in data.get("held out") or data["train"]])
    return outcome


def _encoded(task: Task, progress: Progress) -> dict[str, Encoded]:
    """Every data set that the task has, encoded."""
    share = task.settings.caption_dropout  # of the run, whatever a data set of its own would have
    prior = task.regularisation and replace(task.regularisation, caption_dropout=share)
    sets = {"train": task.dataset, "held out": task.held_out, "regularisation": prior}
    plain, cache = task.settings.preserve > 0 and not task.plain, kept_on_disk()
    return {
        name: encode(data, task.clip, task.vae, plain, progress.count, cache)
        for name, data in sets.items()
        if data is not None
    }


def _memory(task: Task, latent: Sequence[int]) -> int:
    """Bytes that a step takes beside the model and what learns, by estimate."""
    passing = task.model.memory_required([task.settings.batch, *latent])
    return passing + estimate(task.model, latent, task.settings.batch, task.checkpointing)


def _painter(task: Task, encoded: Encoded) -> Painter:
    """Of previews at the size of the first picture; made before the MODEL is lent, which CLIP may push off the GPU."""
    ratio = task.model.get_model_object("latent_format").spacial_downscale_ratio
    height, width = (side * ratio for side in encoded.latents[0][0].shape[-2:])
    prompt = task.dataset.prompt_of(task.dataset.pictures[0])
    return Painter(task.preview, task.clip, task.vae, prompt, (width, height), task.model)


def _go(outcome: Outcome, progress: Progress, looked_at: Sequence) -> None:
    """Say what is coming, take every step, say what came of it; keep everything if it is broken off."""
    run = outcome.run
    try:
        outcome.film.begin(run.training.number)
        progress.live.keep_pictures(run.folder, outcome.film.steps())
        learning = sum(p.numel() for p in run.training.parameters.values())
        memory = f"about {(outcome.memory + TRAINED * learning) / 1e9:.1f} GB of memory beside the model"
        outcome.said += session.before(run, outcome.task.dataset, [memory])
        progress.live.set(said=list(outcome.said))
        progress.say("\n".join(outcome.said), at_once=True)
        if not run.training.number:
            _preview(outcome, progress, 0)
        for step in run:
            progress.step(step)
            if progress.live.save_asked:
                _save(outcome, progress)
            _preview(outcome, progress, step.number)
        outcome.said += session.after(run, looked_at, outcome.modules)
        progress.live.set(said=list(outcome.said))
    except BaseException:
        _save(outcome, progress)
        raise


def _preview(outcome: Outcome, progress: Progress, number: int) -> None:
    total = outcome.task.settings.steps
    if outcome.film.due(number, outcome.run.last):
        with outcome.run.training.averaged():
            taken = outcome.film.take(number, lambda step: progress.say(f"preview at step {number}: {step}"))
        progress.show(taken, outcome.film, number, total)


def _save(outcome: Outcome, progress: Progress) -> None:
    """Now, and whatever comes of it: a disk that refuses costs the file, not the run or the reason why it ends."""
    progress.live.save_asked = False
    try:
        outcome.keep(progress)
    except FileError as error:
        logging.warning("What was learned was not saved: %s", error)
        progress.live.set(saved={"at": outcome.run.training.number, "problem": str(error)})


def _run(task: Task, training: Training, encoded: Mapping[str, Encoded], data: Mapping[str, list[Variants]]) -> Run:
    settings = task.settings.course()
    identities = {name: each.identity for name, each in encoded.items()}
    start = [session.named(task.start), task.imitate]
    about = {"data": [identities, task.plain], "model": of_model(task.model), "start": start}
    root = Path(folder_paths.get_output_directory()) / "TriLoRA" / "runs"
    folder = folder_of(root, task.dataset.trigger, identity(settings, about))
    held_out = [variants[0] for variants in data.get("held out", [])]
    card = json.loads(json.dumps({**about, "settings": asdict(task.settings)}))
    return Run(training, folder, held_out, task.watch, card)


@contextmanager
def _advice(task: Task) -> Iterator[None]:
    """Says what to lower, and by how much, where the memory does not suffice."""
    try:
        yield
    except comfy.model_management.OOM_EXCEPTION as error:
        raise TrainingError(f"{out_of_memory(task)} What was learned is on disk. ({error})") from error


def out_of_memory(task: Task) -> str:
    """The next thing to lower, and by how much."""
    settings = task.settings
    if settings.batch > 1:
        half = settings.batch // 2
        return (
            f"The memory does not suffice for a batch of {settings.batch}. Lower batch to {half} and raise accumulate "
            f"to {settings.accumulate * settings.batch // half}: the steps stay the same."
        )
    if not task.checkpointing:
        return "The memory does not suffice. Switch on checkpointing in TriLoRA Training Options."
    if task.dataset.encoded:
        return "The memory does not suffice. Connect latents of smaller pictures."
    smaller = task.dataset.resolution * 3 // 4 // 64 * 64
    return f"The memory does not suffice. Lower the dataset's resolution from {task.dataset.resolution} to {smaller}."
