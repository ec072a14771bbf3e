"""What an adapter is on one weight: our own patches, and the U Σ Vᵀ of whatever ComfyUI's loaders put there."""

import weakref
from collections.abc import Iterable
from typing import Any

import comfy.model_management
import torch
from comfy.weight_adapter import LoRAAdapter, WeightAdapterBase
from torch import Tensor
from torch.nn.functional import linear

from ..trilora.factors import Factors, canonical_once, delta, scaled
from ..trilora.files import fold_mid


class LayerNames(set):
    """The layer names of one loaded adapter, shared by all its patches: what tells adapters on a MODEL apart.

    ComfyUI's own loader shares one such set as well; `file` is empty there.
    """

    def __init__(self, names: Iterable[str], file: str = "") -> None:
        super().__init__(names)
        self.file = file


class TriLoRAPatch(WeightAdapterBase):
    """W += strength · U Σ Vᵀ, as a patch on one weight; `weights` are (u (out, r), sigma (r,), vh (r, *in)).

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
        """The bypass: strength · x ΔWᵀ for a linear layer; Σ scales the (..., r) between, which is the smallest."""
        u, sigma, vh = (tensor.to(x.device, x.dtype) for tensor in self.factors)
        return linear(linear(x, vh) * (self.multiplier * sigma), u).to(base_out.dtype)


class ShapedPatch(TriLoRAPatch):
    """W += strength · U Σ G Vᵀ: canonical factors as they were loaded, and a gain for each singular value.

    `weights` are (u, sigma, vh, gains). Gains of nodes in a row multiply here, whatever their order.
    """

    weights: tuple[Tensor, Tensor, Tensor, Tensor]

    @property
    def factors(self) -> Factors:
        return scaled(Factors(*self.weights[:3]), self.weights[3])


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

    They live as long as the patch does, or the file that it came from, on its device.
    """
    if isinstance(patch, ShapedPatch):
        return Factors(*patch.weights[:3])
    if not isinstance(patch, TriLoRAPatch | LoRAAdapter):
        return None
    if patch not in _CANONICAL:
        if (raw := _raw_factors(patch)) is None:
            return None
        device = comfy.model_management.get_torch_device()
        _CANONICAL[patch] = raw if _is_canonical(raw) else canonical_once(raw, device)
    return _CANONICAL[patch]


_CANONICAL: weakref.WeakKeyDictionary[WeightAdapterBase, Factors] = weakref.WeakKeyDictionary()


def _is_canonical(factors: Factors) -> bool:
    """Whether they are a compact SVD already, as those of training are."""
    u, sigma, vh = factors
    if sigma.ndim > 1 or bool((sigma < 0).any()) or bool((sigma.diff() > 0).any()):
        return False
    u, rows = u.float(), vh.flatten(1).float()
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
