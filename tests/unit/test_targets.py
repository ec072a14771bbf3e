"""Which layers are chosen: one model path a family, presets, globs, and words when nothing fits."""

import pytest
import torch
from strategies import network
from torch import nn

from trilora.errors import TargetError
from trilora.targets import FAMILIES, PRESETS, family_of, linear_layers, matching, patterns_of, select

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


def test_the_choice_keeps_the_models_order_and_its_very_modules():
    root = network(*UNET)
    chosen = select(root)
    assert list(chosen) == list(UNET[1:5])
    assert all(root.get_submodule(path) is module for path, module in chosen.items())


@pytest.mark.parametrize("choice", ["*.to_q, time_embed.*", "*.to_q\ntime_embed.*", " time_embed.0 ,, *.to_q \n"])
def test_globs_are_separated_by_commas_or_lines(choice):
    assert list(select(network(*UNET), choice)) == [UNET[0], UNET[1], UNET[3]]


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
    with pytest.raises(TargetError, match=r"(?s)No linear layer.*matches.*time_embed\.0.*change the targets"):
        select(network(*UNET), choice)


@pytest.mark.parametrize("preset", [preset for preset in PRESETS if preset != "all linear"])
def test_a_preset_on_an_unknown_architecture_says_what_to_choose_instead(preset):
    with pytest.raises(TargetError, match=r"(?s)not in the table.*unet.*'all linear'.*'mystery\.0\.q'"):
        select(network("mystery.0.q"), preset)


def test_a_model_without_linear_layers_is_refused():
    with pytest.raises(TargetError, match="none"):
        select(nn.Sequential(nn.ReLU()), "all linear")


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
