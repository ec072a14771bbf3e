"""What Σ of an ordinary LoRA costs: finding it, against dense SVDs; and shaping it, against core's LoRA strength.

    python dev.py bench sigma_times

Everything on the CPU with random numbers, in the full sizes of Stable Diffusion 1.5 and its 128 attention layers.
Dense SVDs are timed once for each of the six distinct shapes and counted as often as the shape occurs. Two MODELs are
loaded in turn, as when a widget is moved and the prompt queued again; a figure is the median over the turns.
"""

import argparse
import asyncio
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

import torch

from benchmarks._sd15 import UNET
from devkit import ROOT, comfyui

RANK = 32
TURNS = 9


def seconds(work: Callable[[], Any]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def sd15() -> Any:
    """A MODEL of SD1.5's shapes; only the attention weights, which are all that is looked at, are filled."""
    import comfy.model_management
    import comfy.model_patcher
    import comfy.supported_models

    config = comfy.supported_models.SD15(UNET)
    config.set_inference_dtype(torch.float16, None)
    model = config.get_model({}, "")
    for key, weight in model.state_dict().items():
        if is_attention(key):
            weight.normal_(0, 0.02)
    device = comfy.model_management.get_torch_device()
    return comfy.model_patcher.CoreModelPatcher(model, device, comfy.model_management.unet_offload_device())


def is_attention(key: str) -> bool:
    return ".attn" in key and key.endswith(".weight")


def lora(model: Any) -> dict[str, torch.Tensor]:
    """A LoRA on every attention layer, as a file in float16 holds it."""
    tensors = {}
    for key, weight in model.model.state_dict().items():
        if is_attention(key):
            name = key.removesuffix(".weight")
            tensors[name + ".lora_up.weight"] = torch.randn(weight.shape[0], RANK).half() * 0.02
            tensors[name + ".lora_down.weight"] = torch.randn(RANK, weight.shape[1]).half() * 0.02
            tensors[name + ".alpha"] = torch.tensor(float(RANK))
    return tensors


def canonicalising(tensors: dict[str, torch.Tensor]) -> tuple[float, float]:
    """Seconds for Σ of all layers, and seconds of as many dense SVDs."""
    from trilora.factors import Factors, canonical

    raw = [
        Factors(up.float(), torch.ones(RANK), tensors[key.replace("_up.", "_down.")].float())
        for key, up in tensors.items()
        if "_up." in key
    ]
    ours = min(seconds(lambda: [canonical(factors) for factors in raw]) for _ in range(2))
    shapes = Counter((len(factors.u), factors.vh.shape[1]) for factors in raw)
    dense = sum(
        count * seconds(lambda: torch.linalg.svd(torch.randn(*shape), full_matrices=False))  # noqa: B023 - runs at once
        for shape, count in shapes.items()
    )
    return ours, dense


def repatching(
    model: Any, tensors: dict[str, torch.Tensor], strength_node: type, turns: int = TURNS
) -> list[tuple[float, float]]:
    """Median seconds for a moved point of our curve, and for core's LoRA strength: (node and patching, patching)."""
    import comfy.model_management
    import comfy.sd

    def core(turn: int) -> Any:
        return comfy.sd.load_lora_for_models(model, None, tensors, 0.8 + 0.01 * turn, 0)[0]

    loaded = core(0)

    def ours(turn: int) -> Any:
        curve = {"points": [[0, 0.4 + 0.01 * turn], [1, 0.6]], "interpolation": "monotone_cubic"}
        node = strength_node.PREPARE_CLASS_CLONE({"hidden_inputs": {"UNIQUE_ID": "1"}})
        return node.execute(loaded, strength=1.0, keep={"keep": "all"}, curve=curve).result[0]

    def timed(made: Callable[[int], Any], turn: int) -> tuple[float, float]:
        start = time.perf_counter()
        patcher = made(turn)
        between = time.perf_counter()
        comfy.model_management.load_models_gpu([patcher], force_full_load=True)
        return time.perf_counter() - start, time.perf_counter() - between

    with torch.inference_mode():
        times = [(timed(ours, turn), timed(core, turn)) for turn in range(turns + 1)][1:]  # the first finds Σ
    return [tuple(statistics.median(column) for column in zip(*kind, strict=True)) for kind in zip(*times, strict=True)]


def start_comfyui() -> type:
    """ComfyUI in this process, on the CPU; returns our Strength node's class."""
    sys.path.insert(0, str(comfyui.find(ROOT)))
    from comfy.cli_args import args

    args.cpu = True
    from server import PromptServer

    import nodes

    PromptServer(asyncio.new_event_loop())
    asyncio.run(nodes.load_custom_node(str(ROOT)))
    return nodes.NODE_CLASS_MAPPINGS["TriLoRAStrength"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    torch.set_num_threads(parser.parse_args().threads)
    node = start_comfyui()
    model = sd15()
    tensors = lora(model)
    ours, dense = canonicalising(tensors)
    curve, strength = repatching(model, tensors, node)
    print(f"{torch.get_num_threads()} threads, rank {RANK}, {len(tensors) // 3} layers")
    print(f"find Σ of every layer               {ours:7.2f} s")
    print(f"dense SVDs (scaled up)              {dense:7.1f} s   {dense / ours:.0f} times as long")
    for what, a, b in zip(("node and patching", "patching alone"), curve, strength, strict=True):
        print(f"our curve moved, {what:17} {a:7.2f} s   core's strength {b:.2f} s, ratio {a / b:.2f}")


if __name__ == "__main__":
    main()
