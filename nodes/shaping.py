"""Σ on patches that are already on a MODEL: strength and gains, by adapter and by layer."""

import re
import uuid
from collections import ChainMap
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from comfy.model_patcher import ModelPatcher
from comfy.weight_adapter import WeightAdapterBase
from torch import Tensor

from ..trilora import targets
from ..trilora.errors import TriLoRAError
from .patches import ShapedPatch, factors_of
from .reading import Layer, Patched, adapters_on

Gains = Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]]  # layer path -> sigma (r,), of one adapter -> gains (r,)
Plan = Mapping[int, tuple[float, Tensor | None]]  # id of a patch -> its strength, its gains


def chosen(model: ModelPatcher, number: int = 0) -> list[Patched]:
    """The adapters on the MODEL: all, or the one of that number, counted from 1 as they were loaded.

    Raises:
        TriLoRAError: none is on it, or none of that number.
    """
    adapters = adapters_on(model)
    if not adapters and bypassed(model):
        raise TriLoRAError(
            "The LoRA on this MODEL came through a bypass loader, which leaves no patch whose Σ could be scaled. Load "
            "it with Load TriLoRA or Load LoRA, or set its strength in that loader."
        )
    if not adapters:
        raise TriLoRAError(
            "There is no LoRA or TriLoRA on this MODEL whose strength could be set. Connect this node's model input "
            "to the output of a node that loads one."
        )
    if number > len(adapters):
        raise TriLoRAError(
            f"Adapter {number} was asked for, but only {len(adapters)} are on this MODEL. Set adapter to at most "
            f"{len(adapters)}, or to 0 for all."
        )
    return adapters[number - 1 : number] if number else adapters


def bypassed(model: ModelPatcher) -> bool:
    """Whether ComfyUI's bypass loader put an adapter on the MODEL: it adds to outputs and leaves no patch."""
    return "bypass_lora" in model.injections


def shape_sigma(model: ModelPatcher, gains: Gains | None, strength: float) -> ModelPatcher:
    """A clone of the MODEL whose adapters have each Σ times its gains and times the strength.

    Works on every low-rank patch, whoever put it there; patches of other kinds take the strength alone.
    Gains of 1, or None, at strength 1 leave the very patches, so nothing changes, bit for bit.

    Raises:
        TriLoRAError: no adapter is on the MODEL.
    """
    plans = [planned(adapter.layers, gains, strength) for adapter in chosen(model)]
    return shaped(model, dict(ChainMap(*plans)))


def planned(layers: Mapping[str, Layer], gains: Gains | None, strength: float) -> Plan:
    """What these layers of one adapter are multiplied by."""
    by_value = gains(spectra(layers)) if gains else {}
    return {id(layer.patch): (strength, by_value.get(path)) for path, layer in layers.items()}


def spectra(layers: Mapping[str, Layer]) -> dict[str, Tensor]:
    """Layer path -> sigma (r,) as loaded, descending, of the layers that have U Σ Vᵀ."""
    factors = {path: factors_of(layer.patch) for path, layer in layers.items()}
    return {path: f.sigma for path, f in factors.items() if f is not None}


def within(model: ModelPatcher, paths: Iterable[str], choice: str, blocks: str = "") -> set[str]:
    """Those of the adapters' layers that a choice and blocks name, both as in `targets.among`.

    A part of a fused weight counts as the weight.

    Raises:
        TargetError: they name none, or a preset is asked of an architecture that the table does not know.
    """
    whole = {path: re.split(r"\[| \(", path)[0] for path in paths}
    found = set(targets.among(model.model.diffusion_model, dict.fromkeys(whole.values()), choice, blocks))
    return {path for path, name in whole.items() if name in found}


def shaped(model: ModelPatcher, plan: Plan) -> ModelPatcher:
    """A clone of the MODEL with the plan carried out; patches that are not in it stay."""
    clone = model.clone()
    clone.patches = {key: [_shaped(entry, plan) for entry in patches] for key, patches in model.patches.items()}
    clone.patches_uuid = uuid.uuid4()
    return clone


def _shaped(entry: tuple, plan: Plan) -> tuple:
    """One entry of `model.patches`, (strength, patch, strength of the model, offset, function), with Σ shaped."""
    amount, patch, *rest = entry
    if isinstance(patch, list):  # a merge of models: [its weight, its own patches ...]
        return (amount, [patch[0], *(_shaped(inner, plan) for inner in patch[1:])], *rest)
    strength, gains = plan.get(id(patch), (1.0, None))
    if gains is None or bool((gains == 1).all()):
        return (amount * strength, patch, *rest)
    return (amount * strength, _with_gains(patch, gains), *rest)


def _with_gains(patch: WeightAdapterBase, gains: Tensor) -> ShapedPatch:
    before: Any = patch.weights[3] if isinstance(patch, ShapedPatch) else 1.0
    return ShapedPatch(patch.loaded_keys, (*factors_of(patch), gains * before))
