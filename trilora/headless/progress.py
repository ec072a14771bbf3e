"""What a headless training shows: a bar, sentences, and TensorBoard where a folder for it is given."""

import math
from collections.abc import Sequence
from typing import Any

import numpy
from PIL import Image
from tqdm import tqdm

from ..errors import TriLoRAError
from ..run import Run
from ..training import Step


class Progress:
    """Of one process; only the first of a team shows anything.

    Args:
        total: steps of the run.
        shown: whether this process shows anything.
        folder: for TensorBoard; "" for none.

    Raises:
        TriLoRAError: a log is wanted, but TensorBoard is not installed.
    """

    def __init__(self, total: int, shown: bool, folder: str = "") -> None:
        self.total, self.shown, self.folder, self.mean = total, shown, folder, math.nan
        self.bar: Any = None
        self.log: Any = None
        if folder and shown:
            self._writer()  # a missing package is told before the slow part

    def count(self, text: str, done: int, total: int) -> None:
        """What is being encoded, and how far that is."""
        if self.shown:
            self.bar = self.bar or tqdm(total=total, desc="encoding", unit="", leave=False)
            self.bar.total = max(total, self.bar.total)
            self.bar.update()

    def begin(self, run: Run, said: Sequence[str]) -> None:
        """What is coming, and the bar of the steps."""
        self.close()
        if not self.shown:
            return
        self._say(said)
        if self.folder:
            self.log = self._writer()(f"{self.folder}/{run.folder.name}", purge_step=run.training.number + 1)
        self.bar = tqdm(total=self.total, initial=run.training.number, unit="step")

    def step(self, run: Run, step: Step) -> None:
        """One step further."""
        self.mean = step.loss if math.isnan(self.mean) else self.mean + (step.loss - self.mean) * 0.05
        if self.bar is not None:
            self.bar.set_postfix_str(f"loss {self.mean:.4f}", refresh=False)
            self.bar.update()
        if self.log is not None:
            found = {"loss": step.loss, "preservation": step.preservation, "prior": step.prior}
            found["held out"] = run.history.held_out.get(step.number)
            for name, value in found.items():
                if value is not None:
                    self.log.add_scalar(name, value, step.number)

    def show(self, picture: Image.Image, number: int) -> None:
        """A preview picture."""
        if self.log is not None:
            self.log.add_image("preview", numpy.asarray(picture), number, dataformats="HWC")

    def end(self, said: Sequence[str]) -> None:
        """What came of it."""
        self.close()
        if self.shown:
            self._say(said)

    def close(self) -> None:
        """The bar goes, the log is whole."""
        for shown in (self.bar, self.log):
            if shown is not None:
                shown.close()
        self.bar = self.log = None

    def _say(self, said: Sequence[str]) -> None:
        print("\n".join(said), flush=True)

    @staticmethod
    def _writer() -> Any:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise TriLoRAError(
                f"A log_dir was given, but TensorBoard is missing ({error}): pip install tensorboard."
            ) from None
        return SummaryWriter
