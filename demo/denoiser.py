"""Stage 2: the text encoder and the U-Net, trained together from nothing on latents of drawn pictures."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from diffusers import DDPMScheduler, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from .autoencoder import rate, to_tensor, trained_autoencoder
from .compass import Compass
from .draw import draw
from .peers import Peers
from .saving import load_state, save_state
from .scenery import CENTRE
from .wordpieces import LENGTH, token_ids, write_tokenizer
from .world import training_specs, varied_caption

WIDTH = 128  # of the text encoder and of the cross attention
CHANNELS = (64, 128)
HEADS = 4
SPEC_SEED = 11
GAMMA = 5.0  # min-SNR weighting


class Denoiser(nn.Module):
    """Caption ids and noisy latents -> predicted noise."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.text = CLIPTextModel(text_config(vocabulary))
        self.unet = new_unet().to(memory_format=torch.channels_last)

    def forward(self, x: Tensor, t: Tensor, ids: Tensor) -> Tensor:
        return self.unet(x, t, self.text(input_ids=ids).last_hidden_state).sample


def text_config(vocabulary: int) -> CLIPTextConfig:
    """Two layers of CLIP; start and end are the last two tokens."""
    return CLIPTextConfig(
        vocab_size=vocabulary,
        hidden_size=WIDTH,
        intermediate_size=4 * WIDTH,
        projection_dim=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=LENGTH,
        hidden_act="quick_gelu",
        bos_token_id=vocabulary - 2,
        eos_token_id=vocabulary - 1,
        pad_token_id=vocabulary - 1,
    )


def new_unet() -> UNet2DConditionModel:
    """The U-Net of SD 1.x in small: self and cross attention at every level."""
    levels = len(CHANNELS)
    return UNet2DConditionModel(
        sample_size=16,
        block_out_channels=CHANNELS,
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D",) * levels,
        up_block_types=("CrossAttnUpBlock2D",) * levels,
        cross_attention_dim=WIDTH,
        attention_head_dim=HEADS,
        norm_num_groups=32,
    )


def noise_schedule() -> DDPMScheduler:
    """The schedule of SD 1.x."""
    return DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False)


def latents(work: Path, count: int) -> Tensor:
    """The first `count` training pictures as latents; drawn and encoded 200 at a time, kept in work/."""
    path = work / "latents.pt"
    done = load_state(path)["z"] if path.exists() else torch.empty(0, 4, 16, 16, dtype=torch.float16)
    if len(done) < count:
        vae, specs = trained_autoencoder(work), training_specs(count, SPEC_SEED)
        while len(done) < count:
            done = torch.cat([done, _encode(vae, specs[len(done) : len(done) + 200])])
            save_state(path, z=done)
            print(f"latents {len(done)} mean {done.float().mean():.3f} std {done.float().std():.3f}", flush=True)
    return done[:count].float()


@torch.no_grad()
def _encode(vae, specs: list) -> Tensor:
    """Latents of drawn pictures, in half precision."""
    pictures = to_tensor(np.stack([np.asarray(draw(s)) for s in specs]))
    parts = [vae.encode(p.contiguous(memory_format=torch.channels_last)).latents for p in pictures.split(4)]
    return torch.cat(parts).half().contiguous()


def loss_of(model: Denoiser, schedule: DDPMScheduler, z: Tensor, ids: Tensor) -> Tensor:
    """Squared error of the noise, weighted by min(SNR, gamma) / SNR; half the noise levels even, half high."""
    n = len(z)
    even = (torch.arange(n) + torch.rand(n)) / n
    t = torch.where(torch.arange(n) % 2 == 0, even, 0.75 + 0.25 * torch.rand(n)).mul(1000).long().clamp(max=999)
    noise = torch.randn_like(z)
    noisy = schedule.add_noise(z, noise, t).contiguous(memory_format=torch.channels_last)
    error = (model(noisy, t, ids) - noise).square().mean((1, 2, 3))
    kept = schedule.alphas_cumprod[t]
    return (error * weight(kept / (1 - kept))).mean()


def weight(snr: Tensor) -> Tensor:
    """min(SNR, gamma) / SNR, and far more where noise hides nearly all: there the prompt decides the layout.

    At low SNR the error of the noise is about SNR times the error of the picture, so with a weight of 1 the
    network would hardly hear that it puts things in the wrong place.
    """
    return snr.clamp(max=GAMMA) / snr * (1 + 0.15 / (snr + 0.002))


