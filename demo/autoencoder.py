"""Stage 1: a TAESD (diffusers AutoencoderTiny) for the drawn world and for looks it has never seen."""

from __future__ import annotations

import math
import time
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderTiny
from torch import Tensor
from torch.nn import functional as F

from .head_start import give_head_start
from .narrow import narrow_autoencoder, widened
from .saving import load_state, save_state
from .textures import pool

CROP = 64


def to_tensor(pictures: np.ndarray) -> Tensor:
    """uint8 (n, h, w, 3) -> float (n, 3, h, w) in [-1, 1]."""
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).float().div(127.5).sub(1)


def crops(pictures: np.ndarray, batch: int, rng: np.random.Generator) -> Tensor:
    """Random crops, mirrored and turned; half of them with exchanged or inverted colour channels."""
    out = np.empty((batch, CROP, CROP, 3), np.uint8)
    for i in range(batch):
        y, x = 8 * rng.integers(0, (pictures.shape[1] - CROP) // 8 + 1, 2)
        crop = pictures[rng.integers(len(pictures)), y : y + CROP, x : x + CROP]
        crop = np.rot90(crop, rng.integers(4)) if rng.random() < 0.3 else crop[:, :: rng.choice([-1, 1])]
        if rng.random() < 0.35:
            crop = crop[..., rng.permutation(3)]
        out[i] = 255 - crop if rng.random() < 0.12 else crop
    return to_tensor(out).contiguous(memory_format=torch.channels_last)


def gradients(x: Tensor) -> tuple[Tensor, Tensor]:
    """Differences between neighbours, down and across."""
    return x[..., 1:, :] - x[..., :-1, :], x[..., 1:] - x[..., :-1]


def picture_loss(made: Tensor, wanted: Tensor) -> Tensor:
    """L1 on values and on edges: edges are what makes a drawing crisp."""
    edges = sum(F.l1_loss(a, b) for a, b in zip(gradients(made), gradients(wanted), strict=True))
    return F.l1_loss(made, wanted) + 0.5 * edges + F.mse_loss(made, wanted)


def latent_penalty(z: Tensor) -> Tensor:
    """Pulls every latent channel to mean 0 and deviation 1."""
    mean, std = z.mean((0, 2, 3)), z.std((0, 2, 3))
    return mean.square().mean() + (std - 1).square().mean()


def rate(step: int, steps: int, peak: float, warm: int = 50) -> float:
    """Warm-up, then half a cosine to zero."""
    if step < warm:
        return peak * (step + 1) / warm
    return peak * 0.5 * (1 + math.cos(math.pi * min(1, (step - warm) / max(1, steps - warm))))


def train(work: Path, steps: int, batch: int, peak: float = 1e-3, decoder_only: bool = False, seed: int = 0) -> None:
    """Trains to `steps`, going on from its saved state; `decoder_only` keeps the encoder, so latents stay valid."""
    pictures = cached_pool(work)
    vae = narrow_autoencoder()
    give_head_start(vae)
    trained = vae.decoder.parameters() if decoder_only else vae.parameters()
    name = work / ("decoder.pt" if decoder_only else "autoencoder.pt")
    if decoder_only:
        vae.load_state_dict(load_state(work / "autoencoder.pt")["model"])
    optimizer = torch.optim.Adam(list(trained), lr=peak, betas=(0.9, 0.99), fused=True)
    start, seconds = resume(name, vae, optimizer)
    rng = np.random.default_rng(seed + start)
    torch.manual_seed(seed + start)
    began = saved = time.time()
    total = 0.0
    for step in range(start, steps):
        optimizer.param_groups[0]["lr"] = rate(step, steps, peak)
        loss = one_step(vae, optimizer, crops(pictures, batch, rng), decoder_only)
        total = loss if step == start else 0.97 * total + 0.03 * loss
        spent = seconds + time.time() - began
        if step % 25 == 0:
            print(f"autoencoder step {step} loss {total:.4f} at {spent:.0f}s", flush=True)
        if time.time() - saved > 120 or step == steps - 1:
            numbers = {"step": step + 1, "batch": batch, "seconds": spent, "loss": total}
            save_state(name, model=vae.state_dict(), optimizer=optimizer.state_dict(), **numbers)
            saved = time.time()


def one_step(vae: AutoencoderTiny, optimizer: torch.optim.Optimizer, x: Tensor, decoder_only: bool) -> float:
    """One update; a little noise on the latents makes the decoder forgiving."""
    with torch.set_grad_enabled(not decoder_only):
        z = vae.encode(x).latents
    made = vae.decode(z + 0.06 * torch.randn_like(z)).sample
    loss = picture_loss(made, x)
    full = loss if decoder_only else loss + 0.2 * latent_penalty(z)
    optimizer.zero_grad()
    full.backward()
    torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
    optimizer.step()
    return float(loss.detach())


def resume(name: Path, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> tuple[int, float]:
    """Loads the state if there is one; returns the step to go on from and the seconds spent before."""
    if not name.exists():
        return 0, 0.0
    state = load_state(name)
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    return state["step"], state.get("seconds", 0.0)


def cached_pool(work: Path, count: int = 2400) -> np.ndarray:
    """The training pictures, drawn once."""
    path = work / "pool.npy"
    if not path.exists():
        np.save(path, pool(count))
    return np.load(path, mmap_mode="r")


def trained_autoencoder(work: Path, full: bool = False) -> AutoencoderTiny:
    """The autoencoder of stage 1, with the refined decoder if there is one; `full` in TAESD's own shape."""
    vae = narrow_autoencoder()
    refined = work / "decoder.pt"
    vae.load_state_dict(load_state(refined if refined.exists() else work / "autoencoder.pt")["model"])
    return (widened(vae) if full else vae).eval().requires_grad_(False)
