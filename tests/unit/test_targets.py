"""Which layers are chosen: one model path a family, presets, globs, and words when nothing fits."""

import pytest
import torch
from strategies import network
from torch import nn

from trilora.errors import TargetError
from trilora.families import FAMILIES, family_of
from trilora.targets import PRESETS, among, linear_layers, matching, patterns_of, select, table

UNET = (
    "time_embed.0",
    "input_blocks.1.1.transformer_blocks.0.attn1.to_q",
    "input_blocks.1.1.transformer_blocks.0.attn1.to_out.0",
    "input_blocks.1.1.transformer_blocks.0.attn2.to_q",
    "input_blocks.1.1.transformer_blocks.0.attn2.to_k",
    "input_blocks.1.1.transformer_blocks.0.ff.net.0.proj",
    "input_blocks.1.1.transformer_blocks.0.ff.net.2",
)
EXAMPLES = {  # family -> (attention, mlp, neither) paths of a real model
    "unet": (UNET[1:5], UNET[5:], UNET[:1]),
    "sd3": (
        (
            "joint_blocks.0.context_block.attn.qkv",
            "joint_blocks.0.x_block.attn.qkv",
            "joint_blocks.0.x_block.attn.proj",
        ),
        ("joint_blocks.0.x_block.mlp.fc1", "joint_blocks.0.context_block.mlp.fc2"),
        ("joint_blocks.0.x_block.adaLN_modulation.1", "final_layer.linear"),
    ),
    "flux": (
        ("double_blocks.0.img_attn.qkv", "double_blocks.0.txt_attn.proj", "single_blocks.3.linear1"),
        ("double_blocks.0.img_mlp.0", "double_blocks.0.txt_mlp.2"),
        ("img_in", "double_blocks.0.img_mod.lin", "final_layer.linear"),
    ),
    "lumina": (
        ("layers.0.attention.qkv", "layers.0.attention.out"),
        ("layers.0.feed_forward.w1", "layers.0.feed_forward.w3"),
        ("layers.0.adaLN_modulation.1", "x_embedder"),
    ),
    "qwen-image": (
        (
            "transformer_blocks.0.attn.to_q",
            "transformer_blocks.0.attn.add_q_proj",
            "transformer_blocks.0.attn.to_out.0",
            "transformer_blocks.0.attn.to_add_out",
        ),
        ("transformer_blocks.0.img_mlp.net.0.proj", "transformer_blocks.0.txt_mlp.net.2"),
        ("transformer_blocks.0.img_mod.1", "proj_out"),
    ),
    "wan": (
        ("blocks.0.self_attn.q", "blocks.0.cross_attn.o", "blocks.0.cross_attn.k_img"),
        ("blocks.0.ffn.0", "blocks.0.ffn.2"),
        ("time_embedding.0", "head.head"),
    ),
    "pixart": (
        ("blocks.0.attn.qkv", "blocks.0.cross_attn.q_linear", "blocks.0.cross_attn.kv_linear"),
        ("blocks.0.mlp.fc1", "blocks.0.mlp.fc2"),
        ("t_block.1", "final_layer.linear"),
    ),
    "auraflow": (
        ("double_layers.0.attn.w1q", "double_layers.0.attn.w2o", "single_layers.0.attn.w1v"),
        ("double_layers.0.mlpC.c_fc1", "single_layers.0.mlp.c_proj"),
        ("double_layers.0.modC.1", "final_linear"),
    ),
    "omnigen2": (
        ("layers.0.attn.to_q", "layers.0.attn.to_out.0", "double_stream_layers.0.img_instruct_attn.processor.img_to_q"),
        ("layers.0.feed_forward.linear_1",),
        ("time_caption_embed.caption_embedder.1", "ref_image_refiner.0.attn.to_q"),
    ),
    "lens": (
        (
            "transformer_blocks.0.attn.img_qkv",
            "transformer_blocks.0.attn.txt_qkv",
            "transformer_blocks.0.attn.to_out.0",
        ),
        ("transformer_blocks.0.img_mlp.w1",),
        ("transformer_blocks.0.img_mod.1",),
    ),
    "hunyuan-dit": (
        ("blocks.0.attn1.Wqkv", "blocks.0.attn2.kv_proj"),
        ("blocks.0.mlp.fc1",),
        ("blocks.0.default_modulation.1", "pooler.q_proj"),
    ),
    "hidream": (
        ("double_stream_blocks.0.block.attn1.to_q_t", "single_stream_blocks.0.block.attn1.to_out"),
        ("single_stream_blocks.0.block.ff_i.experts.1.w2", "double_stream_blocks.0.block.ff_t.w1"),
        ("caption_projection.0.linear",),
    ),
    "cosmos": (
        ("blocks.block0.blocks.0.block.attn.to_q.0", "blocks.block0.blocks.1.block.attn.to_out.0"),
        ("blocks.block0.blocks.2.block.layer1",),
        ("blocks.block0.blocks.0.adaLN_modulation.1",),
    ),
    "cosmos-predict2": (
        ("blocks.0.self_attn.output_proj", "blocks.0.cross_attn.k_proj"),
        ("blocks.0.mlp.layer2",),
        ("blocks.0.adaln_modulation_self_attn.1", "llm_adapter.blocks.0.self_attn.q_proj"),
    ),
    "ltx-video": (
        ("transformer_blocks.0.attn1.to_q", "transformer_blocks.0.attn2.to_q", "transformer_blocks.0.attn2.to_out.0"),
        ("transformer_blocks.0.ff.net.0.proj",),
        ("patchify_proj", "caption_projection.linear_1"),
    ),
    "mochi": (
        ("blocks.0.attn.qkv_x", "blocks.0.attn.proj_y"),
        ("blocks.0.mlp_x.w1",),
        ("blocks.0.mod_x", "t5_y_embedder.to_q"),
    ),
    "kandinsky5": (
        (
            "visual_transformer_blocks.0.self_attention.to_query",
            "visual_transformer_blocks.0.cross_attention.to_query",
            "text_transformer_blocks.0.self_attention.out_layer",
        ),
        ("visual_transformer_blocks.0.feed_forward.in_layer",),
        ("visual_transformer_blocks.0.visual_modulation.out_layer", "out_layer.out_layer"),
    ),
    "ernie-image": (
        ("layers.0.self_attention.to_q", "layers.0.self_attention.to_out.0"),
        ("layers.0.mlp.gate_proj",),
        ("adaLN_modulation.1",),
    ),
    "krea2": (
        ("blocks.0.attn.wq", "blocks.0.attn.gate"),
        ("blocks.0.mlp.gate",),
        ("txtfusion.layerwise_blocks.0.attn.wq", "tproj.1"),
    ),
    "joyimage": (
        ("double_blocks.0.attn.img_attn_qkv", "double_blocks.0.attn.txt_attn_proj"),
        ("double_blocks.0.img_mlp.net.2",),
        ("proj_out",),
    ),
    "cogvideox": (
        ("blocks.0.q", "blocks.0.attn_out"),
        ("blocks.0.ff_out",),
        ("blocks.0.norm1.linear", "patch_embed.text_proj"),
    ),
    "cascade": (
        ("down_blocks.0.2.attention.attn.to_q", "up_blocks.0.2.attention.attn.out_proj"),
        ("down_blocks.0.0.channelwise.0",),
        ("down_blocks.0.1.mapper", "clip_txt_mapper"),
    ),
}


