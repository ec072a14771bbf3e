"""Stable Diffusion 1.5 at its full 860 M parameters, with random weights, through core's own nodes."""

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import _sd15

pytestmark = [pytest.mark.comfy, pytest.mark.slow]


@pytest.fixture(scope="module")
def checkpoint(comfy: Any, comfy_base: Path) -> Iterator[str]:
    """An ordinary SD1.5 checkpoint file with random weights, made through ComfyUI's own classes, in float16."""
    path = comfy_base / "models" / "checkpoints" / "random_sd15.safetensors"
    _sd15.write(path)
    yield path.name
    path.unlink()


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
