"""The bridge between factors and ComfyUI's MODEL: names, patches, and the adapters that are already on it."""

import weakref
from collections.abc import Container, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import comfy.lora
import comfy.model_management
import comfy.utils
import torch
from comfy.model_patcher import ModelPatcher
from comfy.sd import CLIP
from comfy.weight_adapter import LoRAAdapter, WeightAdapterBase
from torch import Tensor, nn

from ..trilora.errors import TargetError
from ..trilora.factors import Factors, canonical, delta, forward, scaled
from ..trilora.files import Adapter, fold_mid

ROOT = "diffusion_model."
TEXT_ENCODERS = ("lora_te", "lora_prior_te", "text_encoder")  # how names of their layers begin
DIFFERENCES = (".diff", ".diff_b", ".w_norm", ".b_norm", ".set_weight")


class LayerNames(set):
    """The layer names of one loaded adapter, shared by all its patches: what tells adapters on a MODEL apart.

    ComfyUI's own loader shares one such set as well; `file` is empty there.
    """

    def __init__(self, names: Iterable[str], file: str = "") -> None:
        super().__init__(names)
        self.file = file


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

    @property
    def factors(self) -> Factors:
        """U Σ Vᵀ that acts, Σ with its gains."""
        return Factors(*self.weights)

    def calculate_weight(
        self, weight, key, strength, strength_model, offset, function, intermediate_dtype=torch.float32,
        original_weight=None,
    ):  # fmt: skip
        cast = comfy.model_management.cast_to_device
        factors = Factors(*(cast(tensor, weight.device, intermediate_dtype) for tensor in self.factors))
        change = delta(scaled(factors, strength)).reshape(weight.shape)
        weight += function(change.type(weight.dtype))
        return weight

    def h(self, x: Tensor, base_out: Tensor) -> Tensor:
        """The bypass: strength · x ΔWᵀ for a linear layer."""
        return forward(x, scaled(self.factors.to(x.device), self.multiplier)).to(base_out.dtype)


class ShapedPatch(TriLoRAPatch):
    """W += strength · U Σ G Vᵀ: canonical factors as they were loaded, and a gain for each singular value.

    `weights` are (u, sigma, vh, gains). Gains of nodes in a row multiply here, whatever their order.
    """

    weights: tuple[Tensor, Tensor, Tensor, Tensor]

    @property
    def factors(self) -> Factors:
        return scaled(Factors(*self.weights[:3]), self.weights[3])


def key_map(model: ModelPatcher) -> dict[str, Any]:
    """Layer name in a file -> key of the MODEL's weight (or (key, slice)), as ComfyUI maps them.

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
    layers = {name: factors for name, factors in adapter.layers.items() if not is_text(name)}
    return _patches(model.model, "MODEL", key_map(model), layers, adapter, file)


def clip_patches(encoder: nn.Module, adapter: Adapter, file: str = "") -> dict[Any, TriLoRAPatch]:
    """What `add_patches` of the CLIP around this encoder takes; raises as `apply` does."""
    layers = {name: adapter.layers[name] for name in text_layers(adapter)}
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
    """What `add_patches` takes: target -> patch. All of them share one `LayerNames`."""
    weights, names, patches = root.state_dict(), LayerNames(layers, file), {}
    base = f"this {what} ({type(root).__name__})"
    trained = f"The adapter was trained on {_trained_on(adapter)}: load that base model"
    for name, factors in layers.items():
        target = known.get(name)
        if target is None or _key(target) not in weights:
            raise TargetError(
                f"The layer {name} of the adapter does not exist in {base}. {trained}, or choose another."
            )
        shape = _shape(root, target)
        if factors.u.shape[0] != shape[0] or factors.vh[0].numel() != shape[1:].numel():
            size = f"{factors.u.shape[0]} x {tuple(factors.vh.shape[1:])}"
            raise TargetError(
                f"The layer {name} of the adapter is {size}, but the weight is {tuple(shape)} in {base}. {trained}."
            )
        patches[target] = TriLoRAPatch(names, tuple(factors))
    return patches


@contextmanager
def named(file: str) -> Iterator[None]:
    """Puts the file's name before what goes wrong within."""
    try:
        yield
    except TargetError as error:
        raise TargetError(f"{file}: {error}") from None


