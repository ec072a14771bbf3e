"""What a UNet's layers are called: by diffusers, by Stability's own code (which ComfyUI follows), and by kohya."""

import re

from torch import nn

from ..errors import TargetError

KOHYA, COMFYUI = "lora_unet_", "diffusion_model."
INSIDE = {  # diffusers' names of a residual block's layers -> Stability's
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
ENDS = {  # what stands before and behind the blocks
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
}
COMPOUND = (  # words of module paths that hold an underscore themselves
    "down_blocks", "up_blocks", "mid_block", "transformer_blocks", "input_blocks", "middle_block", "output_blocks",
    "to_q", "to_k", "to_v", "to_out", "proj_in", "proj_out", "conv_in", "conv_out", "conv_norm_out", "conv_shortcut",
    "time_emb_proj", "time_embedding", "add_embedding", "linear_1", "linear_2", "in_layers", "emb_layers", "out_layers",
    "skip_connection", "time_embed", "label_emb", "text_model", "self_attn", "q_proj", "k_proj", "v_proj", "out_proj",
    "text_projection",
)  # fmt: skip
_WORDS = re.compile("|".join(sorted((word.replace("_", r"\.") for word in COMPOUND), key=len, reverse=True)))


def stability(path: str, depth: int = 2) -> str:
    """A layer's path in a diffusers UNet as Stability's code has it.

    Args:
        path: such as `down_blocks.0.attentions.1.proj_in`.
        depth: residual blocks a level (`layers_per_block`): 2 in every published Stable Diffusion.
    """
    for ours, theirs in ENDS.items():
        if path == ours:
            return theirs
    part, _, rest = path.partition(".")
    if part not in ("down_blocks", "mid_block", "up_blocks"):
        return path
    if part == "mid_block":
        kind, number, inner = rest.split(".", 2)
        place = f"middle_block.{1 if kind == 'attentions' else 2 * int(number)}"
        return f"{place}.{_inside(kind, inner)}"
    level, kind, number, inner = rest.split(".", 3)
    first = int(level) * (depth + 1)
    if part == "down_blocks":
        if kind == "downsamplers":
            return f"input_blocks.{first + depth + 1}.0.op"
        return f"input_blocks.{first + int(number) + 1}.{int(kind == 'attentions')}.{_inside(kind, inner)}"
    if kind == "upsamplers":
        return f"output_blocks.{first + depth}.2.conv"  # of a level without attention: .1.conv
    return f"output_blocks.{first + int(number)}.{int(kind == 'attentions')}.{_inside(kind, inner)}"


def diffusers_path(path: str, depth: int = 2) -> str:
    """A layer's path in a diffusers UNet, from its path there or in Stability's code; undoes `stability`.

    Raises:
        TargetError: neither of the two.
    """
    if path.startswith(("down_blocks.", "mid_block.", "up_blocks.")) or path in ENDS:
        return path
    for ours, theirs in ENDS.items():
        if path == theirs:
            return ours
    part, *rest = path.split(".", 3 if path.startswith(("input", "output")) else 2)
    if part == "middle_block" and len(rest) == 2:
        return f"mid_block.{'attentions.0' if rest[0] == '1' else f'resnets.{int(rest[0]) // 2}'}.{_outside(rest[1])}"
    if part not in ("input_blocks", "output_blocks") or len(rest) < 3:
        raise TargetError(f"The layer {path} is none of a Stable Diffusion UNet, so it can't be named in another way.")
    side = "down" if part == "input_blocks" else "up"
    level, number = divmod(int(rest[0]) - (side == "down"), depth + 1)
    if rest[2] in ("op", "conv"):
        return f"{side}_blocks.{level}.{side}samplers.0.conv"
    return f"{side}_blocks.{level}.{'attentions' if rest[1] == '1' else 'resnets'}.{number}.{_outside(rest[2])}"


def _outside(inner: str) -> str:
    return next((ours for ours, theirs in INSIDE.items() if inner == theirs), inner)


def _inside(kind: str, inner: str) -> str:
    return INSIDE.get(inner, inner) if kind == "resnets" else inner


def kohya(path: str) -> str:
    """A UNet layer's name in the files that this package writes: `lora_unet_` and diffusers' path."""
    return KOHYA + path.replace(".", "_")


def names_of(unet: nn.Module, depth: int) -> dict[str, str]:
    """Every name that files give a layer of a diffusers UNet -> its path."""
    known: dict[str, str] = {}
    for path, module in unet.named_modules():
        if path and getattr(module, "weight", None) is not None:
            theirs = stability(path, depth)
            several = [theirs, theirs.replace(".2.conv", ".1.conv")] if "upsamplers" in path else [theirs]
            for name in [path, _processor(path), *several]:
                for prefix in ("", "unet.", "base_model.model.", COMFYUI):
                    known.setdefault(prefix + name, path)
                known.setdefault(KOHYA + name.replace(".", "_"), path)
    return known


def text_names_of(encoder: nn.Module, number: int) -> dict[str, str]:
    """Every name that files give a layer of a pipeline's text encoder, the first or the second -> its path."""
    prefixes = {1: ("lora_te_", "lora_te1_"), 2: ("lora_te2_",)}[number]
    component = "text_encoder" if number == 1 else "text_encoder_2"
    known: dict[str, str] = {}
    for path, module in encoder.named_modules():
        if path and getattr(module, "weight", None) is not None:
            whole = path if path.startswith("text_") else f"text_model.{path}"  # newer transformers leave it out
            known |= {prefix + whole.replace(".", "_"): path for prefix in prefixes}
            known |= {f"{component}.{name}": path for name in (whole, path)}
    return known


def dotted(name: str) -> str:
    """A path whose dots were written as underscores, as kohya does."""
    return _WORDS.sub(lambda word: word.group().replace(".", "_"), name.replace("_", "."))


def _processor(path: str) -> str:
    """The older name of an attention layer in diffusers' files: `attn1.processor.to_out` for `attn1.to_out.0`."""
    return re.sub(r"\.(to_[qkv]|to_out)(\.0)?$", r".processor.\1", path)
