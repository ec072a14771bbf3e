"""A training from a plan to an adapter: load, encode, attach, run, report; as nodes/running.py does it in a graph."""

import json
import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .. import files, session
from ..attach import attached
from ..cache import Cache
from ..checkpointing import checkpointed
from ..dataset import Dataset
from ..encoding import Encoded
from ..errors import FileError, TrainingError, TriLoRAError
from ..factors import Factors
from ..files import Adapter
from ..film import Film
from ..metadata import BASES, Base, describe
from ..objective import Example, Variants
from ..run import Run, folder_of, identity
from ..settings import Settings
from ..targets import select
from ..training import Training, create_layers
from .denoiser import DiffusersDenoiser
from .encoding import encode, named
from .options import to_toml
from .painting import paint
from .paths import kohya, stability
from .pipelines import load_pipeline
from .plan import Plan
from .progress import Progress
from .team import gathered
from .wearing import depth_of, placed

SETS = ("train", "held out", "regularisation")


@dataclass
class Outcome:
    """What a training has come to: `said` are sentences for people, before and after."""

    plan: Plan
    run: Run
    film: Film
    base: Base
    modules: Mapping[str, nn.Module]
    dataset: Dataset
    carried: Mapping[str, Factors] = field(default_factory=dict)
    said: list[str] = field(default_factory=list)

    def adapter(self) -> Adapter:
        """The adapter, under names that files use, with the whole plan in its metadata."""
        factors = self.run.result()
        layers = {kohya(path): factors[path] for path in factors} | dict(self.carried)
        training = self.run.training
        losses = self.run.history.loss[: self.run.step]
        about = describe(training.settings, self.dataset, self.base, Path(self.plan.base).name, losses)
        about |= {"trilora.toml": to_toml(self.plan), "trilora.processes": str(training.team.count)}
        return Adapter(layers, about)

    def keep(self) -> str:
        """State and adapter on disk, for a run that ends before its end; says where, or nothing."""
        if not self.run.training.number or self.run.training.team.index:
            return ""
        self.run.save()
        path = self.run.folder / f"unfinished-step-{self.run.step}.safetensors"
        stopped = f"stopped at step {self.run.training.number}"
        try:
            files.save(self.adapter(), path)
        except FileError as error:  # a disk that refuses does not hide why the run ended
            return f"{stopped}; what was learned was not saved: {error}"
        return f"{stopped}; what was learned is in {path}, and the same command goes on"


def run_training(plan: Plan) -> Outcome:
    """Train, and write the adapter.

    Raises:
        TriLoRAError: what was asked for can't be done; says what to change.
    """
    team, device, first = gathered(plan.device)
    progress = Progress(plan.training.steps, shown=not team.index, folder=plan.log_dir)
    pipe = load_pipeline(plan.base, plan.dtype, device or None, plan.base_config or None)
    denoiser = DiffusersDenoiser(pipe, plan.training.precision)
    sets, captions = _sets(plan), _lines(plan.preserve_captions)
    begun = files.load(Path(plan.start_from)) if plan.start_from else None
    plan = replace(plan, training=session.at_own_rank(plan.training, begun))
    start, carried = _start(pipe, begun)
    modules = {path: pipe.unet.get_submodule(path) for path in start}
    modules = modules or select(pipe.unet, plan.training.targets, plan.training.blocks)
    cache = Cache(plan.root / "encoded")  # the slow part: what can't be is told by now
    with first():
        both = {
            name: encode(
                denoiser, data, plan.training.preserve > 0 and not plan.preserve_captions, cache, progress.count
            )
            for name, data in sets.items()
        }
        plain = [denoiser.read(line) for line in captions]
    encoded = {name: each for name, (_, each) in both.items()}
    told = partial(_told, denoiser)
    data = {name: session.preserving(pictures, plain, told) for name, (pictures, _) in both.items()}
    layers = _layers(pipe, modules, plan.training, start)
    with ExitStack() as stack:
        if plan.checkpointing:
            stack.enter_context(checkpointed(pipe.unet))
        switch = stack.enter_context(attached(pipe.unet, layers))  # type: ignore[arg-type]
        training = Training(
            denoiser, layers, switch, data["train"], plan.training, data.get("regularisation", ()), team=team
        )
        run = _run(plan, training, encoded, data, pipe, begun)
        film = Film(plan.preview, run.folder, _painter(plan, pipe, sets["train"], encoded["train"]))
        outcome = Outcome(plan, run, film, base_of(pipe), modules, sets["train"], carried)
        _go(outcome, progress, [variants[0] for variants in data.get("held out") or data["train"]])
    return outcome


