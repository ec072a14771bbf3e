"""The Strength node on a real server: widgets as the page sends them, and what comes back to it."""

from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import save_file
from strategies import randn

from demo.workflow import node
from devkit.server import PromptError, Server

pytestmark = pytest.mark.server

LAYER = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_v"
TEXT = "lora_te_text_model_encoder_layers_0_self_attn_q_proj"
LATENTS = {
    "base": node("TriLoRADemoModel"),
    "words": node("CLIPTextEncode", text="a red house", clip=["load", 2]),
    "canvas": node("EmptyLatentImage", width=64, height=64, batch_size=1),
    "load": node(
        "TriLoRALoad", model=["base", 0], clip=["base", 1], file="strong.safetensors", strength=1.0, strength_clip=0.5
    ),
    "sample": node(
        "KSampler", model=["strength", 0], positive=["words", 0], negative=["words", 0], latent_image=["canvas", 0],
        seed=5, steps=1, cfg=1.0, sampler_name="euler", scheduler="normal", denoise=1.0,
    ),
    "end": node("SaveLatent", samples=["sample", 0], filename_prefix="strength"),
}  # fmt: skip


@pytest.fixture
def file(comfy_server: Server) -> Path:
    path = comfy_server.base / "models" / "loras" / "strong.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {}
    for seed, layer in enumerate((LAYER, TEXT)):
        tensors |= {
            f"{layer}.lora_up.weight": randn(seed, 128, 4),
            f"{layer}.lora_down.weight": randn(seed + 9, 4, 128),
        }
    save_file(tensors, path)
    return path


def run(server: Server, **widgets: Any) -> dict[str, Any]:
    """What the node sent to the page."""
    strength = node("TriLoRAStrength", model=["load", 0], strength=1.0, **widgets)
    return server.run(LATENTS | {"strength": strength})["outputs"]["strength"]


def test_a_workflow_from_before_the_curve_still_runs_and_shows_the_spectrum(comfy_server: Server, file: Path) -> None:
    shown = run(comfy_server, keep="all")
    assert len(shown["histogram"]) == 256
    assert shown["histogram"][0] == 1_000_000
    assert shown["text"] == ["1. strong.safetensors (at 1): 1 x TriLoRA"]


def test_every_widget_arrives_as_the_page_sends_it(comfy_server: Server, file: Path) -> None:
    curve = {"points": [[0, 0.5], [1, 0.1]], "interpolation": "linear"}
    layers = {"layers": "pattern", "layers.pattern": "middle_block.*", "blocks": "middle"}
    many = {"keep": "energy", "keep.share": 0.5, **layers, "adapter": 1}
    assert run(comfy_server, curve=curve, **many)["text"] == ["1. strong.safetensors (at 1): 1 x TriLoRA"]
    with pytest.raises(PromptError, match="Adapter 2 was asked for"):
        run(comfy_server, **{**many, "adapter": 2})
    with pytest.raises(PromptError, match=r"matches 'blocks\.1'"):
        run(comfy_server, **{**many, "layers.pattern": "blocks.1"})


def executed(server: Server, prompt: dict[str, Any]) -> set[str]:
    """The nodes that ran, and did not come from ComfyUI's cache."""
    messages = dict(server.run(prompt)["status"]["messages"])
    return set(prompt) - set(messages["execution_cached"]["nodes"])


def test_after_a_change_of_the_curve_only_the_strength_and_what_follows_run_again(
    comfy_server: Server, file: Path
) -> None:
    curve = {"points": [[0, 0.5], [1, 0.25]], "interpolation": "linear"}
    prompt = LATENTS | {"strength": node("TriLoRAStrength", model=["load", 0], strength=1.0, keep="all", curve=curve)}
    comfy_server.run(prompt)
    assert executed(comfy_server, prompt) == set()
    curve["points"][1][1] = 0.3
    assert executed(comfy_server, prompt) == {"strength", "sample", "end"}


def test_the_page_is_told_where_the_energy_lies(comfy_server: Server, file: Path) -> None:
    (told,) = run(comfy_server, **{"keep": "top k", "keep.k": 1})["spectrum"]
    assert told["keep"] == {"keep": "top k", "k": 1}
    assert len(told["sigma"]) == len(told["share"]) == 4
    (group,) = told["groups"]
    assert group["kept"] == [group["energy"][0], 0, 0, 0]