def train(
    work: Path,
    pictures: int = 2880,
    steps: int = 3650,
    batch: int = 20,
    peak: float = 2e-3,
    minutes: float = 1e9,
    on_export: Callable[[], None] | None = None,
    export_every: float = 15,
) -> None:
    """Trains to `steps` (the learning rate falls to zero by then, or by `minutes` if that is sooner)."""
    peers = Peers()
    if peers.first:
        latents(work, pictures)
        write_tokenizer(work / "tokenizer")
    peers.wait()
    z, specs = latents(work, pictures), training_specs(pictures, SPEC_SEED)
    tokenizer = CLIPTokenizer.from_pretrained(work / "tokenizer")
    torch.manual_seed(0)
    run = Run(work / "denoiser.pt", Denoiser(len(tokenizer)), peak, batch, peers)
    schedule, saved, exported = noise_schedule(), time.time(), run.seconds
    while (progress := max(run.step / steps, run.seconds / (60 * minutes))) < 1:
        ids, chosen = _batch(tokenizer, specs, batch // peers.count, run.step * peers.count + peers.rank)
        loss = loss_of(run.model, schedule, z[chosen], ids)
        centres = torch.tensor([CENTRE[specs[i].place] for i in chosen]) / 64 - 1
        run.update(
            loss, run.compass.loss(z[chosen], centres), rate(round(progress * 100_000), 100_000, peak, warm=2500)
        )
        if not peers.first:
            continue
        if run.step % 50 == 0:
            print(f"denoiser {run} progress {progress:.3f}", flush=True)
        due = on_export and run.seconds - exported > 60 * export_every
        if due or time.time() - saved > 180:
            run.save()
            saved = time.time()
        if due:
            on_export()
            exported = run.seconds
    if peers.first:
        run.save()
    peers.wait()


def _batch(tokenizer: CLIPTokenizer, specs: list, batch: int, seed: int) -> tuple[Tensor, list[int]]:
    """Which pictures, and their captions as ids; the seed follows from the step, so that a run can be resumed."""
    rng = random.Random(seed)
    torch.manual_seed(seed)
    chosen = [rng.randrange(len(specs)) for _ in range(batch)]
    return token_ids(tokenizer, [varied_caption(specs[i], rng) for i in chosen]), chosen


class Run:
    """A model that learns: optimizer, helper, clock, and a file to go on from."""

    def __init__(self, path: Path, model: Denoiser, peak: float, batch: int, peers: Peers) -> None:
        self.path, self.model, self.batch, self.peers = path, model, batch, peers
        self.clock = time.time()
        self.optimizer = torch.optim.AdamW(
            model.parameters(), lr=peak, betas=(0.9, 0.99), weight_decay=0.01, fused=True
        )
        self.compass = Compass(model.unet)
        self.compass_optimizer = torch.optim.Adam(self.compass.parameters(), lr=peak)
        self.step, self.seconds, self.loss, self.help = 0, 0.0, 0.0, 0.0
        if path.exists():
            self._load(load_state(path))

    def update(self, loss: Tensor, help_loss: Tensor, lr: float) -> None:
        """One optimizer step on both losses."""
        self.optimizer.param_groups[0]["lr"] = lr
        self.optimizer.zero_grad()
        self.compass_optimizer.zero_grad()
        (loss + help_loss).backward()
        spent = self.seconds + time.time() - self.clock
        self.clock = time.time()
        self.seconds, value, self.help = self.peers.average(
            [self.model, self.compass], spent, float(loss.detach()), float(help_loss.detach())
        )
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.compass_optimizer.step()
        self.loss = value if self.step == 0 else 0.99 * self.loss + 0.01 * value
        self.step += 1

    def __str__(self) -> str:
        return f"step {self.step} loss {self.loss:.4f} help {self.help:.3f} at {self.seconds:.0f}s"

    def save(self) -> None:
        """Everything needed to go on."""
        parts = {"model": self.model, "optimizer": self.optimizer}
        plain = {"step": self.step, "batch": self.batch, "seconds": self.seconds, "loss": self.loss}
        save_state(self.path, **{k: v.state_dict() for k, v in parts.items()}, **plain)

    def _load(self, state: dict) -> None:
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.seconds, self.loss = state["step"], state["seconds"], state["loss"]


def trained_denoiser(work: Path) -> tuple[Denoiser, CLIPTokenizer, dict]:
    """The model of stage 2, its tokenizer, and its numbers."""
    tokenizer = write_tokenizer(work / "tokenizer")
    model, state = Denoiser(len(tokenizer)), load_state(work / "denoiser.pt")
    model.load_state_dict(state["model"])
    return model.eval().requires_grad_(False), tokenizer, {k: state[k] for k in ("step", "seconds", "loss")}
