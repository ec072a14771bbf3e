"""A cheap name for a CLIP's or a VAE's weights, the same in every run."""

from typing import Any

from comfy.model_patcher import ModelPatcher
from comfy.quant_ops import QuantizedTensor
from comfyui_version import __version__
from torch import Tensor

from ..trilora.cache import digest, thinned


def of_clip(clip: Any) -> str | None:
    """What decides how a CLIP encodes a text, or None where hooks have a say, which can't be named."""
    if clip.patcher.forced_hooks is not None or clip.apply_hooks_to_conds is not None:
        return None
    return digest([of_weights(clip.patcher), _named(clip.tokenizer), clip.layer_idx, clip.tokenizer_options])


def of_vae(vae: Any) -> str:
    """What decides how a VAE encodes a picture."""
    return digest([of_weights(vae.patcher), str(vae.vae_dtype)])


def of_model(model: ModelPatcher) -> str:
    """What decides how a MODEL learns: its weights, and what nodes have put in place of its parts (noise levels)."""
    weights, parts = of_weights(model), model.object_patches
    replaced = {name: [_kinds(part), getattr(part, "__dict__", {})] for name, part in parts.items()}
    return digest([weights, replaced]) if replaced else weights


def of_weights(patcher: ModelPatcher) -> str:
    """A hash of every weight's name and samples (`thinned`), of the patches on it, and of ComfyUI's version."""
    weights = {
        name: [_sampled(weight), [_sampled(patch) for patch in patcher.patches.get(name, [])]]
        for name, weight in _originals(patcher).items()
    }
    return digest([__version__, _named(patcher.model), weights])


def _originals(patcher: ModelPatcher) -> dict[str, Tensor]:
    """Everything that the model's file holds, as it was before patches changed it.

    `get_key_patches` fails where a weight is quantised: its scale is in the file, but is no attribute of the layer.
    """
    found = dict(patcher.model_state_dict())
    kept = {name: backup.weight for name, backup in patcher.backup.items()}
    for name, weight in (kept | {name: backup[0] for name, backup in patcher.hook_backup.items()}).items():
        found |= weight.state_dict(name) if isinstance(weight, QuantizedTensor) else {name: weight}
    return found


def _sampled(value: Any) -> Any:
    """A nested value with tensors thinned out, and what a patch holds beside numbers by name."""
    if isinstance(value, Tensor):
        return thinned(value)
    if isinstance(value, list | tuple):
        return [_sampled(item) for item in value]
    if hasattr(value, "weights"):  # a weight adapter, such as a LoRA's
        return [_named(value), _sampled(value.weights)]
    return value if isinstance(value, bool | int | float | str | None) else _named(value)


def _kinds(thing: Any) -> list[str]:
    """What it is, and what that is made of: nodes combine classes of one name."""
    return [_named(thing), *(_named(kind) for kind in type(thing).__mro__)]


def _named(thing: Any) -> str:
    kind = thing if hasattr(thing, "__qualname__") else type(thing)
    return f"{kind.__module__}.{kind.__qualname__}"
