"""Stable Diffusion 1.5 at its full 860 M parameters, with random weights, through core's own nodes."""

import gc
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

pytestmark = [pytest.mark.comfy, pytest.mark.slow]


@pytest.fixture(scope="module")
def checkpoint(comfy: Any, comfy_base: Path) -> Iterator[str]:
    """An ordinary SD1.5 checkpoint file with random weights, made through ComfyUI's own classes, in float16."""
    import comfy.ops
    import comfy.sd1_clip
    import comfy.supported_models
    from comfy.ldm.models.autoencoder import AutoencoderKL
    from safetensors.torch import save_file

    torch.manual_seed(0)
    config = comfy.supported_models.SD15(SD15_UNET)
    config.set_inference_dtype(torch.float16, None)
    unet = config.get_model({}, "").diffusion_model
    text = comfy.sd1_clip.SD1ClipModel(dtype=torch.float16)
    vae = AutoencoderKL(embed_dim=4, ddconfig=SD15_VAE).half()
    tensors: dict[str, torch.Tensor] = {}
    for prefix, module in (("model.diffusion_model.", unet), ("first_stage_model.", vae)):
        tensors |= {prefix + key: random_like(key, tensor) for key, tensor in module.state_dict().items()}
    for key, tensor in text.clip_l.transformer.state_dict().items():
        if "text_projection" not in key:
            tensors["cond_stage_model.transformer." + key] = random_like(key, tensor)
    path = comfy_base / "models" / "checkpoints" / "random_sd15.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path)
    del unet, text, vae, tensors
    gc.collect()
    yield path.name
    path.unlink()


def random_like(key: str, tensor: torch.Tensor) -> torch.Tensor:
    """Small random weights; norms at 1, so that activations stay in range."""
    if tensor.ndim < 2:
        return (torch.ones if "norm" in key and key.endswith("weight") else torch.zeros)(tensor.shape).half()
    std = (0.5 / tensor[0].numel()) ** 0.5
    return torch.empty(tensor.shape, dtype=torch.float16).normal_(0, std)


def test_it_is_found_trained_saved_and_loaded_by_core(
    checkpoint: str,
    core_nodes: dict[str, Any],
    run_node: Callable[..., Any],
    watching: Callable[..., Any],
    comfy_base: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with torch.inference_mode():
        model, clip, vae = core_nodes["CheckpointLoaderSimple"]().load_checkpoint(checkpoint)
    assert sum(p.numel() for p in model.model.diffusion_model.parameters()) == 859_520_964
    (dataset,) = run_node(
        "TriLoRADataset", folder=["demo: stained_glass"], trigger=["zorvex"], resolution=[64], bucket_step=[0]
    )
    inputs = {"model": model, "clip": clip, "vae": vae, "dataset": dataset, "watch": watching(), **TRAINING}
    adapter, losses, *_ = run_node("TriLoRATrain", **inputs)
    assert len(adapter.layers) == 128
    assert len(losses["loss"]) == 2
    assert all(torch.isfinite(loss) for loss in losses["loss"])
    (name,) = run_node("TriLoRASave", trilora=adapter, filename="random_sd15", precision="float16")
    with caplog.at_level(logging.WARNING), torch.inference_mode():
        (loaded,) = core_nodes["LoraLoaderModelOnly"]().load_lora_model_only(model, name, 1.0)
    assert not [line for line in caplog.messages if "not loaded" in line.lower()]
    assert len(loaded.patches) == 128
    ours, *_ = run_node("TriLoRALoad", model=model, file=name, strength=1.0)
    assert ours.patches.keys() == loaded.patches.keys()
    (comfy_base / "models" / "loras" / name).unlink()


TRAINING = {
    "steps": 2, "learning_rate": 1e-4, "rank": 4, "batch": 1, "seed": 0, "alpha": 4.0, "preserve": 0.0,
    "shrink": 0.0, "clip_norm": 1.0, "targets": {"targets": "attention"},
    "method": {"method": "trilora", "core": "diagonal", "initialisation": "balanced"},
}  # fmt: skip

SD15_UNET = {
    "image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": 320, "channel_mult": [1, 2, 4, 4],
    "num_res_blocks": [2, 2, 2, 2], "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0], "transformer_depth_middle": 1,
    "transformer_depth_output": [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0], "context_dim": 768,
    "use_spatial_transformer": True, "use_linear_in_transformer": False, "adm_in_channels": None,
    "use_temporal_attention": False, "legacy": False,
}  # fmt: skip

SD15_VAE = {
    "double_z": True, "z_channels": 4, "resolution": 256, "in_channels": 3, "out_ch": 3, "ch": 128,
    "ch_mult": [1, 2, 4, 4], "num_res_blocks": 2, "attn_resolutions": [], "dropout": 0.0,
}  # fmt: skip