def test_every_family_of_the_table_has_an_example_here():
    assert set(EXAMPLES) == {family.name for family in FAMILIES}


@pytest.mark.parametrize("name", EXAMPLES)
def test_attention_layers_of_a_family_are_chosen_and_no_others(name):
    attention, mlp, neither = EXAMPLES[name]
    root = network(*neither, *attention, *mlp)
    assert family_of(linear_layers(root)).name == name
    assert sorted(select(root, "attention")) == sorted(attention)
    assert sorted(select(root, "attention + mlp")) == sorted(attention + mlp)
    assert sorted(select(root, "all linear")) == sorted(attention + mlp + neither)


def test_self_and_cross_attention_are_told_apart():
    root = network(*UNET)
    assert list(select(root, "self-attention")) == list(UNET[1:3])
    assert list(select(root, "cross-attention")) == list(UNET[3:5])


def test_joint_attention_has_no_cross_attention_to_choose():
    with pytest.raises(TargetError, match="joint attention: choose 'attention'"):
        select(network(*EXAMPLES["flux"][0]), "cross-attention")


def test_the_choice_keeps_the_models_order_and_its_very_modules():
    root = network(*UNET)
    chosen = select(root)
    assert list(chosen) == list(UNET[1:5])
    assert all(root.get_submodule(path) is module for path, module in chosen.items())


