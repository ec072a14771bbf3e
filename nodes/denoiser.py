"""The graph's own MODEL as a `Denoiser`, once it is lent (`lending.lent`)."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import comfy.sampler_helpers
import comfy.samplers
import torch
from comfy.ldm.modules.attention import attention_pytorch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ..trilora.shelf import mapped


class ComfyDenoiser:
    """`trilora.objective.Denoiser` on a lent MODEL; a condition is ComfyUI's `model_conds` of one caption.

    Args:
        patcher: of `lent`.
        precision: of the network's arithmetic, whatever its weights are stored in. `auto` is the precision that it
            samples in; on CUDA, bfloat16 in float16's place. float16's gradients underflow unless the loss is scaled
            (`torch.amp.GradScaler`).
    """

    def __init__(self, patcher: ModelPatcher, precision: str = "auto") -> None:
        self.model = patcher.model
        self.device = patcher.load_device
        self.sampling = self.model.model_sampling
        self.sigmas = self.sampling.sigmas.detach().clone().to(self.device)
        self.precision = self._chosen(precision)
        self.options = {**patcher.model_options["transformer_options"], "optimized_attention_override": _attention}

    def levels(self, quantiles: Tensor) -> Tensor:
        index = (quantiles * len(self.sigmas)).long().clamp(0, len(self.sigmas) - 1)
        return self.sigmas[index.to(self.device)]

    def noised(self, latents: Tensor, noise: Tensor, levels: Tensor) -> Tensor:
        return self.sampling.noise_scaling(levels, noise.to(self.device), latents.to(self.device), False)

    def denoised(self, noisy: Tensor, levels: Tensor, conditions: Sequence[Any]) -> Tensor:
        groups = alike(conditions)
        if len(groups) == 1:
            return self._together(noisy, levels, conditions)
        parts = [self._together(noisy[g], levels[g], [conditions[i] for i in g]) for g in groups]
        return torch.cat(parts)[torch.tensor(sum(groups, [])).argsort().to(noisy.device)]

    def _together(self, noisy: Tensor, levels: Tensor, conditions: Sequence[Any]) -> Tensor:
        inputs = mapped(comfy.samplers.cond_cat(conditions), lambda tensor: tensor.to(self.device))
        options = {**self.options, "cond_or_uncond": [0], "sigmas": levels}
        with self._precise():
            return self.model.apply_model(noisy, levels, transformer_options=options, **inputs)

    def output_scale(self, levels: Tensor) -> Tensor:
        zero, one = (torch.full((len(levels), 1), value, device=self.device) for value in (0.0, 1.0))
        at_zero = self.sampling.calculate_denoised(levels, zero, zero)
        return (at_zero - self.sampling.calculate_denoised(levels, one, zero)).abs().flatten()

    def encode(self, conditioning: list, latent: Tensor) -> dict[str, Any]:
        """What the network wants to know of one caption at one latent's size, as ordinary tensors in RAM."""
        conds = comfy.sampler_helpers.convert_cond(conditioning[:1])
        batch = latent[None].to(self.device)
        conds = comfy.samplers.encode_model_conds(
            self.model.extra_conds, conds, batch, self.device, "positive", latent_image=batch, denoise_mask=None, seed=0
        )
        return {
            name: cond._copy_with(mapped(cond.cond, _ordinary)).process_cond(batch_size=1, area=None)
            for name, cond in conds[0]["model_conds"].items()
        }

    def _chosen(self, precision: str) -> torch.dtype | None:
        if precision != "auto":
            return getattr(torch, precision)
        half = self.model.get_dtype_inference() == torch.float16 and self.device.type == "cuda"
        return torch.bfloat16 if half else None

    @contextmanager
    def _precise(self) -> Iterator[None]:
        """float32 is cast to layer by layer, as ComfyUI does it; the half precisions are autocast."""
        before = self.model.manual_cast_dtype
        if self.precision == torch.float32:
            self.model.manual_cast_dtype = torch.float32
        half = self.precision if self.precision in (torch.bfloat16, torch.float16) else None
        try:
            with torch.autocast(self.device.type, half, enabled=half is not None):
                yield
        finally:
            self.model.manual_cast_dtype = before


def alike(conditions: Sequence[dict[str, Any]]) -> list[list[int]]:
    """Places of the conditions that can go through the network together: captions of as many tokens, say."""
    groups: list[list[int]] = []
    for i, one in enumerate(conditions):
        for group in groups:
            first = conditions[group[0]]
            if comfy.samplers.cond_equal_size(first, one) and all(first[k].size() == one[k].size() for k in one):
                group.append(i)
                break
        else:
            groups.append([i])
    return groups


def _ordinary(tensor: Tensor) -> Tensor:
    """A tensor made under inference mode, cloned so that autograd may save it."""
    return tensor.detach().clone().cpu()


def _attention(_chosen, *args, **kwargs) -> Tensor:
    """Torch's own attention: it has a backward, and its result depends on no amount of free memory."""
    return attention_pytorch(*args, **kwargs)
