"""Load TriLoRA beside ComfyUI's own loader: text encoders, other trainers' names, and what must be refused."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
from lora_files import LINEAR, diffusers_names, write
from safetensors.torch import save_file
from shrunken import NETWORKS, model
from strategies import randn

pytestmark = pytest.mark.comfy

UNET = {
    "image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": 32, "channel_mult": [1, 2],
    "num_res_blocks": [1, 1], "transformer_depth": [0, 2], "transformer_depth_middle": 1,
    "transformer_depth_output": [0, 0, 2, 2], "context_dim": 24, "use_spatial_transformer": True,
    "use_linear_in_transformer": True, "adm_in_channels": 1556, "num_classes": "sequential",
    "use_temporal_attention": False, "legacy": False,
}  # fmt: skip
SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2, "num_hidden_layers": 3}
T5 = {"d_model": 32, "d_ff": 64, "d_kv": 16, "num_heads": 2, "num_layers": 2, "vocab_size": 64}


class Wires(NamedTuple):
    model: Any
    clip: Any


@pytest.fixture(scope="module")
def sdxl(comfy: Any) -> Wires:
    """SDXL in ComfyUI's own classes, a few layers deep, random."""
    import comfy.model_patcher
    import comfy.sdxl_clip
    import comfy.supported_models

    config = comfy.supported_models.SDXL(UNET)
    config.set_inference_dtype(torch.float32, None)
    model = filled(config.get_model({}, ""))
    patcher = comfy.model_patcher.ModelPatcher(model, torch.device("cpu"), torch.device("cpu"))
    sizes = {"clip_l_model_config": SMALL, "clip_g_model_config": SMALL | {"hidden_size": 48}}
    return Wires(patcher, clip_of(comfy.sdxl_clip.SDXLClipModel, comfy.sdxl_clip.SDXLTokenizer, sizes))


@pytest.fixture(scope="module")
def flux_clip(comfy: Any) -> Any:
    """Flux's two text encoders, CLIP-L and T5, small."""
    import comfy.text_encoders.flux as flux

    return clip_of(flux.FluxClipModel, flux.FluxTokenizer, {"clip_l_model_config": SMALL, "t5xxl_model_config": T5})


def clip_of(kind: type, tokenizer: type, sizes: dict[str, Any]) -> Any:
    import comfy.sd

    target = SimpleNamespace(params={}, clip=kind, tokenizer=tokenizer)
    clip = comfy.sd.CLIP(target, model_options={**sizes, "dtype": torch.float32})
    filled(clip.cond_stage_model)
    return clip


def filled(module: torch.nn.Module) -> torch.nn.Module:
    for number, parameter in enumerate(module.parameters()):
        parameter.data = randn(number, *parameter.shape) / 4
    return module


@pytest.fixture
def both(
    comfy_base: Path, core_nodes: dict[str, Any], run_node: Callable, tmp_path: Path
) -> Callable[..., tuple[Any, Any]]:
    """Load the same tensors with our node and with core's: (model, clip) of each."""
    path = comfy_base / "models" / "loras" / "both.safetensors"

    def load(wires: Any, tensors: dict[str, torch.Tensor], strength: float, strength_clip: float) -> tuple[Any, Any]:
        path.parent.mkdir(exist_ok=True)
        save_file(tensors, path)
        model, _, clip = run_node(
            "TriLoRALoad",
            model=wires.model,
            file=path.name,
            strength=strength,
            strength_clip=strength_clip,
            clip=wires.clip,
        )
        with torch.inference_mode():
            core = core_nodes["LoraLoader"]().load_lora(wires.model, wires.clip, path.name, strength, strength_clip)
        return Wires(model, clip), Wires(*core)

    yield load
    path.unlink(missing_ok=True)


def weights(patcher: Any) -> dict[str, torch.Tensor]:
    """The patched weights in float32, before ComfyUI rounds them to a text encoder's float16."""
    import comfy.lora

    base = patcher.model.state_dict()
    with torch.inference_mode():
        return {
            key: comfy.lora.calculate_weight(patches, base[key].float().clone(), key)
            for key, patches in patcher.patches.items()
        }


def assert_same(ours: Any, theirs: Any, count: int) -> None:
    a, b = weights(ours), weights(theirs)
    assert a.keys() == b.keys()
    assert len(a) == count
    assert max(float((a[key] - b[key]).abs().max() / b[key].abs().max()) for key in a) < 1e-6