class Layer(NamedTuple):
    """One adapter on one weight of a MODEL."""

    patch: Any  # ComfyUI's: a WeightAdapterBase, or a tuple such as ("diff", (tensor,))
    strength: float  # what multiplies it, shares of merges included

    @property
    def factors(self) -> Factors | None:
        """Canonical U Σ Vᵀ at strength 1; None where there is none (DoRA, LoHa, ...).

        Σ as TriLoRA Strength left it, in the order as loaded; without such a node it descends.
        """
        factors = factors_of(self.patch)
        return scaled(factors, self.patch.weights[3]) if isinstance(self.patch, ShapedPatch) else factors

    @property
    def has_sigma(self) -> bool:
        """Whether there is a Σ to shape; if not, only the strength acts."""
        return isinstance(self.patch, TriLoRAPatch) or kind_of(self.patch) == "LoRA"

    @property
    def kind(self) -> str:
        """What it is, in a word that artists know."""
        return kind_of(self.patch)


@dataclass(frozen=True)
class Patched:
    """One loaded LoRA or TriLoRA on a MODEL.

    Attributes:
        number: counted from 1 as they were loaded.
        name: of its file; "" where its loader left no name.
        layers: layer path as in the MODEL, without `diffusion_model.` and `.weight` -> what lies there. A part of a
            fused weight has its rows in brackets: `double_blocks.0.img_attn.qkv[0:3072]`.
    """

    number: int
    name: str
    layers: dict[str, Layer]

    @property
    def label(self) -> str:
        """How it is called on a node."""
        return f"{self.number}. {self.name or 'adapter'}"

    def only(self, paths: Container[str]) -> "Patched":
        """The same adapter with these of its layers."""
        return replace(self, layers={path: layer for path, layer in self.layers.items() if path in paths})

    @property
    def factors(self) -> dict[str, Factors]:
        """Layer path -> canonical factors at strength 1, of the layers that have them."""
        return {path: factors for path, layer in self.layers.items() if (factors := layer.factors) is not None}


def adapters_on(model: ModelPatcher) -> list[Patched]:
    """The adapters on a MODEL, first loaded first, from TriLoRA's and ComfyUI's own loaders, merges included."""
    groups: dict[int, dict[str, Layer]] = {}
    names: dict[int, set[str]] = {}
    earlier: dict[int, set[int]] = {}
    unmarked: list[tuple[str, Layer]] = []
    for key, patches in model.patches.items():
        before: set[int] = set()
        for layer, offset in _layers(patches):
            if not isinstance(layer.patch, WeightAdapterBase):
                unmarked.append((_path(key, offset), layer))
                continue
            mark = id(layer.patch.loaded_keys)
            names[mark] = layer.patch.loaded_keys
            _put(groups.setdefault(mark, {}), _path(key, offset), layer)
            earlier.setdefault(mark, set()).update(before - {mark})
            before.add(mark)
    found = [
        Patched(number, getattr(names[mark], "file", ""), groups[mark])
        for number, mark in enumerate(_in_order(earlier), start=1)
    ]
    for path, layer in unmarked:
        _put(_home(found, layer), path, layer)
    return found


def _in_order(earlier: Mapping[int, set[int]]) -> list[int]:
    """Adapters so that each comes behind those that lie under it on some weight; else as they were first seen."""
    order: list[int] = []
    while left := [mark for mark in earlier if mark not in order]:
        order.append(next((mark for mark in left if earlier[mark] <= set(order)), left[0]))
    return order


def _layers(patches: list[tuple], outer: float = 1.0) -> list[tuple[Layer, Any]]:
    """Everything on one weight with its offset, in the order of loading, inside merges too."""
    found: list[tuple[Layer, Any]] = []
    for amount, patch, kept, offset, _function in reversed(patches):
        if isinstance(patch, list):  # a merge of models: [its weight, its own patches ...]
            found += reversed(_layers(patch[1:], outer * amount))
        else:
            found.append((Layer(patch, outer * amount), offset))
        outer *= kept  # what a later merge keeps of this weight
    return found[::-1]


