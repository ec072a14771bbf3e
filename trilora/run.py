"""A run: a training that is watched, kept on disk, gone on with after a break, and ended when it is best."""

import contextlib
import json
import logging
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from . import checkpoint
from .attach import Switch
from .cache import digest
from .checkpoint import Best, History
from .disk import write
from .errors import FileError
from .factors import Factors
from .objective import Denoiser, Example, distances, score
from .seeds import generator
from .training import Step, Training, learned

CARD = "run.json"
DONE = "finished"  # an empty file in the folder of a run that came to its end
KEPT = 5  # finished runs whose last state stays on disk
LEVELS = (0.1, 0.3, 0.5, 0.7, 0.9)  # quantiles of noise levels that pictures are scored at


@dataclass(frozen=True)
class Watch:
    """What is looked at and kept beside the learning; nothing here changes a factor.

    Attributes:
        score_every: steps between scores of the held-out pictures.
        patience: scores in a row without a better one after which the run ends; 0 for never.
        keep_best: hand on the factors of the best score, not the last ones.
        checkpoint_every: steps between states on disk; 0 for none but those of a break and of the end.
        checkpoints: states kept.
        resume: go on from a state of the same run, if there is one.
    """

    score_every: int = 50
    patience: int = 0
    keep_best: bool = True
    checkpoint_every: int = 100
    checkpoints: int = 2
    resume: bool = True


class Run:
    """Iterate it to train: each step is recorded, scores and states come at their time.

    Args:
        training: not begun yet; it is brought to the last state on disk, if there is one.
        folder: of this run alone; see `folder_of`.
        held_out: pictures that are not trained on, one showing each.
        watch: how to watch.
        card: what the run is made of, for people and for `difference`.
    """

    def __init__(
        self,
        training: Training,
        folder: Path,
        held_out: Sequence[Example] = (),
        watch: Watch | None = None,
        card: Mapping[str, Any] | None = None,
    ) -> None:
        self.training, self.folder, self.held_out = training, folder, held_out
        self.watch, self.card = watch or Watch(), dict(card or {})
        self.history, self.best = History(), Best()
        self.began = 0  # step that this sitting went on from
        self.stopping = ""  # why the run ends before its last step
        self.saved = -1  # step of the last state on disk
        self._resume()

    def _resume(self) -> None:
        path = checkpoint.latest(self.folder, self.training.settings.steps) if self.watch.resume else None
        if path:
            self.history, self.best = checkpoint.restore(path, self.training)
            self.began = self.saved = self.training.number
            self._lose_patience()

    def __iter__(self) -> Iterator[Step]:
        if not self.training.team.index:
            (self.folder / DONE).unlink(missing_ok=True)
        if not self.training.number % self.watch.score_every:  # due at the start, or where a sitting broke off
            self._score_once()
        while self.training.number < self.training.settings.steps and not self.stopping:
            begin = time.monotonic()
            step = self.training.step()
            self.history.seconds += time.monotonic() - begin
            self._record(step)
            yield step
        self._score_once()
        self.save()
        if not self.training.team.index:
            checkpoint.prune(self.folder, 1, self.training.number)
        if self.saved == self.training.number and not self.training.team.index:
            self._finish()

    def stop(self, why: str = "stopped by hand") -> None:
        """End after the present step and keep what was learned."""
        self.stopping = why

    def save(self) -> None:
        """The state on disk, now; a full disk costs the state, not the run. Of a team, the first process writes.

        After a break amid an update the state is of no step; the one before on disk stands.
        """
        if self.training.number == self.saved or self.training.team.index or not self.training.whole:
            return
        try:
            write(self.folder / CARD, json.dumps(self.card, indent=1).encode())
            path = self.folder / checkpoint.NAME.format(self.training.number)
            checkpoint.save(path, self.training, self.history, self.best)
            self.saved = self.training.number
            checkpoint.prune(self.folder, self.watch.checkpoints, self.training.number)
        except FileError as error:
            logging.warning("The run goes on, but its state was not saved: %s", error)

    def _finish(self) -> None:
        """Mark this run as finished, and remove the states of finished runs before the last few; nothing else."""
        with contextlib.suppress(OSError):
            (self.folder / DONE).touch()
            done = sorted(self.folder.parent.glob(f"*/{DONE}"), key=lambda path: path.stat().st_mtime_ns, reverse=True)
            for path in done[KEPT:]:
                checkpoint.prune(path.parent, 0)

    def result(self) -> dict[str, Factors]:
        """The factors to hand on: the best ones where pictures were held out, else the last."""
        with self.chosen():
            return learned(self.training.layers)  # type: ignore[arg-type]

    @contextlib.contextmanager
    def chosen(self) -> Iterator[None]:
        """Within the block the layers hold what is handed on."""
        with self.training.averaged():
            last = {name: p.detach().clone() for name, p in self.training.parameters.items()}
            self.training.put(self.best.parameters if self.watch.keep_best else {})
            try:
                yield
            finally:
                self.training.put(last)

    @property
    def step(self) -> int:
        """The step that the result is of."""
        return self.best.step if self.watch.keep_best and self.best.parameters else self.training.number

    @property
    def last(self) -> int:
        """The step that it ends with, as far as is known."""
        return self.training.number if self.stopping else self.training.settings.steps

    def _record(self, step: Step) -> None:
        nan = float("nan")
        self.history.loss.append(step.loss)
        self.history.preservation.append(nan if step.preservation is None else step.preservation)
        self.history.prior.append(nan if step.prior is None else step.prior)
        if self.held_out and step.number % self.watch.score_every == 0:
            self._score()
        if self.watch.checkpoint_every and step.number % self.watch.checkpoint_every == 0:
            self.save()

    def _score_once(self) -> None:
        if self.held_out and self.training.number not in self.history.held_out:
            self._score()

    def _score(self) -> None:
        """Score the held-out pictures, keep the best, and end where patience does."""
        number = self.training.number
        with self.training.averaged():
            noise = fixed_noise(self.held_out, self.training.settings.seed)
            value = self.training.team_mean(score(self.training.denoiser, self.held_out, noise, LEVELS))
            scores = [v for step, v in self.history.held_out.items() if step and not math.isnan(v)]
            better = number > 0 and value < min(scores, default=math.inf)
            self.history.held_out[number] = value
            if better:
                parameters = {name: p.detach().clone() for name, p in self.training.parameters.items()}
                self.best = Best(number, parameters)
        self._lose_patience()

    def _lose_patience(self) -> None:
        """End where the last scores were no better; so does a run that had ended for this, and is asked for again."""
        since = sum(1 for step in self.history.held_out if step > self.best.step)
        if self.watch.patience and since >= self.watch.patience:
            self.stop(f"no better score on the held-out pictures since step {self.best.step}")


