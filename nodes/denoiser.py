"""The graph's own MODEL as a `Denoiser`, lent to training and given back as it was."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import comfy.model_management
import comfy.sampler_helpers
import comfy.samplers
import torch
from comfy.ldm.modules.attention import attention_pytorch
from comfy.model_patcher import ModelPatcher
from torch import Tensor, nn

from ..trilora.errors import TrainingError


class ComfyDenoiser:
    """`trilora.objective.Denoiser` on a loaded MODEL; a condition is ComfyUI's `model_conds` of one caption."""

    def __init__(self, patcher: ModelPatcher) -> None:
        self.model = patcher.model
        self.device = patcher.load_device
        self.sampling = self.model.model_sampling
        self.sigmas = self.sampling.sigmas.detach().clone().to(self.device)
        self.options = {**patcher.model_options["transformer_options"], "optimized_attention_override": _attention}

    def levels(self, quantiles: Tensor) -> Tensor:
        index = (quantiles * len(self.sigmas)).long().clamp(0, len(self.sigmas) - 1)
        return self.sigmas[index.to(self.device)]

    def noised(self, latents: Tensor, noise: Tensor, levels: Tensor) -> Tensor:
        return self.sampling.noise_scaling(levels, noise.to(self.device), latents.to(self.device), False)

    def denoised(self, noisy: Tensor, levels: Tensor, conditions: Sequence[Any]) -> Tensor:
        inputs = comfy.samplers.cond_cat(conditions)
        options = {**self.options, "cond_or_uncond": [0], "sigmas": levels}
        with self._precision():
            return self.model.apply_model(noisy, levels, transformer_options=options, **inputs)

    def output_scale(self, levels: Tensor) -> Tensor:
        zero, one = (torch.full((len(levels), 1), value, device=self.device) for value in (0.0, 1.0))
        at_zero = self.sampling.calculate_denoised(levels, zero, zero)
        return (at_zero - self.sampling.calculate_denoised(levels, one, zero)).abs().flatten()

    def encode(self, conditioning: list, latent: Tensor) -> dict[str, Any]:
        """What the network wants to know of one caption at one latent's size, as ordinary tensors."""
        conds = comfy.sampler_helpers.convert_cond(conditioning[:1])
        batch = latent[None].to(self.device)
        conds = comfy.samplers.encode_model_conds(
            self.model.extra_conds, conds, batch, self.device, "positive", latent_image=batch, denoise_mask=None, seed=0
        )
        return {
            name: cond._copy_with(_ordinary(cond.cond)).process_cond(batch_size=1, area=None)
            for name, cond in conds[0]["model_conds"].items()
        }

    def _precision(self) -> Any:
        """float16 gradients underflow; bfloat16 has float32's range."""
        if self.model.get_dtype_inference() == torch.float16 and self.device.type == "cuda":
            return torch.autocast("cuda", torch.bfloat16)
        return nullcontext()


@contextmanager
def lent(model: ModelPatcher, memory: int = 0) -> Iterator[ModelPatcher]:
    """The MODEL loaded whole on its device, every weight visible to autograd and none of them learning.

    Leaves the inference mode that ComfyUI runs prompts in, for the block.

    No weight is copied: loaders make weights under inference mode, which autograd refuses, so each is seen
    through an ordinary tensor over the same storage. Afterwards the original Parameters are back.

    Args:
        model: the graph's MODEL, with whatever patches it carries.
        memory: bytes to keep free for what training needs beside the weights.

    Raises:
        TrainingError: weights are streamed and the loader left no way to load them otherwise.
    """
    patcher = _not_streamed(model)
    comfy.model_management.load_models_gpu([patcher], memory_required=memory, force_full_load=True)
    patcher.pre_run()
    swapped: list[tuple[dict[str, Any], str, Tensor]] = []
    try:
        with torch.inference_mode(False), torch.enable_grad():
            for module in patcher.model.modules():
                for tensors in (module._parameters, module._buffers):
                    for name, tensor in tensors.items():
                        if tensor is not None and (tensor.is_inference() or tensor.requires_grad):
                            swapped.append((tensors, name, tensor))
                            tensors[name] = _view(tensor, isinstance(tensor, nn.Parameter))
            yield patcher
    finally:
        for tensors, name, tensor in swapped:
            tensors[name] = tensor
        patcher.cleanup()


def _not_streamed(model: ModelPatcher) -> ModelPatcher:
    """On CUDA, weights may be streamed through a shared buffer, which autograd must not keep: load them whole there."""
    if not model.is_dynamic():
        return model
    if model.cached_patcher_init is None:
        raise TrainingError(
            "This MODEL's weights are streamed to the GPU while it runs, and the node that loaded it left no way to "
            "load them whole. Use one of ComfyUI's own loaders, or start ComfyUI with --disable-dynamic-vram."
        )
    return model.clone(disable_dynamic=True)


def _view(tensor: Tensor, parameter: bool) -> Tensor:
    view = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
    view.set_(tensor.untyped_storage(), tensor.storage_offset(), tensor.shape, tensor.stride())
    return nn.Parameter(view, requires_grad=False) if parameter else view


def _ordinary(value: Any) -> Any:
    """Tensors made under inference mode, cloned so that autograd may save them."""
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, list | tuple):
        return type(value)(_ordinary(item) for item in value)
    return value


def _attention(_chosen, *args, **kwargs) -> Tensor:
    """Torch's own attention: it has a backward, and its result depends on no amount of free memory."""
    return attention_pytorch(*args, **kwargs)
