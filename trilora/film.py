"""Preview pictures of a model in training, at fixed seed, and the film strip that they make."""

import io
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy
import torch
from PIL import Image
from torch import Tensor

from .disk import write
from .errors import FileError
from .plot import contact_sheet, picture_of

NAME, STRIP = "preview-{:07}.png", "previews.png"
NAMES = "preview-" + "[0-9]" * 7 + ".png"  # and no copy that a user has made beside it

OnStep = Callable[[int], None]  # called with the number of each finished sampling step


@dataclass(frozen=True)
class Preview:
    """When and how a preview is sampled; the defaults are the paper's.

    Attributes:
        every: steps between previews; 0 for none.
        prompt: what is sampled; the trigger word and the first caption where it is empty.
        seed: of the noise, the same for every preview.
        steps: of sampling.
        cfg: guidance.
    """

    every: int = 250
    prompt: str = ""
    seed: int = 30
    steps: int = 20
    cfg: float = 7.5


class Film:
    """Pictures taken at step 0 and every so many steps, each a file of the run's folder, and one strip of all.

    Args:
        preview: when and how.
        folder: the run's.
        paint: gives a picture (height, width, 3) in 0..1 by the model as it is now.
    """

    def __init__(self, preview: Preview, folder: Path, paint: Callable[[OnStep], Tensor]) -> None:
        self.preview, self.folder, self.paint = preview, folder, paint

    def begin(self, number: int) -> None:
        """Forget pictures of steps that a run has not made yet, as one that begins afresh has not."""
        for step, path in self._files():
            if step > number or not number:
                path.unlink()

    def due(self, number: int, last: int) -> bool:
        """Whether a picture is to be taken after this step."""
        return bool(self.preview.every) and (number % self.preview.every == 0 or number == last)

    def take(self, number: int, tick: OnStep) -> Image.Image:
        """Sample a picture with what is attached to the model; a full disk costs the picture, not the run."""
        picture = picture_of(self.paint(tick))
        try:
            self._keep(picture, number)
        except FileError as error:
            logging.warning("The run goes on, but a preview was not saved: %s", error)
        return picture

    def _keep(self, picture: Image.Image, number: int) -> None:
        write(self.folder / NAME.format(number), png(picture))
        frames = self.frames()
        write(self.folder / STRIP, png(contact_sheet(list(frames.values()), [f"step {n}" for n in frames], columns=8)))

    def frames(self) -> dict[int, Tensor]:
        """Step -> picture (height, width, 3) in 0..1."""
        return {
            step: torch.from_numpy(numpy.asarray(Image.open(path).convert("RGB"), dtype=numpy.float32) / 255)
            for step, path in self._files()
        }

    def tensor(self) -> Tensor:
        """The pictures as an IMAGE batch (n, height, width, 3); a white pixel where there are none."""
        return torch.stack(list(self.frames().values()) or [torch.ones(1, 1, 3)])

    def steps(self) -> list[int]:
        """The steps of which there is a picture."""
        return [step for step, _ in self._files()]

    def _files(self) -> list[tuple[int, Path]]:
        return [(int(path.stem[-7:]), path) for path in sorted(self.folder.glob(NAMES))]


def png(picture: Image.Image) -> bytes:
    """A picture as the bytes of a PNG file."""
    memory = io.BytesIO()
    picture.save(memory, "PNG")
    return memory.getvalue()
