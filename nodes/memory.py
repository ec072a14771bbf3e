"""How much memory a training step will keep, told from the network's layers before anything runs."""

import math
from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Any

import comfy.model_management
from comfy.model_patcher import ModelPatcher
from torch import nn

from ..trilora.checkpointing import blocks

KEPT = 1.5  # numbers kept for each that a weight layer puts out; measured: 1.35 to 1.57 (demo, SD1.5; 2 sizes each)
ONCE = ("*mod*", "*adaLN*", "*emb*", "*time*", "*guidance*", "*vector*")  # layers that see one vector, not the picture
TRAINED = 16  # bytes for each number that learns: itself, its gradient, and two moments of Adam


def estimate(model: ModelPatcher, latent_shape: Sequence[int], batch: int, checkpointing: bool = False) -> int:
    """Bytes of activations that a step keeps for its backward; the network's passing needs come on top.

    Args:
        model: the graph's MODEL; neither loaded nor run.
        latent_shape: of one picture, (channels, ..., height, width).
        batch: pictures a pass.
        checkpointing: whether blocks are computed again.
    """
    network = model.model.diffusion_model
    outputs = _outputs(network, math.prod(latent_shape[1:]))
    numbers = sum(outputs.values())
    if checkpointing:
        inside = [[m for m in block.modules() if m in outputs] for block in blocks(network)]
        sizes = [sum(outputs[m] for m in layers) for layers in inside]
        handed = sum(outputs[layers[-1]] for layers in inside if layers)  # what one block hands to the next
        numbers = numbers - sum(sizes) + handed + max(sizes, default=0)
    return int(KEPT * numbers * batch * comfy.model_management.dtype_size(model.model.get_dtype_inference()))


def _outputs(network: nn.Module, positions: float) -> dict[nn.Module, float]:
    """Weight layer -> how many numbers it puts out for one picture; strides and upsampling change the positions."""
    outputs: dict[nn.Module, float] = {}
    strided = False
    for path, module in network.named_modules():
        weight: Any = getattr(module, "weight", None)
        stride = math.prod(getattr(module, "stride", None) or (1,)) if weight is not None else 1
        if type(module).__name__ == "Upsample":
            positions *= 4
        if weight is None or len(weight.shape) < 2 or isinstance(module, nn.Embedding):
            continue
        positions, strided = positions / stride, strided or stride > 1
        outputs[module] = weight.shape[0] * (1 if any(fnmatchcase(path, name) for name in ONCE) else positions)
    patch = getattr(network, "patch_size", 1)
    merged = 1 if strided else math.prod(patch) if isinstance(patch, Sequence) else patch**2
    return {module: count / merged for module, count in outputs.items()}
