"""ComfyUI's networks computing so that autograd can follow, though they were written for sampling alone."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import comfy.model_management
import torch
from comfy_kitchen.backends.eager import rope
from torch import Tensor
from torch.nn.functional import rms_norm
from torch.overrides import TorchFunctionMode

FUSED = ("apply_rope", "apply_rope1", "apply_rope_split_half", "apply_rope_split_half1",
         "rms_rope", "rms_rope1", "rms_rope_split_half", "rms_rope_split_half1")  # fmt: skip
PLAIN = {getattr(torch.ops.comfy_kitchen, name): getattr(rope, name) for name in FUSED}


@contextmanager
def differentiable() -> Iterator[None]:
    """Within the block gradients pass through every network of ComfyUI, and are right; results are those of sampling.

    Flux and its kin add to their activations in place, over values that the backward pass needs: `+=` makes a new
    tensor here, so that recomputed (checkpointed) blocks are right too, where torch would not notice.
    """
    training, adding = comfy.model_management.in_training, Tensor.__iadd__
    comfy.model_management.in_training = True  # networks that know of training choose their own way
    Tensor.__iadd__ = _plus
    try:
        with _Followed():
            yield
    finally:
        Tensor.__iadd__ = adding
        comfy.model_management.in_training = training


def _plus(a: Tensor, b: Any) -> Tensor:
    follows = torch.is_grad_enabled() and (a.requires_grad or getattr(b, "requires_grad", False))
    return (a + b).to(a.dtype) if follows else a.add_(b)


class _Followed(TorchFunctionMode):
    """Fused kernels, which have no backward, in plain torch."""

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if func is rms_norm and torch.is_grad_enabled():
            args = (args[0].clone(), *args[1:])  # LTX-Video adds in place to what it has just normed
        return PLAIN.get(func, func)(*args, **(kwargs or {}))
