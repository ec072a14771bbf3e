"""Pictures by a pipeline, with whatever is attached to it, and the noise that ComfyUI would begin with."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import diffusers
import torch
from torch import Tensor

from ..errors import TriLoRAError
from .encoding import whole

SAMPLERS = {  # deterministic ones, each with what it is told beside the base's own schedule
    "euler": ("EulerDiscreteScheduler", {"timestep_spacing": "leading"}),  # begins with √(σ² + 1) · noise, as ComfyUI
    "dpm++ 2m": ("DPMSolverMultistepScheduler", {}),
}


def paint(
    pipe: Any, prompt: str, seed: int = 30, steps: int = 20, guidance: float = 7.5, size: tuple[int, int] = (512, 512),
    negative: str = "", sampler: str = "euler", on_step: Callable[[int], None] | None = None,
) -> Tensor:  # fmt: skip
    """One picture, (height, width, 3) in 0..1; the same noise for a seed as in ComfyUI.

    Args:
        pipe: of `load_pipeline`.
        prompt: what to paint.
        seed: of the noise.
        steps: of sampling.
        guidance: classifier-free; 1 for none.
        size: (width, height) in pixels.
        negative: what to stay away from.
        sampler: one of SAMPLERS.
        on_step: called with the number of each finished step.
    """
    found = latent(pipe, prompt, noise_of(pipe, seed, size), steps, guidance, negative, sampler, on_step)
    with torch.no_grad(), whole(pipe.vae):
        vae = pipe.vae
        raw = found.float() / vae.config.scaling_factor + (vae.config.get("shift_factor") or 0.0)
        pixels: Tensor = vae.decode(raw.to(vae.device), return_dict=False)[0]
    return (pixels[0].movedim(0, -1) / 2 + 0.5).clamp(0, 1).float().cpu()


def latent(
    pipe: Any, prompt: str, noise: Tensor, steps: int, guidance: float, negative: str = "", sampler: str = "euler",
    on_step: Callable[[int], None] | None = None, times: list[int] | None = None,
) -> Tensor:  # fmt: skip
    """The latent that a picture is decoded from, (1, channels, height, width), scaled as the model has it.

    Args:
        times: which steps of the noise schedule to visit, from much noise to little; evenly spread where None.
    """
    visited = times or _times(pipe.scheduler.config.num_train_timesteps, steps)

    def told(_pipe: Any, number: int, _time: int, kept: dict[str, Any]) -> dict[str, Any]:
        if on_step:
            on_step(number + 1)
        return kept

    height, width = (side * pipe.vae_scale_factor for side in noise.shape[-2:])
    with torch.no_grad(), _sampling(pipe, sampler):
        made: Tensor = pipe(
            prompt=prompt, negative_prompt=negative, timesteps=visited, guidance_scale=guidance, height=height,
            width=width, latents=noise.to(pipe.unet.device, pipe.unet.dtype), output_type="latent",
            callback_on_step_end=told, return_dict=False,
        )[0]  # fmt: skip
    return made


def noise_of(pipe: Any, seed: int, size: tuple[int, int]) -> Tensor:
    """The noise of a seed for one picture of (width, height) pixels, rounded down to whole latents."""
    width, height = (side // pipe.vae_scale_factor for side in size)
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(1, pipe.unet.config.in_channels, height, width, generator=draw)


@contextmanager
def _sampling(pipe: Any, sampler: str) -> Iterator[None]:
    """The pipeline with that sampler, and silent, within the block."""
    if sampler not in SAMPLERS:
        raise TriLoRAError(f"The sampler {sampler!r} is unknown. Choose one of: {', '.join(SAMPLERS)}.")
    name, told = SAMPLERS[sampler]
    before, shown = pipe.scheduler, getattr(pipe, "_progress_bar_config", {})
    pipe.scheduler = getattr(diffusers, name).from_config(before.config, **told)
    pipe.set_progress_bar_config(disable=True)
    try:
        yield
    finally:
        pipe.scheduler, pipe._progress_bar_config = before, shown


def _times(count: int, steps: int) -> list[int]:
    """Evenly spread over the schedule, from its last step to its first."""
    return [round(time) for time in torch.linspace(count - 1, 0, min(steps, count)).tolist()]
