"""Which layers learn: a table of attention layer names per model family, presets, glob patterns."""

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from typing import NamedTuple

from torch import nn

from .errors import TargetError


class Family(NamedTuple):
    """Layer names of one architecture, as glob patterns on the module path."""

    name: str
    mark: str  # a path that only this family has
    self_attention: tuple[str, ...]
    cross_attention: tuple[str, ...]  # joint attention counts as self-attention
    mlp: tuple[str, ...]


FAMILIES = (
    Family(  # SD1.x, SD2.x, SDXL, in ComfyUI's and in diffusers' UNet alike
        "unet",
        "*.transformer_blocks.*.attn2.to_q",
        ("*.attn1.to_q", "*.attn1.to_k", "*.attn1.to_v", "*.attn1.to_out.0"),
        ("*.attn2.to_q", "*.attn2.to_k", "*.attn2.to_v", "*.attn2.to_out.0"),
        ("*.ff.net.0.proj", "*.ff.net.2"),
    ),
    Family(
        "sd3",
        "joint_blocks.*.x_block.attn.qkv",
        ("joint_blocks.*.attn.qkv", "joint_blocks.*.attn.proj", "*.attn2.qkv", "*.attn2.proj"),
        (),
        ("joint_blocks.*.mlp.fc1", "joint_blocks.*.mlp.fc2"),
    ),
    Family(  # Flux, Chroma, HunyuanVideo; a single block's linear1 holds qkv and MLP in one, linear2 both outputs
        "flux",
        "double_blocks.*.img_attn.qkv",
        ("*_blocks.*_attn.qkv", "*_blocks.*_attn.proj", "single_blocks.*.linear1", "single_blocks.*.linear2"),
        (),
        ("double_blocks.*.img_mlp.*", "double_blocks.*.txt_mlp.*"),
    ),
    Family(
        "lumina",  # Lumina 2, Z-Image
        "layers.*.attention.qkv",
        ("*.attention.qkv", "*.attention.out"),
        (),
        ("*.feed_forward.w1", "*.feed_forward.w2", "*.feed_forward.w3"),
    ),
    Family(
        "qwen-image",
        "transformer_blocks.*.attn.add_q_proj",
        ("*.attn.to_q", "*.attn.to_k", "*.attn.to_v", "*.attn.to_out.0", "*.attn.add_?_proj", "*.attn.to_add_out"),
        (),
        ("*.img_mlp.net.*", "*.txt_mlp.net.*"),
    ),
    Family(
        "wan",
        "blocks.*.cross_attn.o",
        ("blocks.*.self_attn.[qkvo]",),
        ("blocks.*.cross_attn.[qkvo]", "blocks.*.cross_attn.[kv]_img"),
        ("blocks.*.ffn.*",),
    ),
    Family(
        "pixart",
        "blocks.*.cross_attn.kv_linear",
        ("blocks.*.attn.qkv", "blocks.*.attn.proj"),
        ("blocks.*.cross_attn.q_linear", "blocks.*.cross_attn.kv_linear", "blocks.*.cross_attn.proj"),
        ("blocks.*.mlp.fc1", "blocks.*.mlp.fc2"),
    ),
    Family(
        "auraflow",
        "double_layers.*.attn.w1q",
        ("*.attn.w[12][qkvo]",),
        (),
        ("*.mlp*.c_fc1", "*.mlp*.c_fc2", "*.mlp*.c_proj"),
    ),
)

PRESETS = ("attention", "self-attention", "cross-attention", "attention + mlp", "all linear")


def linear_layers(root: nn.Module) -> dict[str, nn.Linear]:
    """Path -> module of every linear layer below `root`, in the model's order."""
    return {path: module for path, module in root.named_modules() if isinstance(module, nn.Linear)}


def family_of(paths: Iterable[str]) -> Family | None:
    """The first family whose mark one of the paths matches."""
    paths = list(paths)
    return next((f for f in FAMILIES if any(fnmatchcase(path, f.mark) for path in paths)), None)


def patterns_of(family: Family, preset: str) -> tuple[str, ...]:
    """The glob patterns of a preset for a family."""
    attention = family.self_attention + family.cross_attention
    return {
        "attention": attention,
        "self-attention": family.self_attention,
        "cross-attention": family.cross_attention,
        "attention + mlp": attention + family.mlp,
        "all linear": ("*",),
    }[preset]


def matching(paths: Iterable[str], patterns: Sequence[str]) -> list[str]:
    """The paths that match any of the patterns, in their own order."""
    return [path for path in paths if any(fnmatchcase(path, pattern) for pattern in patterns)]


def select(root: nn.Module, choice: str = "attention") -> dict[str, nn.Linear]:
    """The linear layers to adapt.

    Args:
        root: the network whose layers are chosen.
        choice: a preset's name, or glob patterns on the layer path, separated by commas or line breaks.

    Returns:
        Layer path -> module, in the model's order.

    Raises:
        TargetError: nothing matches, or a preset is asked of an architecture that the table does not know.
    """
    layers = linear_layers(root)
    family = family_of(layers)
    if choice == "all linear":
        patterns: Sequence[str] = ("*",)
    elif choice not in PRESETS:
        patterns = [part.strip() for part in choice.replace("\n", ",").split(",") if part.strip()]
    elif family is None:
        raise TargetError(
            f"The preset {choice!r} was asked for, but {type(root).__name__} is not in the table of known "
            f"architectures ({', '.join(f.name for f in FAMILIES)}). Choose 'all linear', or give glob patterns such "
            f"as {next(iter(layers), 'blocks.0.attn.qkv')!r}."
        )
    else:
        patterns = patterns_of(family, choice)
    chosen = matching(layers, patterns)
    if not chosen:
        examples = ", ".join(list(layers)[:3]) or "none"
        raise TargetError(
            f"No linear layer of {type(root).__name__} matches {choice!r}. Its layers have names such as {examples}: "
            "change the targets."
        )
    return {path: layers[path] for path in chosen}
