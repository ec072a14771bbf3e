"""Writes demo/base in diffusers layout, half precision, from what has been trained so far."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from safetensors.torch import load_file, save_file

from .autoencoder import trained_autoencoder
from .denoiser import trained_denoiser
from .saving import replace_files
from .wordpieces import write_tokenizer


def sampler() -> DDIMScheduler:
    """DDIM on the training schedule, as SD 1.x ships it."""
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )


def pipeline(work: Path) -> tuple[StableDiffusionPipeline, dict]:
    """The trained weights as a pipeline, and the numbers of their training."""
    model, tokenizer, numbers = trained_denoiser(work)
    pipe = StableDiffusionPipeline(
        vae=trained_autoencoder(work, full=True),
        text_encoder=model.text,
        tokenizer=tokenizer,
        unet=model.unet,
        scheduler=sampler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe, numbers


def export(work: Path, base: Path) -> dict:
    """Replaces the files of `base` one by one; returns the training numbers."""
    pipe, numbers = pipeline(work)
    fresh = base.with_name(base.name + ".partial")
    shutil.rmtree(fresh, ignore_errors=True)
    pipe.to(dtype=torch.float16).save_pretrained(fresh)
    write_tokenizer(fresh / "tokenizer")
    _name_as_clip(fresh / "text_encoder" / "model.safetensors")
    for config in fresh.rglob("config.json"):
        _without_paths(config)
    replace_files(fresh, base)
    return numbers


def _name_as_clip(path: Path) -> None:
    """Every key under `text_model.`, as in SD 1.x; newer transformers leave that out and read both."""
    tensors = load_file(path)
    named = {k if k.startswith("text_model.") else f"text_model.{k}": v.contiguous() for k, v in tensors.items()}
    save_file(named, path, metadata={"format": "pt"})


def _without_paths(path: Path) -> None:
    """Drops the folder that a part was loaded from."""
    config = json.loads(path.read_text(encoding="utf-8"))
    config.pop("_name_or_path", None)
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
