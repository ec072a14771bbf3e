"""The bridge between factors and ComfyUI's MODEL: names, patches, and Σ on patches that are already there."""

import uuid
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import comfy.lora
import comfy.model_management
import comfy.utils
import torch
from comfy.model_patcher import ModelPatcher
from comfy.weight_adapter import LoRAAdapter, WeightAdapterBase
from torch import Tensor

from ..trilora.errors import TargetError, TriLoRAError
from ..trilora.factors import Factors, canonical, delta, forward, scaled
from ..trilora.files import Adapter

ROOT = "diffusion_model."
Gains = Callable[[Tensor], Tensor]  # canonical sigma (r,) -> a gain for each


class TriLoRAPatch(WeightAdapterBase):
    """W += strength · U Σ Vᵀ, as a patch on one weight; `weights` are (u, sigma, vh).

    ComfyUI rebuilds a patch from `(loaded_keys, weights)` alone, so nothing else may be kept on it.
    """

    name = "trilora"

    def __init__(self, loaded_keys: set[str], weights: tuple[Tensor, Tensor, Tensor]) -> None:
        self.loaded_keys = loaded_keys
        self.weights = weights

    @classmethod
    def load(cls, x, lora, alpha, dora_scale, loaded_keys=None):
        """Files are read by `trilora.files`; ComfyUI's own reading of a LoRA never makes this patch."""
        return None

    def calculate_weight(
        self, weight, key, strength, strength_model, offset, function, intermediate_dtype=torch.float32,
        original_weight=None,
    ):  # fmt: skip
        cast = comfy.model_management.cast_to_device
        factors = Factors(*(cast(tensor, weight.device, intermediate_dtype) for tensor in self.weights))
        change = strength * delta(factors).reshape(weight.shape)
        weight += function(change.type(weight.dtype))
        return weight

    def h(self, x: Tensor, base_out: Tensor) -> Tensor:
        """The bypass: strength · x ΔWᵀ for a linear layer."""
        factors = Factors(*self.weights).to(x.device)
        return forward(x, scaled(factors, self.multiplier)).to(base_out.dtype)


def key_map(model: ModelPatcher) -> dict[str, Any]:
    """Layer name in a file -> key of the MODEL's weight (or (key, slice)), as ComfyUI maps them."""
    return comfy.lora.model_lora_keys_unet(model.model, {})


def portable_names(model: ModelPatcher, paths: Mapping[str, Any]) -> dict[str, str]:
    """Layer path below the diffusion model -> the name a file gives it.

    kohya's `lora_unet_...` with diffusers' block names where ComfyUI maps them (SD1.x, SD2.x, SDXL), because every
    tool reads those; else `diffusion_model.<path>`.
    """
    unet = comfy.utils.unet_to_diffusers(model.model.model_config.unet_config)
    kohya = {
        inner.removesuffix(".weight"): "lora_unet_" + outer.removesuffix(".weight").replace(".", "_")
        for outer, inner in unet.items()
        if outer.endswith(".weight")
    }
    return {path: kohya.get(path, ROOT + path) for path in paths}


def apply(model: ModelPatcher, adapter: Adapter, strength: float) -> ModelPatcher:
    """A clone of the MODEL with the adapter's U Σ Vᵀ on its weights.

    Raises:
        TargetError: a layer that the MODEL does not have, or one of another shape; nothing is patched then.
    """
    known = key_map(model)
    weights = model.model.state_dict()
    patches = {}
    for name, factors in adapter.layers.items():
        target = known.get(name)
        if target is None:
            raise TargetError(
                f"The layer {name} of the adapter does not exist in this MODEL ({_base(model)}). The adapter was "
                f"trained on {_trained_on(adapter)}: load that base model, or choose another adapter."
            )
        shape = _shape(weights, target)
        if factors.u.shape[0] != shape[0] or factors.vh[0].numel() != shape[1:].numel():
            raise TargetError(
                f"The layer {name} of the adapter is {factors.u.shape[0]} x {tuple(factors.vh.shape[1:])}, but the "
                f"MODEL's weight is {tuple(shape)} ({_base(model)}). The adapter was trained on "
                f"{_trained_on(adapter)}: load that base model."
            )
        patches[target] = TriLoRAPatch({name}, tuple(factors))
    patched = model.clone()
    patched.add_patches(patches, strength)
    return patched


