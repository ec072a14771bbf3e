"""Loading an adapter and patching the MODEL with it, and then another strength: ours and core's LoRA loader.

    python dev.py bench patching            # a rank-32 adapter on all 128 attention layers of SD1.5
    python dev.py bench patching --quick    # a rank-8 adapter of the demo model

From the file to weights that are ready to sample with. Each loads the file anew; the second strength finds it read.
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks._comfyui import ComfyUI, comfyui_here
from benchmarks._measure import Clock, Goal, Table, in_turn, main

OURS, CORE = "ours (Load TriLoRA)", "core (Load LoRA)"
FILE = "bench_adapter.safetensors"


def run(args: argparse.Namespace) -> list[Table]:
    with comfyui_here() as ui:
        model = (ui.demo() if args.quick else ui.sd15()).model
        rank = 8 if args.quick else 32
        path = write_adapter(ui, model, rank)
        first, second = {}, {}
        for name, loader in ((OURS, ours(ui)), (CORE, core(ui))):
            first[name] = lambda loader=loader: [seconds(lambda: loader(model, 1.0, True))]
            second[name] = lambda loader=loader: other_strength(loader, model)
        turns = 2 if args.quick else 11
        loading, changing = in_turn(first, turns), in_turn(second, turns)
        path.unlink()
    goals = [Goal(OURS, CORE, 1.10)]
    return [
        Table(f"Load a rank-{rank} adapter and patch with it", "s", loading, CORE, goals),
        Table("Change its strength", "s", changing, CORE, goals),
    ]


def write_adapter(ui: ComfyUI, model: Any, rank: int) -> Path:
    """A random adapter on the attention, as our own training saves it, in float16."""
    patching, factors = ui.module("nodes.patching"), ui.module("trilora.factors")
    files = ui.module("trilora.files")
    chosen = ui.module("trilora.targets").select(model.model.diffusion_model)
    names = patching.portable_names(model, chosen)
    draw = torch.Generator().manual_seed(0)
    layers = {}
    for path, module in chosen.items():
        out, into = module.weight.shape
        u, vh = torch.randn(out, rank, generator=draw), torch.randn(rank, into, generator=draw)
        layers[names[path]] = factors.canonical(factors.Factors(0.01 * u, torch.ones(rank), 0.01 * vh))
    path = ui.base / "models" / "loras" / FILE
    files.save(files.Adapter(layers, {}), path, torch.float16)
    return path


def ours(ui: ComfyUI) -> Callable[[Any, float, bool], Any]:
    read = ui.module("nodes.loading").read

    def load(model: Any, strength: float, anew: bool) -> Any:
        if anew:
            read.cache_clear()
        return ui.run("TriLoRALoad", model=model, file=FILE, strength=strength)[0]

    return load


def core(ui: ComfyUI) -> Callable[[Any, float, bool], Any]:
    kept: dict[str, Any] = {}

    def load(model: Any, strength: float, anew: bool) -> Any:
        if anew or not kept:
            kept["node"] = ui.nodes["LoraLoaderModelOnly"]()  # it keeps the file it has read
        return kept["node"].load_lora_model_only(model, FILE, strength)[0]

    return load


def other_strength(loader: Callable[..., Any], model: Any) -> list[float]:
    """Loaded and patched already: seconds until the weights have another strength."""
    patched(loader(model, 1.0, True))
    return [Clock()(lambda: patched(loader(model, 0.7, False)))]


def seconds(load: Callable[[], Any]) -> float:
    return Clock()(lambda: patched(load()))


def patched(patcher: Any) -> Any:
    """The MODEL with its weights as they act."""
    import comfy.model_management

    with torch.inference_mode():
        comfy.model_management.load_models_gpu([patcher], force_full_load=True)
    return patcher


if __name__ == "__main__":
    main(__doc__, run, "patching")
