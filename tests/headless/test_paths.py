"""Layer names: diffusers' paths, ComfyUI's, and those that files have."""

from typing import Any

import pytest

from trilora.files import Adapter
from trilora.headless.naming import in_kohya, renamed
from trilora.headless.paths import diffusers_path, dotted, kohya, names_of, stability

CONFIGS = {  # ComfyUI's words for the two UNets
    "SD1.5": {
        "num_res_blocks": [2] * 4, "channel_mult": [1, 2, 4, 4], "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0],
        "transformer_depth_output": [1] * 9 + [0] * 3, "transformer_depth_middle": 1,
    },
    "SDXL": {
        "num_res_blocks": [2] * 3, "channel_mult": [1, 2, 4], "transformer_depth": [0, 0, 2, 2, 10, 10],
        "transformer_depth_output": [0, 0, 0, 2, 2, 2, 10, 10, 10], "transformer_depth_middle": 10,
    },
}  # fmt: skip
DEPTH = 2


def table(config: dict[str, Any]) -> dict[str, str]:
    """diffusers' path of each weight -> ComfyUI's, by ComfyUI's own table."""
    import comfy.utils

    pairs = comfy.utils.unet_to_diffusers(config).items()
    return {a.removesuffix(".weight"): b.removesuffix(".weight") for a, b in pairs if a.endswith(".weight")}


@pytest.mark.comfy
@pytest.mark.parametrize("name", ["SD1.5", "SDXL"])
def test_every_layer_has_the_path_that_comfyui_gives_it_and_back(comfy: Any, name: str) -> None:
    known, depth = table(CONFIGS[name]), DEPTH
    known = {ours: theirs for ours, theirs in known.items() if "class_embedding" not in ours}
    assert len(known) > 200
    for ours, theirs in known.items():
        if "upsamplers" in ours:
            assert theirs in (stability(ours, depth), stability(ours, depth).replace(".2.conv", ".1.conv")), ours
        else:
            assert stability(ours, depth) == theirs, ours
        assert diffusers_path(theirs, depth) == ours
        assert diffusers_path(ours, depth) == ours
        assert dotted(ours.replace(".", "_")) == ours
        assert dotted(theirs.replace(".", "_")) == theirs


@pytest.mark.comfy
@pytest.mark.parametrize("name", ["SD1.5", "SDXL"])
def test_an_adapter_of_every_layer_is_written_as_comfyui_names_them_and_back(comfy: Any, name: str) -> None:
    known = {ours: theirs for ours, theirs in table(CONFIGS[name]).items() if "class_embedding" not in ours}
    ours = Adapter({kohya(path): None for path in known})
    theirs = renamed(ours, "comfyui", DEPTH)
    assert list(theirs.layers) == [f"diffusion_model.{path}" for path in known.values()]
    assert list(renamed(theirs, "kohya", DEPTH).layers) == list(ours.layers)


@pytest.mark.comfy
def test_a_unet_knows_its_layers_by_every_name_that_comfyui_knows(comfy: Any, pipe: Any, run_node: Any) -> None:
    import comfy.lora

    (model, *_) = run_node("TriLoRADemoModel")
    theirs = comfy.lora.model_lora_keys_unet(model.model, {})
    known = table(model.model.model_config.unet_config)
    inner = {f"diffusion_model.{theirs}.weight": path for path, theirs in known.items()}
    ours, there, seen = names_of(pipe.unet, 1), dict(pipe.unet.named_modules()), 0
    for name, key in theirs.items():
        if inner.get(key) in there and not name.startswith(("lycoris_", "unet.base_model")):
            assert ours[name] == inner[key], name
            seen += 1
    assert seen > 300


def test_a_text_encoders_layers_are_renamed_too() -> None:
    path = "text_model_encoder_layers_0_self_attn_q_proj"
    whole = "text_model.encoder.layers.0.self_attn.q_proj"
    sd = Adapter({f"lora_te_{path}": None})
    assert list(renamed(sd, "diffusers").layers) == [f"text_encoder.{whole}"]
    assert list(renamed(renamed(sd, "diffusers"), "kohya").layers) == [f"lora_te_{path}"]
    xl = Adapter({f"lora_te1_{path}": None, f"lora_te2_{path}": None})
    assert list(renamed(xl, "diffusers").layers) == [f"text_encoder.{whole}", f"text_encoder_2.{whole}"]
    assert list(renamed(renamed(xl, "diffusers"), "kohya").layers) == list(xl.layers)


def test_a_text_encoders_layer_has_one_name_in_a_merge_whatever_files_call_it() -> None:
    """Else two of them come into the file, and whoever loads it takes one of the two."""
    path = "text_model_encoder_layers_0_self_attn_q_proj"
    names = [f"lora_te_{path}", "text_encoder.text_model.encoder.layers.0.self_attn.q_proj"]
    sd = [Adapter({name: None}) for name in names]
    assert set(map(in_kohya(sd), names)) == {f"lora_te_{path}"}
    xl = [*sd, Adapter({f"lora_te2_{path}": None})]
    assert set(map(in_kohya(xl), names)) == {f"lora_te1_{path}"}
    only_the_first = Adapter({f"lora_te1_{path}": None})
    assert list(renamed(only_the_first, "kohya").layers) == [f"lora_te1_{path}"]