@contextmanager
def named(file: str) -> Iterator[None]:
    """Puts the file's name before what goes wrong within."""
    try:
        yield
    except TargetError as error:
        raise TargetError(f"{file}: {error}") from None


def shape_sigma(model: ModelPatcher, gains: Gains | None, strength: float) -> ModelPatcher:
    """A clone of the MODEL whose adapters have each Σ times its gains and times the strength.

    Works on every low-rank patch, whoever put it there; patches of other kinds take the strength alone.
    Gains of 1, or None, at strength 1 leave the very patches, so nothing changes, bit for bit.

    Raises:
        TriLoRAError: no adapter is on the MODEL.
    """
    shaped = model.clone()
    shaped.patches = {key: [_shaped(p, gains, strength) for p in patches] for key, patches in model.patches.items()}
    shaped.patches_uuid = uuid.uuid4()
    if not any(_adapters(patch) for patches in model.patches.values() for patch in patches):
        raise TriLoRAError(
            "There is no LoRA or TriLoRA on this MODEL whose strength could be set. Connect this node's model input "
            "to the output of a node that loads one."
        )
    return shaped


def factors_of(patch: Any) -> Factors | None:
    """Canonical factors of a patch's adapter, computed once for each; None for what has no U Σ Vᵀ (DoRA, LoHa, ...)."""
    if not isinstance(patch, TriLoRAPatch | LoRAAdapter):
        return None
    if patch not in _CANONICAL:
        if (raw := _raw_factors(patch)) is None:
            return None
        _CANONICAL[patch] = canonical(raw)
    return _CANONICAL[patch]


_CANONICAL: weakref.WeakKeyDictionary[WeightAdapterBase, Factors] = weakref.WeakKeyDictionary()


def _raw_factors(patch: WeightAdapterBase) -> Factors | None:
    if isinstance(patch, TriLoRAPatch):
        return Factors(*patch.weights)
    up, down, alpha, mid, dora_scale, reshape = patch.weights
    if mid is not None or dora_scale is not None or reshape is not None:
        return None
    scale = 1.0 if alpha is None else alpha / down.shape[0]
    return Factors(up.flatten(1), torch.full((down.shape[0],), scale, device=up.device), down)


def _shaped(patch: tuple, gains: Gains | None, strength: float) -> tuple:
    """One entry of `model.patches`, (strength, adapter, strength of the model, offset, function), with Σ shaped."""
    amount, adapter, *rest = patch
    if isinstance(adapter, list):  # a merge of models: [its weight, its own patches ...]
        return (amount, [adapter[0], *(_shaped(inner, gains, strength) for inner in adapter[1:])], *rest)
    if not isinstance(adapter, WeightAdapterBase):
        return patch
    factors = factors_of(adapter) if gains else None
    if gains is None or factors is None:
        return (amount * strength, adapter, *rest)
    by_value = gains(factors.sigma)
    if bool((by_value == 1).all()):
        return (amount * strength, adapter, *rest)
    return (amount * strength, TriLoRAPatch(adapter.loaded_keys, tuple(scaled(factors, by_value))), *rest)


def _adapters(patch: tuple) -> list[WeightAdapterBase]:
    if isinstance(patch[1], list):
        return [adapter for inner in patch[1][1:] for adapter in _adapters(inner)]
    return [patch[1]] if isinstance(patch[1], WeightAdapterBase) else []


def _shape(weights: Mapping[str, Tensor], target: Any) -> torch.Size:
    if isinstance(target, str):
        return weights[target].shape
    key, (dimension, _, length) = target[0], target[1]
    shape = list(weights[key].shape)
    shape[dimension] = length
    return torch.Size(shape)


def file_of(model: ModelPatcher) -> str:
    """Name of the file that the MODEL was loaded from, or "" where its loader does not say."""
    arguments = model.cached_patcher_init[1] if model.cached_patcher_init else ()
    return Path(arguments[0]).name if arguments and isinstance(arguments[0], str) else ""


def _base(model: ModelPatcher) -> str:
    return type(model.model).__name__


def _trained_on(adapter: Adapter) -> str:
    return adapter.metadata.get("ss_base_model_version") or adapter.metadata.get(
        "modelspec.architecture", "another architecture"
    )
