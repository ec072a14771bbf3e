"""Adapters put on ComfyUI's MODEL and CLIP: the names of their layers, and patches on its weights."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import comfy.lora
import comfy.utils
import torch
from comfy.model_patcher import ModelPatcher
from comfy.sd import CLIP
from torch import nn

from ..trilora.errors import TargetError
from ..trilora.factors import Factors, merged
from ..trilora.files import Adapter
from .patches import LayerNames, TriLoRAPatch

ROOT = "diffusion_model."
TEXT_ENCODERS = ("lora_te", "lora_prior_te", "text_encoder")  # how names of their layers begin


def key_map(model: ModelPatcher) -> dict[str, Any]:
    """Layer name in a file -> key of the MODEL's weight, as ComfyUI maps them; or (key, slice or None, and where the
    file has the rows in another order, a function that puts a change in the weight's).

    Beside them PEFT's names of a diffusers UNet, which ComfyUI knows in the older `.processor.` form alone.
    """
    known = comfy.lora.model_lora_keys_unet(model.model, {})
    for outer, inner in comfy.utils.unet_to_diffusers(model.model.model_config.unet_config).items():
        for prefix in ("", "unet.", "base_model.model."):
            known.setdefault(prefix + outer.removesuffix(".weight"), ROOT + inner)
    return known


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


def apply(model: ModelPatcher, adapter: Adapter, strength: float, file: str = "") -> ModelPatcher:
    """A clone of the MODEL with the adapter's U Σ Vᵀ on its weights; text encoder layers are left to `apply_to_clip`.

    Raises:
        TargetError: a layer that the MODEL does not have, or one of another shape; nothing is patched then.
    """
    patches = model_patches(model, adapter, file)
    patched = model.clone()
    patched.add_patches(patches, strength)
    return patched


def apply_to_clip(clip: CLIP, adapter: Adapter, strength: float, file: str = "") -> CLIP:
    """A clone of the CLIP with the adapter's text encoder layers on it.

    Raises:
        TargetError: as for `apply`.
    """
    patches = clip_patches(clip.cond_stage_model, adapter, file)
    patched = clip.clone()
    patched.add_patches(patches, strength)
    return patched


def model_patches(model: ModelPatcher, adapter: Adapter, file: str = "") -> dict[Any, TriLoRAPatch]:
    """What `add_patches` of the MODEL takes; raises as `apply` does."""
    layers = {name: factors for name, factors in adapter.raw.items() if not is_text(name)}
    return _patches(model.model, "MODEL", key_map(model), layers, adapter, file)


def clip_patches(encoder: nn.Module, adapter: Adapter, file: str = "") -> dict[Any, TriLoRAPatch]:
    """What `add_patches` of the CLIP around this encoder takes; raises as `apply` does."""
    layers = {name: adapter.raw[name] for name in text_layers(adapter)}
    return _patches(encoder, "CLIP", comfy.lora.model_lora_keys_clip(encoder, {}), layers, adapter, file)


def is_text(name: str) -> bool:
    """Whether a file's layer belongs to a text encoder."""
    return name.startswith(TEXT_ENCODERS)


def text_layers(adapter: Adapter) -> list[str]:
    """The adapter's text encoder layers."""
    return [name for name in adapter.layers if is_text(name)]


def _patches(
    root: nn.Module, what: str, known: Mapping[str, Any], layers: Mapping[str, Factors], adapter: Adapter, file: str
) -> dict[Any, TriLoRAPatch]:
    """What `add_patches` takes: target -> patch. All of them share one `LayerNames`.

    Layers under two names of one weight add.
    """
    weights, parts = root.state_dict(), {}
    base = f"this {what} ({type(root).__name__})"
    trained = f"The adapter was trained on {_trained_on(adapter)}: load that base model"
    for name, factors in layers.items():
        target = known.get(name)
        if target is None or _key(target) not in weights:
            raise TargetError(
                f"The layer {name} of the adapter does not exist in {base}. {trained}, or choose another."
            )
        shape = shape_of(root, target)
        if factors.u.shape[0] != shape[0] or factors.vh[0].numel() != shape[1:].numel():
            size = f"{factors.u.shape[0]} x {tuple(factors.vh.shape[1:])}"
            raise TargetError(
                f"The layer {name} of the adapter is {size}, but the weight is {tuple(shape)} in {base}. {trained}."
            )
        parts.setdefault(target, []).append(factors)
    names = LayerNames(layers, file)
    return {target: TriLoRAPatch(names, tuple(_together(several))) for target, several in parts.items()}


def _together(several: Sequence[Factors]) -> Factors:
    """Their sum; a 1 x 1 convolution may be a linear layer under another name."""
    if len(several) == 1:
        return several[0]
    shape = several[0].vh.shape[1:]
    alike = [Factors(f.u.float(), f.sigma, f.vh.float().reshape(-1, *shape)) for f in several]
    return merged(alike, [1.0] * len(alike))


def path_of(key: str) -> str:
    """A weight's key in a MODEL -> its layer's path below the diffusion model."""
    return key.removeprefix(ROOT).removesuffix(".weight")


@contextmanager
def named(file: str) -> Iterator[None]:
    """Puts the file's name before what goes wrong within."""
    try:
        yield
    except TargetError as error:
        raise TargetError(f"{file}: {error}") from None


def file_of(model: ModelPatcher) -> str:
    """Name of the file that the MODEL was loaded from, or "" where its loader does not say."""
    arguments = model.cached_patcher_init[1] if model.cached_patcher_init else ()
    return Path(arguments[0]).name if arguments and isinstance(arguments[0], str) else ""


def shape_of(root: nn.Module, target: Any) -> torch.Size:
    """A weight's own shape, which a quantised one does not have in the state dict; or that of a slice."""
    shape = list(comfy.utils.get_attr(root, _key(target)).shape)
    if not isinstance(target, str) and target[1]:
        dimension, _start, length = target[1]
        shape[dimension] = length
    return torch.Size(shape)


def _key(target: Any) -> str:
    return target if isinstance(target, str) else target[0]


def _trained_on(adapter: Adapter) -> str:
    return adapter.metadata.get("ss_base_model_version") or adapter.metadata.get(
        "modelspec.architecture", "another architecture"
    )
