"""A sampling step: the bare base, an adapter merged into its weights, an adapter beside them (bypass); core's and ours.

python dev.py bench sampling            # SD1.5 at full size, 256 x 256 px, a rank-32 adapter
python dev.py bench sampling --quick    # the demo model
"""

import argparse
from collections.abc import Callable
from typing import Any

import torch

from benchmarks._arms import quiet_bar
from benchmarks._comfyui import ComfyUI, comfyui_here
from benchmarks._measure import Clock, Goal, Table, in_turn, main
from benchmarks.patching import FILE, core, ours, patched, write_adapter

BASE, MERGED, BYPASS = "base", "ours, merged", "ours, bypass"
CORE_MERGED, CORE_BYPASS = "core, merged", "core, bypass"
NOISE = 1.03  # two runs of one and the same model differ by as much


def run(args: argparse.Namespace) -> list[Table]:
    with comfyui_here() as ui:
        model, clip, _ = ui.demo() if args.quick else ui.sd15()
        path = write_adapter(ui, model, 8 if args.quick else 32)
        (text,) = ui.run("CLIPTextEncode", clip=clip, text="a red house")
        models = {
            BASE: model,
            MERGED: ours(ui)(model, 1.0, True),
            CORE_MERGED: core(ui)(model, 1.0, True),
            BYPASS: our_bypass(ui, model),
            CORE_BYPASS: ui.run("LoraLoaderBypassModelOnly", model=model, lora_name=FILE, strength_model=1.0)[0],
        }
        side = 16 if args.quick else 32
        arms = {name: stepping(ui, each, text, side) for name, each in models.items()}
        samples = in_turn(arms, 2 if args.quick else 15)
        path.unlink()
    goals = (Goal(MERGED, BASE, NOISE), Goal(CORE_MERGED, BASE, NOISE), Goal(BYPASS, CORE_BYPASS, 1.0))
    return [Table("A sampling step, one picture, no guidance", "s", samples, BASE, goals)]


def our_bypass(ui: ComfyUI, model: Any) -> Any:
    """Our patches where core's bypass loader puts its own."""
    from comfy.weight_adapter import BypassInjectionManager

    (_, adapter, _) = ui.run("TriLoRALoad", model=model, file=FILE, strength=1.0)
    beside, manager = model.clone(), BypassInjectionManager()
    for key, patch in ui.module("nodes.patching").model_patches(model, adapter).items():
        manager.add_adapter(key, patch, strength=1.0)
    beside.set_injections("bench_bypass", manager.create_injections(beside.model))
    return beside


def stepping(ui: ComfyUI, model: Any, text: Any, side: int, steps: int = 2) -> Callable[[], list[float]]:
    """Seconds of a step of core's KSampler, the weights patched beforehand."""
    latent = {"samples": torch.zeros(1, 4, side, side)}
    asked = {"seed": 0, "steps": steps, "cfg": 1.0, "sampler_name": "euler", "scheduler": "normal", "denoise": 1.0}

    def turn() -> list[float]:
        patched(model)
        with quiet_bar():
            sample = lambda: ui.run("KSampler", model=model, positive=text, negative=text, latent_image=latent, **asked)  # noqa: E731
            return [Clock()(sample) / steps]

    return turn


if __name__ == "__main__":
    main(__doc__, run, "sampling")