@pytest.mark.parametrize("choice", ["*.to_q, time_embed.*", "*.to_q\ntime_embed.*", " time_embed.0 ,, *.to_q \n"])
def test_globs_are_separated_by_commas_or_lines(choice):
    assert list(select(network(*UNET), choice)) == [UNET[0], UNET[1], UNET[3]]


def test_a_regular_expression_is_searched_for_in_the_path():
    assert list(select(network(*UNET), r"re:attn[12]\.to_(q|k)$")) == [UNET[1], UNET[3], UNET[4]]


def test_a_broken_regular_expression_is_refused():
    with pytest.raises(TargetError, match=r"(?s)'re:attn\(' are no regular expression.*glob"):
        select(network(*UNET), "re:attn(")


def test_only_linear_layers_are_chosen():
    root = network("a.q")
    root.conv = nn.Conv2d(2, 2, 1)
    root.norm = nn.LayerNorm(4)
    assert list(select(root, "*")) == ["a.q"]


def test_a_subclass_of_linear_is_a_linear_layer():
    class Cast(nn.Linear):
        pass

    assert list(select(nn.Sequential(Cast(2, 2)), "*")) == ["0"]


@pytest.mark.parametrize("choice", ["*.to_z", "", " , "])
def test_a_choice_that_names_no_layer_is_refused_with_examples(choice):
    with pytest.raises(TargetError, match=r"(?s)None of 7 layers.*matches.*time_embed\.0.*choose others"):
        select(network(*UNET), choice)


@pytest.mark.parametrize("preset", [preset for preset in PRESETS if preset != "all linear"])
def test_a_preset_on_an_unknown_architecture_says_what_to_choose_instead(preset):
    with pytest.raises(TargetError, match=r"(?s)not in the table.*unet.*'all linear'.*'mystery\.0\.q'"):
        select(network("mystery.0.q"), preset)


def test_a_model_without_linear_layers_is_refused():
    with pytest.raises(TargetError, match="none"):
        select(nn.Sequential(nn.ReLU()), "all linear")


class Blocks(nn.Module):
    """Three input blocks, a middle and two output blocks, then a head: a layer each."""

    def __init__(self) -> None:
        super().__init__()
        self.time_embed = nn.Linear(2, 2)
        self.input_blocks = nn.ModuleList(network("attn.q") for _ in range(3))
        self.middle_block = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
        self.output_blocks = nn.ModuleList(network("attn.q") for _ in range(2))


class UNetOfBlocks(Blocks):
    """The same, but known as a UNet."""

    def __init__(self) -> None:
        super().__init__()
        self.middle_block = network("transformer_blocks.0.attn2.to_q")


@pytest.mark.parametrize(
    ("blocks", "chosen"),
    [
        ("0-1", "I0 I1"),
        ("2", "I2"),
        (" 2 - 4 ", "I2 M O0"),
        ("0, 5", "I0 O1"),
        ("0\n5,", "I0 O1"),
        ("input", "I0 I1 I2"),
        ("input 1-2, middle, output 0", "I1 I2 M O0"),
        ("output_blocks 1", "O1"),
        ("output 1, 0-1, 0", "I0 I1 O1"),
        ("time_embed", "T"),
        ("", "T I0 I1 I2 M O0 O1"),
    ],
)
def test_blocks_are_counted_along_the_depth_or_within_a_named_module(blocks, chosen):
    names = {
        "time_embed": "T",
        "middle_block.transformer_blocks.0.attn2.to_q": "M",
        **{f"input_blocks.{i}.attn.q": f"I{i}" for i in range(3)},
        **{f"output_blocks.{i}.attn.q": f"O{i}" for i in range(2)},
    }
    assert [names[path] for path in select(UNetOfBlocks(), "all linear", blocks)] == chosen.split()


