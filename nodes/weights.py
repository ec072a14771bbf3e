"""The bridge MODEL -> weights: what a MODEL samples with, its own patches applied, in float32."""

from collections.abc import Callable, Iterable, Mapping

import comfy.lora
import comfy.model_management
import torch
from comfy.model_patcher import ModelPatcher, get_key_weight
from torch import Tensor

from ..trilora.errors import TargetError
from .patching import ROOT, portable_names, shape_of


def reader(model: ModelPatcher) -> Callable[[str], Tensor]:
    """A function from a weight's key to that weight, patched, as a new float32 tensor; the MODEL is not changed.

    Quantised, offloaded and loaded weights alike. ComfyUI's own list of originals and patches, `get_key_patches`, is of
    all weights or none, and fails where some are quantised.
    """

    def read(key: str) -> Tensor:
        original, _, convert = get_key_weight(model.model, key)
        if key in model.backup:
            original = model.backup[key].weight
        if key in model.hook_backup:
            original = model.hook_backup[key][0]
        copy = comfy.model_management.cast_to_device(original, model.load_device, torch.float32, copy=True)
        dense = convert(copy, inplace=True) if convert else copy
        return comfy.lora.calculate_weight(model.patches.get(key, []), dense, key).float()

    return read


def changes(base: ModelPatcher, tuned: ModelPatcher, paths: Iterable[str]) -> Mapping[str, Callable[[], Tensor]]:
    """Layer name in a file -> a function that gives W_tuned - W_base.

    Raises:
        TargetError: the MODELs are not of one architecture.
    """
    others = tuned.model.state_dict()
    names = portable_names(base, dict.fromkeys(paths))
    keys = {name: f"{ROOT}{path}.weight" for path, name in names.items()}
    for key in keys.values():
        here = tuple(shape_of(base.model, key))
        there = tuple(shape_of(tuned.model, key)) if key in others else "absent"
        if there != here:
            raise TargetError(
                f"The weight {key} is {here} in base ({_kind(base)}), but {there} in tuned "
                f"({_kind(tuned)}). Connect two models of the same architecture."
            )
    before, after = reader(base), reader(tuned)
    return {name: lambda key=key: after(key).sub_(before(key)) for name, key in keys.items()}


def make_room(model: ModelPatcher) -> None:
    """Free the memory that a few float32 copies of the MODEL's largest weight need on its device."""
    largest = max(tensor.numel() for tensor in model.model.state_dict().values())
    comfy.model_management.free_memory(6 * 4 * largest, model.load_device)


def _kind(model: ModelPatcher) -> str:
    return type(model.model).__name__
