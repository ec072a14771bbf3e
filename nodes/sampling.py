"""Pictures and conditioning by the graph's own MODEL, CLIP and VAE, through ComfyUI's own sampler."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import comfy.model_management
import comfy.sample
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor


def encode(clip: Any, text: str) -> list:
    """Conditioning of a prompt."""
    with torch.inference_mode():
        return clip.encode_from_tokens_scheduled(clip.tokenize(text))


def sample(
    model: ModelPatcher, positive: list, negative: list, vae: Any, seed: int, steps: int, cfg: float, width: int,
    height: int, sampler: str = "euler", scheduler: str = "normal", on_step: Callable[[int], None] | None = None,
) -> Tensor:  # fmt: skip
    """One picture, (1, height, width, 3) in 0..1: what KSampler and VAE Decode give, bit for bit.

    A MODEL that is being trained can be sampled from: what is attached to it acts, it stays where it is loaded, and
    the global random numbers go on as if nothing had happened.

    Args:
        width, height: in pixels; rounded down to what the model's latents can hold.
        on_step: called with the number of each finished step.
    """
    with torch.inference_mode(), _own_randomness(model.load_device):
        latent = empty_latent(model, width, height)
        latent = comfy.sample.sample(
            model, comfy.sample.prepare_noise(latent, seed), steps, cfg, sampler, scheduler, positive, negative,
            latent, callback=on_step and (lambda step, *_: on_step(step + 1)), disable_pbar=True, seed=seed,
        )  # fmt: skip
        with _held([model] if comfy.model_management.in_training else []):
            pixels = vae.decode(latent)
    frame = pixels.reshape(-1, *pixels.shape[-3:])[:1, ..., :3]  # a video model gives frames
    return frame.clone()  # outside inference mode: an ordinary tensor


def empty_latent(model: ModelPatcher, width: int, height: int) -> Tensor:
    """Zeros of the shape that the MODEL starts from."""
    form = model.get_model_object("latent_format")
    ratio = form.spacial_downscale_ratio
    flat = torch.zeros(1, form.latent_channels, height // ratio, width // ratio)
    return comfy.sample.fix_empty_latent_channels(model, flat)


@contextmanager
def _own_randomness(device: torch.device) -> Iterator[None]:
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        yield


@contextmanager
def _held(models: list[ModelPatcher]) -> Iterator[None]:
    """Hides MODELs from ComfyUI's memory management, which may unload any model to make room for another.

    Where room is short, the VAE then decodes in tiles.
    """
    loaded = comfy.model_management.current_loaded_models
    held = [entry for entry in loaded if entry.model in models]
    for entry in held:
        loaded.remove(entry)
    try:
        yield
    finally:
        loaded.extend(held)