def _home(found: list[Patched], layer: Layer) -> dict[str, Layer]:
    """Where a full difference belongs: its loader left no mark, so the adapter of its strength that came with some."""
    for adapter in found:
        some = next(iter(adapter.layers.values()))
        keys = getattr(some.patch, "loaded_keys", None)
        with_differences = keys is None or any(name.endswith(DIFFERENCES) for name in keys)
        if some.strength == layer.strength and with_differences:
            return adapter.layers
    found.append(Patched(len(found) + 1, "", {}))
    return found[-1].layers


def _put(layers: dict[str, Layer], path: str, layer: Layer) -> None:
    while path in layers:  # a merge of two models that share the adapter
        path += " (merged)"
    layers[path] = layer


def _path(key: str, offset: tuple[int, int, int] | None) -> str:
    path = key.removeprefix(ROOT).removesuffix(".weight")
    return f"{path}[{offset[1]}:{offset[1] + offset[2]}]" if offset else path


def kind_of(patch: Any) -> str:
    """What a patch is, in a word that artists know: TriLoRA, LoRA, DoRA, LoHa, full difference, ..."""
    if isinstance(patch, TriLoRAPatch):
        return "TriLoRA"
    if isinstance(patch, LoRAAdapter):
        _up, _down, _alpha, _mid, dora_scale, reshape = patch.weights
        return "DoRA" if dora_scale is not None else "LoRA that widens its layer" if reshape is not None else "LoRA"
    if isinstance(patch, WeightAdapterBase):
        return type(patch).__name__.removesuffix("Adapter")
    return "replaced weight, which stays" if patch[0] == "set" else "full difference"


def factors_of(patch: Any) -> Factors | None:
    """Canonical factors of a patch as it was loaded, computed once; None for what has no U Σ Vᵀ (DoRA, LoHa, ...).

    They live as long as the patch does, on its device.
    """
    if isinstance(patch, ShapedPatch):
        return Factors(*patch.weights[:3])
    if not isinstance(patch, TriLoRAPatch | LoRAAdapter):
        return None
    if patch not in _CANONICAL:
        if (raw := _raw_factors(patch)) is None:
            return None
        device = comfy.model_management.get_torch_device()
        _CANONICAL[patch] = raw if _is_canonical(raw) else canonical(raw.to(device)).to(raw.u.device)
    return _CANONICAL[patch]


_CANONICAL: weakref.WeakKeyDictionary[WeightAdapterBase, Factors] = weakref.WeakKeyDictionary()


def _is_canonical(factors: Factors) -> bool:
    """Whether they are a compact SVD already, as those of files and of training are."""
    u, sigma, vh = factors
    if sigma.ndim > 1 or bool((sigma < 0).any()) or bool((sigma.diff() > 0).any()):
        return False
    rows = vh.flatten(1)
    one = torch.eye(len(sigma), dtype=u.dtype, device=u.device)
    return all(torch.allclose(product, one, atol=1e-5) for product in (u.T @ u, rows @ rows.T))


def _raw_factors(patch: WeightAdapterBase) -> Factors | None:
    if isinstance(patch, TriLoRAPatch):
        return patch.factors
    up, down, alpha, mid, dora_scale, reshape = patch.weights
    if dora_scale is not None or reshape is not None:
        return None
    scale = 1.0 if alpha is None else alpha / down.shape[0]
    folded = down if mid is None else fold_mid(down, mid)
    return Factors(up.flatten(1), torch.full((down.shape[0],), scale, device=up.device), folded)


def _key(target: Any) -> str:
    return target if isinstance(target, str) else target[0]


def _shape(root: nn.Module, target: Any) -> torch.Size:
    """The weight's own shape, which a quantised one does not have in the state dict; or that of a slice."""
    shape = list(comfy.utils.get_attr(root, _key(target)).shape)
    if not isinstance(target, str):
        dimension, _start, length = target[1]
        shape[dimension] = length
    return torch.Size(shape)


def file_of(model: ModelPatcher) -> str:
    """Name of the file that the MODEL was loaded from, or "" where its loader does not say."""
    arguments = model.cached_patcher_init[1] if model.cached_patcher_init else ()
    return Path(arguments[0]).name if arguments and isinstance(arguments[0], str) else ""


def _trained_on(adapter: Adapter) -> str:
    return adapter.metadata.get("ss_base_model_version") or adapter.metadata.get(
        "modelspec.architecture", "another architecture"
    )