def identity(*parts: Any) -> str:
    """A short name that is the same for the same settings and data, and for no others."""
    return digest(json.dumps(parts, sort_keys=True))[:16]


def folder_of(root: Path, title: str, name: str) -> Path:
    """Where a run lies: one folder for each identity, with a title that people recognise."""
    safe = "".join(c if c.isalnum() or c in "-_" else "_" for c in title)[:40]
    return root / f"{safe or 'run'}-{name}"


def difference(root: Path, folder: Path, card: Mapping[str, Any]) -> str:
    """In words, what has changed since the last unfinished run on the same data; "" where there is none."""
    cards = sorted(root.glob(f"*/{CARD}"), key=lambda path: path.stat().st_mtime, reverse=True)
    for path in cards:
        try:
            other = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if path.parent == folder or other.get("data") != card.get("data"):
            continue
        was, now = other.get("settings", {}), card.get("settings", {})
        changed = [f"{key} {was.get(key)} -> {now.get(key)}" for key in now if was.get(key) != now.get(key)]
        if changed and checkpoint.latest(path.parent, int(was.get("steps", 0)) - 1):
            return (
                f"a new run, because settings changed ({', '.join(changed)}); put them back to go on with the old one"
            )
    return ""


def fixed_noise(examples: Sequence[Example], seed: int) -> list[torch.Tensor]:
    """Noise that is the same at every score of a run."""
    return [torch.randn(e.latent.shape, generator=generator(seed, "held out", i)) for i, e in enumerate(examples)]


@torch.no_grad()
def moved(denoiser: Denoiser, switch: Switch, examples: Sequence[Example], seed: int) -> tuple[float, float]:
    """Mean squared distance of the adapted model from the base (with the trigger word, without it).

    In prediction space, at fixed noise and noise levels, over examples that have a plain caption.
    """
    totals, count = [0.0, 0.0], 0
    for example, noise in zip(examples, fixed_noise(examples, seed), strict=True):
        for quantile in LEVELS[1::2]:
            levels = denoiser.levels(torch.tensor([quantile]))
            noisy = denoiser.noised(example.latent[None], noise[None].to(example.latent), levels)
            for i, condition in enumerate((example.condition, example.plain)):
                with switch.off():
                    base = denoiser.denoised(noisy, levels, [condition])
                totals[i] += float(distances(denoiser, noisy, levels, [condition], base))
            count += 1
    return totals[0] / count, totals[1] / count
