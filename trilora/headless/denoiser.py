"""A diffusers UNet as a `Denoiser`: epsilon and velocity prediction, Stable Diffusion 1.x, 2.x and XL."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from diffusers import DDPMScheduler
from torch import Tensor

from ..encoding import Shown
from ..errors import TrainingError

Condition = Mapping[str, Tensor]  # what the network is told beside a latent, each with a batch dimension of 1
PREDICTIONS = ("epsilon", "v_prediction")
LEAST_SIGNAL = 4.8973451890853435e-08  # signal² at the last level where a schedule leaves none (arXiv 2305.08891)


class DiffusersDenoiser:
    """`trilora.objective.Denoiser` on the UNet of a diffusers pipeline.

    A level is σ, noise over signal; the table of them is the scheduler's own, as ComfyUI has it, so that a seed means
    the same training in both hosts.

    Args:
        pipe: a StableDiffusion(XL)Pipeline; adapters are attached to `pipe.unet` by the caller.
        precision: of the network's arithmetic, whatever its weights are stored in. `auto` is that of the weights; on
            CUDA, bfloat16 in float16's place.

    Raises:
        TrainingError: a schedule or a prediction that this is no rule for.
    """

    def __init__(self, pipe: Any, precision: str = "auto") -> None:
        self.pipe, self.unet = pipe, pipe.unet
        self.device, self.dtype = self.unet.device, self.unet.dtype
        self.prediction, self.sigmas = _noise(pipe.scheduler.config)
        self.sigmas = self.sigmas.to(self.device)
        self.autocast = self._chosen(precision)

    def levels(self, quantiles: Tensor) -> Tensor:
        index = (quantiles * len(self.sigmas)).long().clamp(0, len(self.sigmas) - 1)
        return self.sigmas[index.to(self.device)]

    def noised(self, latents: Tensor, noise: Tensor, levels: Tensor) -> Tensor:
        """x0 + σ · noise."""
        latents = latents.to(self.device)
        return latents + _wide(levels, latents) * noise.to(self.device)

    def denoised(self, noisy: Tensor, levels: Tensor, conditions: Sequence[Condition]) -> Tensor:
        """x - σ · output for epsilon; (x - σ √(σ² + 1) · output) / (σ² + 1) for velocity."""
        sigma = _wide(levels, noisy)
        size = (sigma.square() + 1).sqrt()
        output = self._output(noisy / size, self.times(levels), conditions)
        if self.prediction == "epsilon":
            return noisy - sigma * output
        return noisy / size.square() - sigma / size * output

    def output_scale(self, levels: Tensor) -> Tensor:
        return levels if self.prediction == "epsilon" else levels / (levels.square() + 1).sqrt()

    def times(self, levels: Tensor) -> Tensor:
        """The number of the nearest level in the table, which is what the network is told: (B,) -> (B,)."""
        return (levels.log()[:, None] - self.sigmas.log()).abs().argmin(1)

    def encode(self, prompt: str, size: tuple[int, int], shown: Shown | None = None) -> Condition:
        """What the network is told of one caption: by the pipeline's text encoders, on the CPU.

        Args:
            prompt: the text; what exceeds the encoder's length is cut off by the pipeline.
            size: (width, height) in pixels of the picture; SDXL is told.
            shown: how the picture came to that size; None for one that was neither scaled nor cut.
        """
        return self.told(self.read(prompt), size, shown)

    @torch.no_grad()
    def read(self, prompt: str) -> dict[str, Tensor]:
        """What the text encoders make of a prompt, on the CPU."""
        ways = {"num_images_per_prompt": 1, "do_classifier_free_guidance": False}
        text, _, *pooled = self.pipe.encode_prompt(prompt, device=self.device, **ways)
        named = {"prompt": text, **({"pooled": pooled[0]} if pooled else {})}
        return {name: tensor.detach().cpu().clone() for name, tensor in named.items()}

    def told(self, text: Condition, size: tuple[int, int], shown: Shown | None) -> Condition:
        """What was read, with what SDXL is told of the picture (arXiv 2307.01952, section 2.2) beside it."""
        if "pooled" not in text:
            return text
        (width, height), shown = size, shown or Shown(size, (0, 0))
        (wide, high), (left, top) = shown.size, shown.crop
        return {**text, "sizes": torch.tensor([[high, wide, top, left, height, width]], dtype=torch.float32)}

    def _output(self, inputs: Tensor, times: Tensor, conditions: Sequence[Condition]) -> Tensor:
        told = {name: torch.cat([each[name] for each in conditions]).to(inputs.device) for name in conditions[0]}
        told = {name: tensor.to(self.dtype) for name, tensor in told.items()}
        added = {"text_embeds": told["pooled"], "time_ids": told["sizes"]} if "sizes" in told else None
        with torch.autocast(self.device.type, self.autocast, enabled=self.autocast is not None):
            output: Tensor = self.unet(
                inputs.to(self.dtype), times, encoder_hidden_states=told["prompt"], added_cond_kwargs=added,
                return_dict=False,
            )[0]  # fmt: skip
        return output.to(inputs.dtype)

    def _chosen(self, precision: str) -> torch.dtype | None:
        """What the half precisions are autocast to; None for the weights' own type."""
        if precision == "auto":
            half = self.dtype == torch.float16 and self.device.type == "cuda"
            return torch.bfloat16 if half else None
        wanted: torch.dtype = getattr(torch, precision)
        if wanted == torch.float32 and self.dtype != wanted:
            raise TrainingError(
                f"The precision float32 was asked for, but the base is loaded as {self.dtype}. Load it as float32."
            )
        return None if wanted == self.dtype else wanted


def _noise(config: Any) -> tuple[str, Tensor]:
    """Prediction, and σ at every step of the scheduler's table, least noise first: (steps,)."""
    prediction = config.get("prediction_type", "epsilon")
    if "beta_start" not in config or prediction not in PREDICTIONS:
        raise TrainingError(
            f"The base's scheduler ({config.get('_class_name')}, prediction {prediction!r}) is none of "
            f"{' and '.join(PREDICTIONS)} over a table of betas. Use a Stable Diffusion 1.x, 2.x or XL model."
        )
    kept = DDPMScheduler.from_config(config).alphas_cumprod.double().clamp_min(LEAST_SIGNAL)
    return prediction, ((1 - kept) / kept).sqrt().float()


def _wide(levels: Tensor, like: Tensor) -> Tensor:
    return levels.to(like.device).view(-1, *[1] * (like.ndim - 1))
