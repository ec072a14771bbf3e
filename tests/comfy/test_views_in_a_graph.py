"""Spectrum, Schedule and Compare as ComfyUI's own executor runs them, inputs in the form that its page sends."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from demo.workflow import node

pytestmark = pytest.mark.comfy


@pytest.fixture
def execute(comfy: Any, core_nodes: dict[str, Any], pack: dict[str, Any]) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """Validate a prompt and run it; what each output node shows."""
    from execution import PromptExecutor, validate_prompt
    from server import PromptServer

    def run(prompt: dict[str, Any]) -> dict[str, Any]:
        valid, error, outputs, node_errors = asyncio.run(validate_prompt("views", prompt, None))
        assert valid, (error, node_errors)
        executor = PromptExecutor(PromptServer.instance, cache_args={"lru": 0, "ram": 0, "ram_inactive": 0})
        executor.execute(prompt, "views", {}, outputs)
        assert executor.success, executor.status_messages
        return {name: ui for name, ui in executor.history_result["outputs"].items()}

    return run


def test_a_graph_of_all_three_runs(execute: Callable, run_node: Callable, adapter: Any, comfy_base: Path) -> None:
    flat = {"points": [[0, 1], [1, 1]], "interpolation": "monotone_cubic"}
    (file,) = run_node("TriLoRASave", trilora=adapter, filename="tests/graph", precision="float32")
    base = {"model": ["base", 0], "clip": ["base", 1], "vae": ["base", 2]}
    prompt = {
        "base": node("TriLoRADemoModel"),
        "load": node("TriLoRALoad", model=["base", 0], file=file, strength=1.0),
        "words": node("CLIPTextEncode", text="zorvex, a house", clip=["base", 1]),
        "edited": node("CurveEditor", curve=flat),
        "hooks": node(
            "TriLoRASchedule", trilora=["load", 1], strength=1.0, bands="2 bands",
            **{"bands.coarse": ["edited", 0], "bands.fine": flat, "bands.edges": "1"},
        ),
        "hooked": node(
            "PairConditioningSetProperties", positive_NEW=["words", 0], negative_NEW=["words", 0], strength=1.0,
            set_cond_area="default", hooks=["hooks", 0],
        ),
        "canvas": node("EmptyLatentImage", width=128, height=128, batch_size=1),
        "sample": node(
            "KSampler", model=["base", 0], positive=["hooked", 0], negative=["hooked", 1], latent_image=["canvas", 0],
            seed=1, steps=1, cfg=1.0, sampler_name="euler", scheduler="normal", denoise=1.0,
        ),
        "pixels": node("VAEDecode", samples=["sample", 0], vae=["base", 2]),
        "picture": node("PreviewImage", images=["pixels", 0]),
        "spectrum": node("TriLoRASpectrum", model=["load", 0]),
        "table": node("PreviewAny", source=["spectrum", 1]),
        "compare": node(
            "TriLoRACompare", **base, prompts="zorvex, a house", seeds="1", steps=1, cfg=1.0, width=128, height=128,
            negative="", sampler="euler", scheduler="normal", cell=512, compare="bands",
            **{"adapters.trilora_0": ["load", 1], "compare.count": 2, "compare.edges": "", "compare.strength": 1.0},
        ),
    }  # fmt: skip
    shown = execute(prompt)
    (comfy_base / "models" / "loras" / file).unlink()
    assert {"picture", "spectrum", "compare"} <= shown.keys()
    assert all(len(shown[name]["images"]) == 1 for name in ("picture", "spectrum", "compare"))
    assert "effective rank" in shown["table"]["text"][0]
