"""LoRA files as the world's trainers write them: namings, ranks, dtypes, convolutions; and what each changes."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from strategies import randn
from torch import Tensor

BLOCK = "attentions.0.transformer_blocks.0"
LINEAR = (
    f"down_blocks.0.{BLOCK}.attn1.to_q",
    f"mid_block.{BLOCK}.attn2.to_k",
    f"mid_block.{BLOCK}.ff.net.2",
    f"up_blocks.1.{BLOCK}.attn1.to_out.0",
)
CONVOLUTIONS = (
    "down_blocks.1.resnets.0.conv1",
    "mid_block.attentions.0.proj_in",
    "up_blocks.0.resnets.1.conv_shortcut",
    "up_blocks.1.resnets.0.conv2",
)
SUFFIXES = {  # naming -> (up, down)
    "kohya": (".lora_up.weight", ".lora_down.weight"),
    "diffusers": (".lora.up.weight", ".lora.down.weight"),
    "PEFT": (".lora_B.weight", ".lora_A.weight"),
}


@dataclass
class LoraFile:
    """The tensors of a file, and layer key in ComfyUI -> the change it makes there, in float64."""

    tensors: dict[str, Tensor] = field(default_factory=dict)
    changes: dict[str, Tensor] = field(default_factory=dict)


def layer_name(naming: str, outer: str, inner: str) -> str:
    """A layer's name in a file, from diffusers' path and ComfyUI's."""
    if naming == "kohya":
        return "lora_unet_" + outer.replace(".", "_")
    if naming == "PEFT":
        return "diffusion_model." + inner
    attention = outer.replace(".to_", ".processor.to_").removesuffix(".0") if ".to_" in outer else outer
    return "unet." + attention


def write(
    model: Any,
    naming: str = "kohya",
    layers: tuple[str, ...] = LINEAR,
    rank: int = 4,
    dtype: torch.dtype = torch.float32,
    alpha: float | None = None,
    mid: bool = False,
    seed: int = 0,
) -> LoraFile:
    """A file for some layers, named as diffusers names them, of a ComfyUI MODEL."""
    file, weights, inner = LoraFile(), model.model.state_dict(), diffusers_names(model)
    for number, outer in enumerate(layers):
        key = f"diffusion_model.{inner[outer]}.weight"
        out, ins, *kernel = weights[key].shape
        up = (randn(seed + 3 * number, out, rank, *[1] * len(kernel)) / 8).to(dtype)
        down = (randn(seed + 3 * number + 1, rank, ins, *([1] * len(kernel) if mid else kernel)) / 8).to(dtype)
        name = layer_name(naming, outer, inner[outer])
        file.tensors |= {name + SUFFIXES[naming][0]: up, name + SUFFIXES[naming][1]: down}
        inside = down.double()
        if mid:
            middle = (randn(seed + 3 * number + 2, rank, rank, *kernel) / 2).to(dtype)
            file.tensors[name + ".lora_mid.weight"] = middle
            inside = torch.einsum("rskl,sixy->rikl", middle.double(), inside)
        if alpha is not None:
            file.tensors[name + ".alpha"] = torch.tensor(alpha)
        change = up.double().flatten(1) @ inside.flatten(1) * (1 if alpha is None else alpha / rank)
        file.changes[key] = change.view(weights[key].shape)
    return file


def diffusers_names(model: Any) -> Mapping[str, str]:
    """diffusers' layer path -> ComfyUI's, of a UNet."""
    import comfy.utils

    names = comfy.utils.unet_to_diffusers(model.model.model_config.unet_config)
    return {outer.removesuffix(".weight"): inner.removesuffix(".weight") for outer, inner in names.items()}