def pair(name: str, out: int, inner: int, seed: int = 0, suffixes=(".lora_up.weight", ".lora_down.weight")) -> dict:
    return {name + suffixes[0]: randn(seed, out, 3) / 4, name + suffixes[1]: randn(seed + 1, 3, inner) / 4}


def attention(clip: Any, encoder: str) -> dict[str, tuple[int, ...]]:
    """Path within an encoder -> shape of the weight, of its attention projections."""
    start = f"{encoder}.transformer."
    return {
        key.removeprefix(start).removesuffix(".weight"): tuple(weight.shape)
        for key, weight in clip.cond_stage_model.state_dict().items()
        if key.startswith(start) and "attn" in key.lower() and weight.ndim == 2
    }


def test_sd1_text_encoder_layers_are_applied_as_core_applies_them(demo: Any, both: Callable) -> None:
    layers = attention(demo.clip, "clip_l")
    tensors = write(demo.model).tensors
    for seed, (path, shape) in enumerate(layers.items()):
        tensors |= pair("lora_te_" + path.replace(".", "_"), *shape, seed)
    ours, theirs = both(Wires(demo.model, demo.clip), tensors, 0.8, -0.4)
    assert_same(ours.model, theirs.model, len(LINEAR))
    assert_same(ours.clip.patcher, theirs.clip.patcher, len(layers))
    assert not demo.clip.patcher.patches


@pytest.mark.parametrize("naming", ["kohya", "diffusers"])
def test_both_text_encoders_of_sdxl_are_applied(sdxl: Wires, both: Callable, naming: str) -> None:
    tensors, count = {}, 0
    inner = diffusers_names(sdxl.model)
    for outer in [outer for outer in inner if ".attn" in outer and not outer.endswith("bias")]:
        shape = sdxl.model.model.state_dict().get(f"diffusion_model.{inner[outer]}.weight", torch.empty(0, 0)).shape
        tensors |= pair("lora_unet_" + outer.replace(".", "_"), *shape) if shape[0] else {}
    unet = len(tensors) // 2
    for number, encoder, prefix in ((1, "clip_l", "text_encoder"), (2, "clip_g", "text_encoder_2")):
        for path, shape in attention(sdxl.clip, encoder).items():
            kohya = f"lora_te{number}_{path.replace('.', '_')}"
            tensors |= pair(kohya if naming == "kohya" else f"{prefix}.{path}", *shape, count)
            count += 1
    ours, theirs = both(sdxl, tensors, 1.0, 0.5)
    assert unet > 20
    assert_same(ours.model, theirs.model, unet)
    assert_same(ours.clip.patcher, theirs.clip.patcher, count)


@pytest.mark.parametrize("naming", ["lora_te", "text_encoders"])
def test_the_text_encoders_of_a_dit_are_applied(demo: Any, flux_clip: Any, both: Callable, naming: str) -> None:
    tensors, count = {}, 0
    for number, encoder in ((1, "clip_l"), (2, "t5xxl")):
        for path, shape in attention(flux_clip, encoder).items():
            kohya = f"lora_te{number}_{path.replace('.', '_')}"
            tensors |= pair(
                kohya if naming == "lora_te" else f"text_encoders.{encoder}.transformer.{path}", *shape, count
            )
            count += 1
    ours, theirs = both(Wires(demo.model, flux_clip), tensors, 1.0, 1.0)
    assert_same(ours.clip.patcher, theirs.clip.patcher, count)


@pytest.mark.parametrize("family", ["Flux", "SD3", "AuraFlow"])
def test_a_layer_whose_rows_diffusers_has_in_another_order_is_applied(
    demo: Any, both: Callable, room: Callable, family: str
) -> None:
    """diffusers has scale before shift in its last norm: ComfyUI's map of layers holds a function that swaps them."""
    base, name = model(NETWORKS[family]), "transformer.norm_out.linear"
    key = room("nodes.patching").key_map(base)[name][0]
    tensors = pair(name, *base.model.state_dict()[key].shape)
    ours, theirs = both(Wires(base, demo.clip), tensors, 0.8, 1.0)
    assert_same(ours.model, theirs.model, 1)
    (found,) = room("nodes.reading").adapters_on(ours.model)[0].factors.values()
    adapter = room("trilora.files").Adapter({name: found})
    ((path, factors),) = room("nodes.starting").start_factors(base, adapter)[0].items()
    change = weights(ours.model)[key] - base.model.state_dict()[key]
    assert f"diffusion_model.{path}.weight" == key
    torch.testing.assert_close((factors.u * factors.sigma) @ factors.vh * 0.8, change, rtol=1e-4, atol=1e-5)


