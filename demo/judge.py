"""Trains the network that names thing, colour, place and scene; it is also the drawn world's feature extractor."""

from __future__ import annotations

import json
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
from .world import COLOURS, PLACES, SCENES, THINGS, SceneSpec, all_triples, specs_over

HEADS = {"thing": THINGS, "colour": tuple(COLOURS), "place": tuple(PLACES), "scene": tuple(SCENES)}
HERE = Path(__file__).parent


def labels(specs: list[SceneSpec]) -> dict[str, Tensor]:
    """The right answer of every head."""
    return {name: torch.tensor([words.index(getattr(s, name)) for s in specs]) for name, words in HEADS.items()}


def drawn(specs: list[SceneSpec]) -> Tensor:
    """The pictures as one tensor."""
    return to_tensor(np.stack([np.asarray(draw(s)) for s in specs]))


@torch.no_grad()
def through(vae, pictures: Tensor) -> Tensor:
    """Pictures after encoding and decoding."""
    return torch.cat([vae.decode(vae.encode(p).latents).sample.clamp(-1, 1) for p in pictures.split(8)])


def train_judge(work: Path, count: int = 2000, epochs: int = 14, batch: int = 50) -> Judge:
    """Trains on drawn pictures of all combinations; a quarter of them also as the autoencoder gives them back."""
    torch.manual_seed(3)
    specs = specs_over(all_triples(), count, seed=5)
    x, y = drawn(specs), labels(specs)
    quarter = count // 4
    x = torch.cat([x, through(trained_autoencoder(work), x[:quarter])])
    y = {k: torch.cat([v, v[:quarter]]) for k, v in y.items()}
    judge, steps = Judge(HEADS), epochs * len(x) // batch
    optimizer = torch.optim.AdamW(judge.parameters(), weight_decay=0.02, fused=True)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = rate(step, steps, 3e-3)
        pick = torch.randint(len(x), (batch,))
        out = judge(_disturbed(x[pick]))
        loss = sum(F.cross_entropy(out[k], y[k][pick], label_smoothing=0.02) for k in HEADS)
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
    text = json.dumps({"heads": HEADS, "accuracy": numbers}, indent=2)
    (fresh / "config.json").write_text(text + "\n", encoding="utf-8")
    replace_files(fresh, folder)


def load_judge(folder: Path = HERE / "judge") -> Judge:
    """The shipped judge, in float32."""
    return load(folder)
