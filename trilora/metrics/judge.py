"""A small network that names what a drawn picture shows: the demo world's feature extractor, and its text side."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import DataError, FileError


class Judge(nn.Module):
    """(n, 3, 128, 128) in [-1, 1] -> logits by head; `features` are the 128 numbers before the heads.

    Args:
        heads: name -> the words that this head tells apart.
    """

    def __init__(self, heads: Mapping[str, Sequence[str]], widths: tuple[int, ...] = (24, 48, 64, 64)) -> None:
        super().__init__()
        self.words = {name: list(words) for name, words in heads.items()}
        blocks: list[nn.Module] = []
        for before, after in zip((3, *widths[:-1]), widths, strict=True):
            blocks += [nn.Conv2d(before, after, 3, stride=2, padding=1), nn.GroupNorm(8, after), nn.SiLU()]
            blocks += [nn.Conv2d(after, after, 3, padding=1, groups=8), nn.SiLU()]
        self.trunk = nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(4), nn.Flatten())
        self.neck = nn.Linear(widths[-1] * 16, 128)
        self.heads = nn.ModuleDict({name: nn.Linear(128, len(words)) for name, words in heads.items()})

    def features(self, x: Tensor) -> Tensor:
        return F.silu(self.neck(self.trunk(x)))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        seen = self.features(x)
        return {name: head(seen) for name, head in self.heads.items()}


def load(folder: Path) -> Judge:
    """The judge of a folder with config.json and model.safetensors, in float32.

    Raises:
        FileError: a file is missing or not whole.
    """
    try:
        judge = Judge(json.loads((folder / "config.json").read_text(encoding="utf-8"))["heads"])
        judge.load_state_dict({k: v.float() for k, v in load_file(folder / "model.safetensors").items()})
    except (OSError, KeyError, ValueError, RuntimeError, SafetensorError) as error:
        raise FileError(
            f"{folder} does not hold the demo's extractor, config.json and model.safetensors ({error}). It is "
            "demo/judge of the pack: name that folder, or install the pack again, whole."
        ) from error
    return judge.eval().requires_grad_(False)


class WordSide:
    """Prompts as directions in the judge's feature space.

    A word's direction is the row of its head, less the mean row of that head; a prompt is the sum of its words.
    """

    def __init__(self, judge: Judge) -> None:
        self.directions: dict[str, Tensor] = {}
        for name, words in judge.words.items():
            rows = judge.get_parameter(f"heads.{name}.weight").detach()
            self.directions |= dict(zip(words, rows - rows.mean(0), strict=True))

    def __call__(self, prompts: Sequence[str]) -> Tensor:
        """(N, 128), one row a prompt.

        Raises:
            DataError: a prompt with none of the words that the judge knows.
        """
        return torch.stack([self._direction(prompt) for prompt in prompts])

    def _direction(self, prompt: str) -> Tensor:
        found = set(re.findall(r"[a-z]+", prompt.lower())) & set(self.directions)
        if not found:
            raise DataError(
                f"The demo's extractor knows no word of the prompt '{prompt}'. It knows {', '.join(self.directions)}; "
                "for other words choose clip."
            )
        return torch.stack([self.directions[word] for word in sorted(found)]).sum(0)