def test_an_unknown_architecture_counts_the_lists_that_it_has():
    assert list(select(Blocks(), "*", "2-3")) == ["input_blocks.2.attn.q", "output_blocks.0.attn.q"]


def test_block_1_is_not_block_10():
    root = nn.Module()
    root.layers = nn.ModuleList(network("q") for _ in range(11))
    assert list(select(root, "*", "1")) == ["layers.1.q"]


@pytest.mark.parametrize("blocks", ["6", "3-9", "4-2", "input 3", "nothing", "1-2-3", "-1", "input4", "a b"])
def test_blocks_that_are_not_there_are_refused_with_those_that_are(blocks):
    with pytest.raises(
        TargetError,
        match=rf"(?s){blocks}.* not in this model.*0-5 along the depth \(input_blocks 0-2, middle_block, output_blocks",
    ):
        select(UNetOfBlocks(), "all linear", blocks)


def test_blocks_without_a_chosen_layer_are_refused():
    with pytest.raises(TargetError, match=r"(?s)'0' hold none of the 1 layers.*first of them is middle_block"):
        select(UNetOfBlocks(), "*.attn2.*", "0")


def test_layers_of_any_kind_can_be_chosen_from():
    paths = ["input_blocks.0.conv", "middle_block.conv", "output_blocks.1.attn.q"]
    assert among(UNetOfBlocks(), paths, "all linear", "0-2, middle") == paths[:2]
    assert among(UNetOfBlocks(), paths, "re:conv|q$", "output 1") == paths[2:]


def test_a_model_without_blocks_says_what_it_has():
    with pytest.raises(TargetError, match="no list of blocks, but first, second"):
        select(network("first.q", "second.q"), "*", "3")


def test_the_table_counts_each_kind_of_layer():
    assert table(select(UNetOfBlocks(), "*q")).splitlines() == [
        "layers                                        count  out x in  parameters",
        "input_blocks.*.attn.q                             3  4 x 4             48",
        "middle_block.transformer_blocks.*.attn2.to_q      1  4 x 4             16",
        "output_blocks.*.attn.q                            2  4 x 4             32",
        "total                                             6                    96",
    ]


def test_the_table_counts_what_learns_at_a_rank_and_joins_shapes():
    root = nn.Module()
    root.layers = nn.ModuleList([nn.Linear(3, 5), nn.Linear(400, 2), nn.Linear(3, 5)])
    kind, total = table(select(nn.ModuleDict({"root": root}), "*"), rank=2).splitlines()[1:]
    assert kind.split() == ["root.layers.*", "3", "5", "x", "3,", "2", "x", "400", "842"]
    assert total.split() == ["total", "3", "842"]


def test_the_table_counts_convolutions_with_their_kernels():
    kind = table({"conv": nn.Conv2d(3, 5, 2)}, rank=2).splitlines()[1]
    assert kind.split() == ["conv", "1", *"5 x 3 x 2 x 2".split(), str(2 * (5 + 12 + 1))]


def test_every_preset_has_patterns_for_every_family():
    for family in FAMILIES:
        for preset in PRESETS:
            assert isinstance(patterns_of(family, preset), tuple)


def test_matching_is_case_sensitive_and_whole():
    assert matching(["a.Q", "a.q", "a.q.b"], ["*.q"]) == ["a.q"]


def test_choosing_changes_nothing():
    root = network(*UNET)
    before = [parameter.requires_grad for parameter in root.parameters()]
    select(root)
    assert [parameter.requires_grad for parameter in root.parameters()] == before
    assert all(isinstance(parameter, torch.nn.Parameter) for parameter in root.parameters())
