"""What a running training tells ComfyUI: bar and text, or its panel where a page shows one; and what it is told."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import comfy.model_management
import comfy.utils
from PIL import Image
from server import PromptServer

from ..trilora.film import Film
from ..trilora.report import clock
from ..trilora.run import Run
from ..trilora.spectrum import glimpse
from ..trilora.training import Step
from .live import Live

PREVIEW_SIZE = 512  # pixels of the longer side that the page is sent
APART = 0.25  # seconds between two words to the page


class Progress:
    """ComfyUI's bar and the node's panel; without a page that shows it, text and pictures as of any node.

    Within the block of `with`, a break or a failure is shown on the panel.
    """

    def __init__(self, node_id: str, total: int, extra: dict | None = None) -> None:
        """`extra` is ComfyUI's EXTRA_PNGINFO, which names the workflow that the node belongs to."""
        workflow = ((extra or {}).get("workflow") or {}).get("id") or ""
        self.node_id, self.bar, self.told, self.mean = node_id, comfy.utils.ProgressBar(total), 0.0, 0.0
        self.live = Live(node_id, workflow, total)
        self.first: tuple[float, int] | None = None

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, _: object) -> None:
        interrupted = isinstance(error, comfy.model_management.InterruptProcessingException)
        stage = "ended" if error is None else "cancelled" if interrupted else "failed"
        self.live.set(stage=stage, text="" if error is None or interrupted else str(error))

    @contextmanager
    def learning(self, run: Run) -> Iterator[None]:
        """The run can be watched, stopped and saved within the block."""
        self.live.set(run=run, history=run.history, best=run.best.step)
        try:
            yield
        finally:
            self.live.set(run=None, stage="working", best=run.best.step)

    def say(self, text: str, at_once: bool = False) -> None:
        """What is being done, at most four times a second; raises when the user cancels."""
        comfy.model_management.throw_exception_if_processing_interrupted()
        if at_once or self._due():
            self.live.set(stage="working", text=text)
            self._write(text)

    def count(self, text: str, done: int, total: int) -> None:
        """What is being encoded, and how far that is."""
        self.say(f"{text} ({done} of {total})")

    def step(self, step: Step) -> None:
        """One step further."""
        comfy.model_management.throw_exception_if_processing_interrupted()
        now = time.monotonic()
        self.first = self.first or (now, step.number)
        self.mean = step.loss if step.number == self.first[1] else self.mean + (step.loss - self.mean) * 0.05
        rate = (step.number - self.first[1]) / max(now - self.first[0], 1e-9)
        left = (step.total - step.number) / rate if rate else 0.0
        self._look(step, {"rate": rate, "left": left})
        if self._due() or step.number == step.total:
            time_left = f", {clock(left)} left" if rate else ""
            self._write(f"step {step.number} of {step.total}, loss {self.mean:.4f}, {rate:.2f} it/s{time_left}")
            self.bar.update_absolute(step.number, step.total)

    def show(self, picture: Image.Image, film: Film, number: int, total: int) -> None:
        """A preview picture: in the panel's strip, or beside the bar."""
        self.live.keep_pictures(film.folder, film.steps())
        shown = None if self.live.watched else ("JPEG", picture, PREVIEW_SIZE)
        self.bar.update_absolute(number, total, shown)

    def _look(self, step: Step, pace: dict[str, float]) -> None:
        run = self.live.run
        if run is None:
            return
        if step.number % run.watch.score_every == 0 or step.number == step.total:
            self.live.spectra.append((step.number, glimpse(run.training.layers)))
        pace["learning_rate"] = run.training.rate
        self.live.set(stage="learning", text="", pace=pace, best=run.best.step)

    def _due(self) -> bool:
        due = time.monotonic() - self.told > APART
        if due:
            self.told = time.monotonic()
        return due

    def _write(self, text: str) -> None:
        """On the node, where no panel is."""
        if not self.live.watched:
            PromptServer.instance.send_progress_text(text, self.node_id)