def test_without_a_clip_text_encoder_layers_are_left_out_and_the_node_says_so(
    demo: Any, comfy: Any, comfy_base: Path, run_node: Callable, told: list[str]
) -> None:
    path = comfy_base / "models" / "loras" / "text.safetensors"
    tensors = write(demo.model).tensors | pair("lora_te_text_model_encoder_layers_0_self_attn_q_proj", 128, 128)
    save_file(tensors, path)
    model, trilora, clip = run_node("TriLoRALoad", model=demo.model, file=path.name, strength=1.0)
    path.unlink()
    assert clip is None
    assert len(model.patches) == len(LINEAR)
    assert len(trilora.layers) == len(LINEAR) + 1
    assert told == ["1 text encoder layers are left out: connect clip to use them"]
    (applied,) = run_node("TriLoRAApply", model=demo.model, trilora=trilora, strength=1.0)
    assert applied.patches.keys() == model.patches.keys()
    assert "Load TriLoRA" in told[1]


@pytest.fixture
def told(comfy: Any) -> list[str]:
    """What nodes say while they run, as it leaves for the browser."""
    from server import PromptServer

    heard: list[str] = []
    instance, send = PromptServer.instance, PromptServer.instance.send_sync

    def listen(event: Any, data: Any, sid: Any = None) -> None:
        heard.append(data[5:].decode())  # four bytes of length and the node's id, which is 1
        send(event, data, sid)

    instance.send_sync = listen
    yield heard
    instance.send_sync = send


def test_layers_of_another_text_encoder_are_refused(demo: Any, both: Callable) -> None:
    name = "lora_te_text_model_encoder_layers_99_self_attn_q_proj"
    with pytest.raises(Exception, match=rf"both\.safetensors: The layer {name}.* does not exist in this CLIP"):
        both(Wires(demo.model, demo.clip), pair(name, 128, 128), 1.0, 1.0)
    name = "lora_te_text_model_encoder_layers_0_self_attn_q_proj"
    with pytest.raises(Exception, match=rf"both\.safetensors: The layer {name}.* is 96 x \(128,\), but the weight is"):
        both(Wires(demo.model, demo.clip), pair(name, 96, 128), 1.0, 1.0)


@pytest.mark.parametrize("prefix", ["", "unet.", "base_model.model."])
def test_pefts_names_of_a_diffusers_unet_are_known(
    demo: Any, comfy_base: Path, run_node: Callable, prefix: str
) -> None:
    """ComfyUI knows them in the older `.processor.` form alone, and would leave these layers out."""
    known = write(demo.model)
    names = ((".lora_up.weight", ".lora_B.weight"), (".lora_down.weight", ".lora_A.weight"))
    tensors = {
        prefix + outer + new: known.tensors["lora_unet_" + outer.replace(".", "_") + old]
        for outer in LINEAR
        for old, new in names
    }
    path = comfy_base / "models" / "loras" / "peft.safetensors"
    save_file(tensors, path)
    model, *_ = run_node("TriLoRALoad", model=demo.model, file=path.name, strength=1.0)
    path.unlink()
    assert model.patches.keys() == known.changes.keys()


def test_a_trainer_with_names_of_its_own_is_read_through_cores_conversion(comfy: Any, tmp_path: Path) -> None:
    from comfy.lora_convert import convert_lora

    from trilora import files

    tensors = pair("lora_unet__blocks_0_cross_attn_k", 8, 6)
    save_file(tensors, tmp_path / "wan_fun.safetensors")
    assert list(files.load(tmp_path / "wan_fun.safetensors", convert_lora).layers) == [
        "lora_unet_blocks_0_cross_attn_k"
    ]


def test_a_file_is_read_again_once_it_has_changed(demo: Any, both: Callable) -> None:
    for seed in (0, 1):
        ours, theirs = both(Wires(demo.model, demo.clip), write(demo.model, seed=seed).tensors, 1.0, 1.0)
        assert_same(ours.model, theirs.model, len(LINEAR))
