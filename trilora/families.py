"""Which layers are attention, by model family: a literal table of layer names, as glob patterns on the layer's path."""

from collections.abc import Iterable
from fnmatch import fnmatchcase
from typing import NamedTuple


class Family(NamedTuple):
    """Layer names of one architecture."""

    name: str
    mark: str  # a path that only this family has
    blocks: tuple[str, ...]  # modules along the depth: a list of blocks each, or one block
    self_attention: tuple[str, ...]
    cross_attention: tuple[str, ...]  # joint attention counts as self-attention
    mlp: tuple[str, ...]


FAMILIES = (
    Family(  # SD1.x, SD2.x, SDXL, in ComfyUI's and in diffusers' UNet alike
        "unet",
        "*.transformer_blocks.*.attn2.to_q",
        ("input_blocks", "middle_block", "output_blocks", "down_blocks", "mid_block", "up_blocks"),
        ("*.attn1.to_q", "*.attn1.to_k", "*.attn1.to_v", "*.attn1.to_out.0"),
        ("*.attn2.to_q", "*.attn2.to_k", "*.attn2.to_v", "*.attn2.to_out.0"),
        ("*.ff.net.0.proj", "*.ff.net.2"),
    ),
    Family(
        "sd3",
        "joint_blocks.*.x_block.attn.qkv",
        ("joint_blocks",),
        ("joint_blocks.*.attn.qkv", "joint_blocks.*.attn.proj", "*.attn2.qkv", "*.attn2.proj"),
        (),
        ("joint_blocks.*.mlp.fc1", "joint_blocks.*.mlp.fc2"),
    ),
    Family(  # Flux, Chroma, HunyuanVideo; a single block's linear1 holds qkv and MLP in one, linear2 both outputs
        "flux",
        "double_blocks.*.img_attn.qkv",
        ("double_blocks", "single_blocks"),
        ("*_blocks.*_attn.qkv", "*_blocks.*_attn.proj", "single_blocks.*.linear1", "single_blocks.*.linear2"),
        (),
        ("double_blocks.*.img_mlp.*", "double_blocks.*.txt_mlp.*"),
    ),
    Family(
        "lumina",  # Lumina 2, Z-Image, Ideogram 4
        "layers.*.attention.qkv",
        ("layers",),
        ("*.attention.qkv", "*.attention.out", "*.attention.o"),
        (),
        ("*.feed_forward.w1", "*.feed_forward.w2", "*.feed_forward.w3"),
    ),
    Family(  # Omnigen 2, Boogu-Image; the refiner of reference pictures learns nothing without them
        "omnigen2",
        "time_caption_embed.caption_embedder.*",
        ("double_stream_layers", "single_stream_layers", "layers"),
        ("*layers.*.to_[qkv]", "*layers.*.to_out.0", "*.img_to_[qkv]", "*.instruct_to_[qkv]", "*.processor.*_out",
         "noise_refiner.*.attn.*", "context_refiner.*.attn.*"),
        (),
        ("*layers.*feed_forward.*", "noise_refiner.*.feed_forward.*", "context_refiner.*.feed_forward.*"),
    ),
    Family(  # Qwen-Image, Mage-Flow
        "qwen-image",
        "transformer_blocks.*.attn.add_q_proj",
        ("transformer_blocks",),
        ("*.attn.to_q", "*.attn.to_k", "*.attn.to_v", "*.attn.to_out.0", "*.attn.add_?_proj", "*.attn.to_add_out"),
        (),
        ("*.img_mlp.net.*", "*.txt_mlp.net.*"),
    ),
    Family(
        "lens",
        "transformer_blocks.*.attn.img_qkv",
        ("transformer_blocks",),
        ("*.attn.img_qkv", "*.attn.txt_qkv", "*.attn.to_out.0", "*.attn.to_add_out"),
        (),
        ("*.img_mlp.w[123]", "*.txt_mlp.w[123]"),
    ),
    Family(
        "wan",
        "blocks.*.cross_attn.o",
        ("blocks",),
        ("blocks.*.self_attn.[qkvo]",),
        ("blocks.*.cross_attn.[qkvo]", "blocks.*.cross_attn.[kv]_img"),
        ("blocks.*.ffn.*",),
    ),
    Family(
        "pixart",
        "blocks.*.cross_attn.kv_linear",
        ("blocks",),
        ("blocks.*.attn.qkv", "blocks.*.attn.proj"),
        ("blocks.*.cross_attn.q_linear", "blocks.*.cross_attn.kv_linear", "blocks.*.cross_attn.proj"),
        ("blocks.*.mlp.fc1", "blocks.*.mlp.fc2"),
    ),
    Family(
        "auraflow",
        "double_layers.*.attn.w1q",
        ("double_layers", "single_layers"),
        ("*.attn.w[12][qkvo]",),
        (),
        ("*.mlp*.c_fc1", "*.mlp*.c_fc2", "*.mlp*.c_proj"),
    ),
    Family(
        "hunyuan-dit",
        "blocks.*.attn1.Wqkv",
        ("blocks",),
        ("blocks.*.attn1.Wqkv", "blocks.*.attn1.out_proj"),
        ("blocks.*.attn2.q_proj", "blocks.*.attn2.kv_proj", "blocks.*.attn2.out_proj"),
        ("blocks.*.mlp.fc1", "blocks.*.mlp.fc2"),
    ),
    Family(
        "hidream",
        "double_stream_blocks.*.attn1.to_q_t",
        ("double_stream_blocks", "single_stream_blocks"),
        ("*.attn1.to_[qkv]", "*.attn1.to_out", "*.attn1.to_[qkv]_t", "*.attn1.to_out_t"),
        (),
        ("*.ff_i.shared_experts.w[123]", "*.ff_i.experts.*.w[123]", "*.ff_t.w[123]"),
    ),
    Family(  # Cosmos 1: a block's parts are full attention, cross-attention and MLP, in this order
        "cosmos",
        "blocks.block*.blocks.0.block.attn.to_q.0",
        ("blocks",),
        ("blocks.*.blocks.0.block.attn.*",),
        ("blocks.*.blocks.1.block.attn.*",),
        ("blocks.*.blocks.2.block.layer[12]",),
    ),
    Family(  # Cosmos Predict 2, Anima; Anima's text adapter is left alone
        "cosmos-predict2",
        "blocks.*.self_attn.output_proj",
        ("blocks",),
        ("blocks.*.self_attn.[qkv]_proj", "blocks.*.self_attn.output_proj"),
        ("blocks.*.cross_attn.[qkv]_proj", "blocks.*.cross_attn.output_proj"),
        ("blocks.*.mlp.layer[12]",),
    ),
    Family(
        "ltx-video",
        "transformer_blocks.*.attn2.to_q",
        ("transformer_blocks",),
        ("transformer_blocks.*.attn1.to_[qkv]", "transformer_blocks.*.attn1.to_out.0"),
        ("transformer_blocks.*.attn2.to_[qkv]", "transformer_blocks.*.attn2.to_out.0"),
        ("transformer_blocks.*.ff.net.*",),
    ),
    Family(
        "mochi",
        "blocks.*.attn.qkv_x",
        ("blocks",),
        ("blocks.*.attn.qkv_[xy]", "blocks.*.attn.proj_[xy]"),
        (),
        ("blocks.*.mlp_[xy].w[12]",),
    ),
    Family(
        "kandinsky5",
        "visual_transformer_blocks.*.cross_attention.to_query",
        ("visual_transformer_blocks",),
        ("*_blocks.*.self_attention.to_*", "*_blocks.*.self_attention.out_layer"),
        ("*_blocks.*.cross_attention.to_*", "*_blocks.*.cross_attention.out_layer"),
        ("*_blocks.*.feed_forward.*_layer",),
    ),
    Family(
        "ernie-image",
        "layers.*.self_attention.to_q",
        ("layers",),
        ("layers.*.self_attention.to_[qkv]", "layers.*.self_attention.to_out.0"),
        (),
        ("layers.*.mlp.*",),
    ),
    Family(
        "krea2",
        "blocks.*.attn.wq",
        ("blocks",),
        ("blocks.*.attn.w[qkvo]", "blocks.*.attn.gate"),
        (),
        ("blocks.*.mlp.gate", "blocks.*.mlp.up", "blocks.*.mlp.down"),
    ),
    Family(
        "joyimage",
        "double_blocks.*.attn.img_attn_qkv",
        ("double_blocks",),
        ("double_blocks.*.attn.*_attn_qkv", "double_blocks.*.attn.*_attn_proj"),
        (),
        ("double_blocks.*_mlp.net.*",),
    ),
    Family(
        "cogvideox",
        "blocks.*.attn_out",
        ("blocks",),
        ("blocks.*.[qkv]", "blocks.*.attn_out"),
        (),
        ("blocks.*.ff_proj", "blocks.*.ff_out"),
    ),
    Family(  # Stable Cascade
        "cascade",
        "down_blocks.*.attention.attn.to_q",
        ("down_blocks", "up_blocks"),
        ("*_blocks.*.attention.attn.to_[qkv]", "*_blocks.*.attention.attn.out_proj"),
        (),
        ("*_blocks.*.channelwise.*",),
    ),
)  # fmt: skip


def family_of(paths: Iterable[str]) -> Family | None:
    """The first family whose mark one of the paths matches."""
    paths = list(paths)
    return next((f for f in FAMILIES if any(fnmatchcase(path, f.mark) for path in paths)), None)