def _go(outcome: Outcome, progress: Progress, looked_at: Sequence[Example]) -> None:
    """Say what is coming, take every step, say what came of it and write it; keep everything if it is broken off."""
    run = outcome.run
    try:
        if progress.shown:
            outcome.film.begin(run.training.number)
        outcome.said += session.before(run, outcome.dataset)
        progress.begin(run, outcome.said)
        if not run.training.number:
            _preview(outcome, progress, 0)
        for step in run:
            progress.step(run, step)
            _preview(outcome, progress, step.number)
        ending = session.after(run, looked_at, outcome.modules)
        outcome.said += ending
        if progress.shown:
            files.save(outcome.adapter(), Path(outcome.plan.output), files.DTYPES[outcome.plan.output_dtype])
            ending.append(f"saved {outcome.plan.output}, {os.path.getsize(outcome.plan.output) / 1e6:.1f} MB")
        progress.end(ending)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(outcome.keep()) from None
    except torch.OutOfMemoryError as error:
        outcome.keep()
        raise TrainingError(
            "The memory does not suffice. Halve batch and double accumulate (the steps stay the same), or use "
            f"--checkpointing, --dtype bfloat16 or a lower resolution. What was learned is kept. ({error})"
        ) from error
    except BaseException:
        outcome.keep()
        raise
    finally:
        progress.close()


def _preview(outcome: Outcome, progress: Progress, number: int) -> None:
    if progress.shown and outcome.film.due(number, outcome.run.last):
        with outcome.run.training.averaged():
            progress.show(outcome.film.take(number, lambda _step: None), number)


def _sets(plan: Plan) -> dict[str, Dataset]:
    """The data sets of a plan, what is held out among them."""
    dropout, data = plan.training.caption_dropout, plan.data
    whole = data.read(data.pictures, data.trigger, dropout)
    given = data.read(plan.held_out, data.trigger) if plan.held_out else None
    train, held = session.split(whole, given, plan.held_out_share, plan.training.seed)
    prior = data.read(plan.regularisation, "", dropout) if plan.regularisation else None
    return {name: each for name, each in zip(SETS, (train, held, prior), strict=True) if each is not None}


def _lines(file: str) -> list[str]:
    if not file:
        return []
    try:
        lines = Path(file).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise TriLoRAError(f"The captions in {file} can't be read: {error}.") from None
    return [line.strip() for line in lines if line.strip()]


def _told(denoiser: DiffusersDenoiser, read: Any, latent: torch.Tensor) -> Any:
    height, width = (side * denoiser.pipe.vae_scale_factor for side in latent.shape[-2:])
    return denoiser.told(read, (width, height), None)


def _start(pipe: Any, adapter: Adapter | None) -> tuple[dict[str, Factors], dict[str, Factors]]:
    """Factors to go on with by layer path, and those, by their own names, that can only be carried along."""
    if adapter is None:
        return {}, {}
    carried = {name: f for name, f in adapter.layers.items() if name.startswith(("lora_te", "text_encoder"))}
    own = Adapter({name: f for name, f in adapter.layers.items() if name not in carried}, adapter.metadata)
    return placed(pipe, own).get("unet", {}), carried


def _layers(
    pipe: Any, modules: Mapping[str, nn.Module], settings: Settings, start: Mapping[str, Factors]
) -> dict[str, nn.Module]:
    """Fresh layers are seeded by the path that ComfyUI knows, so that a seed begins alike in both hosts."""
    theirs = {path: stability(path, depth_of(pipe.unet)) for path in modules}
    made = create_layers(
        {theirs[path]: module for path, module in modules.items()}, settings,
        {theirs[path]: factors for path, factors in start.items()},
    )  # fmt: skip
    return {path: made[theirs[path]] for path in modules}


def _run(
    plan: Plan, training: Training, encoded: Mapping[str, Encoded], data: Mapping[str, list[Variants]], pipe: Any,
    begun: Adapter | None,
) -> Run:  # fmt: skip
    """The run in its folder: one for each base, data and course."""
    identities = {name: each.identity for name, each in encoded.items()}
    about = {"data": [identities, _lines(plan.preserve_captions)], "model": named(pipe.unet)}
    about["start"] = session.named(begun)
    folder = folder_of(plan.root, plan.data.trigger, identity(training.settings.course(), about))
    held_out = [variants[0] for variants in data.get("held out", [])]
    card = json.loads(json.dumps({**about, "settings": asdict(training.settings)}))
    return Run(training, folder, held_out, plan.watch, card)


def _painter(plan: Plan, pipe: Any, dataset: Dataset, encoded: Encoded) -> Any:
    """Paints a preview at the size of the first picture."""
    p, factor = plan.preview, pipe.vae_scale_factor
    height, width = (side * factor for side in encoded.latents[0][0].shape[-2:])
    prompt = p.prompt or dataset.prompt_of(dataset.pictures[0])
    return lambda tick: paint(pipe, prompt, p.seed, p.steps, p.cfg, (width, height), on_step=tick)


def base_of(pipe: Any) -> Base:
    """The names of a pipeline's base."""
    if hasattr(pipe, "text_encoder_2"):
        return BASES["SDXL"]
    if pipe.unet.config.cross_attention_dim == 1024:
        return BASES["SD2"]
    return BASES["BaseModel"]
