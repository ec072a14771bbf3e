"""Trains the network that names thing, colour, place and scene; it is also the drawn world's feature extractor."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from trilora.metrics.judge import Judge, load

from .autoencoder import rate, to_tensor, trained_autoencoder
from .draw import draw
from .saving import replace_files
from .styles_drawn import STYLES
from .world import COLOURS, PLACES, SCENES, THINGS, SceneSpec, all_triples, specs_over

HEADS = {"thing": THINGS, "colour": tuple(COLOURS), "place": tuple(PLACES), "scene": tuple(SCENES)}
LOOKS = (None, *STYLES)  # None: the base's own
HERE = Path(__file__).parent


def labels(specs: list[SceneSpec]) -> dict[str, Tensor]:
    """The right answer of every head of the world."""
    return {name: torch.tensor([words.index(getattr(s, name)) for s in specs]) for name, words in HEADS.items()}


def drawn(specs: list[SceneSpec], looks: Sequence[str | None] = (None,)) -> Tensor:
    """The pictures as one tensor, the looks in turn."""
    return to_tensor(
        np.stack([np.asarray(draw(s, look)) for s, look in zip(specs, itertools.cycle(looks), strict=False)])
    )


@torch.no_grad()
def through(vae, pictures: Tensor) -> Tensor:
    """Pictures after encoding and decoding."""
    return torch.cat([vae.decode(vae.encode(p).latents).sample.clamp(-1, 1) for p in pictures.split(8)])


def train_judge(work: Path, count: int = 2000, epochs: int = 14) -> Judge:
    """Trains on drawn pictures of all combinations; a quarter of them also as the autoencoder gives them back."""
    specs = specs_over(all_triples(), count, seed=5)
    return _trained(HEADS, *_with_round_trips(work, drawn(specs), labels(specs), count // 4), epochs)


def train_eye(work: Path, count: int = 3000, epochs: int = 13) -> Judge:
    """The same in every look, an eighth of them also from the autoencoder.

    It is asked for the look too, so that its features tell looks apart as well as what is shown.
    """
    specs = specs_over(all_triples(), count, seed=5)
    answers = labels(specs) | {"look": torch.arange(count) % len(LOOKS)}
    heads = HEADS | {"look": tuple(f"look_{look or 'plain'}" for look in LOOKS)}  # words that no prompt has
    return _trained(heads, *_with_round_trips(work, drawn(specs, LOOKS), answers, count // 8), epochs)


def _with_round_trips(work: Path, x: Tensor, y: dict[str, Tensor], some: int) -> tuple[Tensor, dict[str, Tensor]]:
    """The first of the pictures once more, after the autoencoder."""
    again = through(trained_autoencoder(work), x[:some])
    return torch.cat([x, again]), {k: torch.cat([v, v[:some]]) for k, v in y.items()}


def _trained(heads: dict[str, tuple[str, ...]], x: Tensor, y: dict[str, Tensor], epochs: int, batch: int = 50) -> Judge:
    torch.manual_seed(3)
    judge, steps = Judge(heads), epochs * len(x) // batch
    optimizer = torch.optim.AdamW(judge.parameters(), weight_decay=0.02, fused=True)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = rate(step, steps, 3e-3)
        pick = torch.randint(len(x), (batch,))
        out = judge(_disturbed(x[pick]))
        loss = sum(F.cross_entropy(out[k], y[k][pick], label_smoothing=0.02) for k in y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 50 == 0:
            print(f"judge step {step} of {steps} loss {float(loss.detach()):.3f}", flush=True)
    return judge.eval().requires_grad_(False)


def _disturbed(x: Tensor) -> Tensor:
    """A little shift, shade and noise."""
    dy, dx = torch.randint(-3, 4, (2,)).tolist()
    shade = 1 + 0.08 * torch.randn(len(x), 3, 1, 1)
    return torch.roll(x, (dy, dx), (2, 3)) * shade + 0.05 * torch.randn(len(x), 1, 1, 1) + 0.04 * torch.randn_like(x)


@torch.no_grad()
def right(judge: Judge, pictures: Tensor, specs: list[SceneSpec]) -> dict[str, Tensor]:
    """For each head, which pictures show what their spec says; `all` = thing, colour and place."""
    answers, truth = judge(pictures), labels(specs)
    found = {name: answers[name].argmax(1) == truth[name] for name in HEADS}
    return found | {"all": found["thing"] & found["colour"] & found["place"]}


def save_judge(judge: Judge, folder: Path, numbers: dict) -> None:
    """Half-precision weights, the words of the heads, and how often it is right."""
    fresh = folder.with_name(folder.name + ".partial")
    fresh.mkdir(parents=True, exist_ok=True)
    save_file({k: v.half().contiguous() for k, v in judge.state_dict().items()}, fresh / "model.safetensors")
    text = json.dumps({"heads": judge.words, "accuracy": numbers}, indent=2)
    (fresh / "config.json").write_text(text + "\n", encoding="utf-8")
    replace_files(fresh, folder)


def load_judge(folder: Path = HERE / "judge") -> Judge:
    """The shipped judge of the base's own look, in float32; HERE / "eye" is that of all looks."""
    return load(folder)
