"""The adapters that are on a MODEL, whoever loaded them."""

from collections.abc import Container, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from comfy.model_patcher import ModelPatcher
from comfy.weight_adapter import WeightAdapterBase

from ..trilora.factors import Factors, scaled
from .patches import ShapedPatch, TriLoRAPatch, factors_of, kind_of
from .patching import path_of

DIFFERENCES = (".diff", ".diff_b", ".w_norm", ".b_norm", ".set_weight")


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
    path = path_of(key)
    return f"{path}[{offset[1]}:{offset[1] + offset[2]}]" if offset else path
