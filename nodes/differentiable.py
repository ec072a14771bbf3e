"""ComfyUI's networks computing so that autograd can follow, though they were written for sampling alone."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import comfy.ldm.common_dit
import comfy.ldm.ernie.model
import comfy.ldm.hydit.attn_layers
import comfy.ldm.hydit.poolers
import comfy.ldm.pixart.blocks
import comfy.model_management
import comfy.rmsnorm
import comfy_kitchen
import torch
from comfy.ldm.modules.attention import attention_pytorch
from comfy_kitchen.backends.eager import rope
from torch import Tensor

FUSED = ("apply_rope", "apply_rope1", "apply_rope_split_half", "apply_rope_split_half1",
         "rms_rope", "rms_rope1", "rms_rope_split_half", "rms_rope_split_half1")  # fmt: skip
# networks that call attention without the options by which another could be chosen
DEAF = (comfy.ldm.ernie.model, comfy.ldm.hydit.attn_layers, comfy.ldm.hydit.poolers, comfy.ldm.pixart.blocks)


@contextmanager
def differentiable() -> Iterator[None]:
    """Within the block gradients pass through every network of ComfyUI, and are right; results are those of sampling.

    Fused kernels have no backward: their plain counterparts take their place. Flux and its kin add to their
    activations in place, over values that the backward pass needs: `+=` makes a new tensor here, so that blocks
    which are computed again (checkpointed) are right too, where torch would not notice.

    This holds for the whole process, as ComfyUI runs one prompt at a time.
    """
    replaced = [
        (comfy.model_management, "in_training", True),  # networks that know of training choose their own way
        (Tensor, "__iadd__", _plus),
        (comfy.ldm.common_dit, "rms_norm", _norm_of_a_copy),
        *((module, "optimized_attention", attention_pytorch) for module in DEAF),
        *((comfy_kitchen, name, getattr(rope, name)) for name in FUSED),
    ]
    before = [(owner, name, vars(owner).get(name)) for owner, name, _ in replaced]
    try:
        for owner, name, value in replaced:
            setattr(owner, name, value)
        yield
    finally:
        for owner, name, value in before:
            if value is None:  # inherited
                delattr(owner, name)
            else:
                setattr(owner, name, value)


def _plus(a: Tensor, b: Any) -> Tensor:
    follows = torch.is_grad_enabled() and (a.requires_grad or getattr(b, "requires_grad", False))
    return (a + b).to(a.dtype) if follows else a.add_(b)


def _norm_of_a_copy(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """LTX-Video adds in place to what it has just normed."""
    return comfy.rmsnorm.rms_norm(x.clone() if torch.is_grad_enabled() else x, *args, **kwargs)
