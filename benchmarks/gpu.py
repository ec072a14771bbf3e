"""Steps on a GPU: ours against diffusers with peft, for the shapes of SD1.5 and SDXL.

    python dev.py bench gpu             # every table, under ten minutes
    python dev.py bench gpu --compile yes    # and the base through torch.compile, both sides
    python dev.py bench gpu --quick     # the same at toy size; also without a GPU

Random weights in bfloat16, rank 16 on the attention layers, 512 and 1024 px, batch 1 and 4. Times are CUDA events',
memory is the most that was allocated above the base, and the matrix rate is measured with products of 8192 x 8192.
"""

import argparse
import gc
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from benchmarks import _sd15
from benchmarks._arms import STEPS, Bed, Floor, Ours, Peft
from benchmarks._comfyui import ComfyUI, comfyui_here
from benchmarks._measure import Clock, Goal, Table, in_turn, main
from benchmarks._memory import resident, settle

FLOOR, OURS, PEFT = "floor", "ours, TriLoRA", "diffusers + peft, eager"
OURS_COMPILED, PEFT_COMPILED = "ours, base compiled", "diffusers + peft, compiled"
GOALS = (Goal(OURS, PEFT, 1 / 1.3),)
TURNS = 4


class Shape(NamedTuple):
    """A network in ComfyUI's words and in diffusers'."""

    config: str
    unet: dict[str, Any]
    diffusers: dict[str, Any]


SDXL_UNET = _sd15.UNET | {
    "channel_mult": [1, 2, 4], "num_res_blocks": [2, 2, 2], "transformer_depth": [0, 0, 2, 2, 10, 10],
    "transformer_depth_middle": 10, "transformer_depth_output": [0, 0, 0, 2, 2, 2, 10, 10, 10], "context_dim": 2048,
    "use_linear_in_transformer": True, "adm_in_channels": 2816, "num_classes": "sequential", "num_head_channels": 64,
    "num_heads": -1,
}  # fmt: skip
SDXL_DIFFUSERS = {
    "block_out_channels": (320, 640, 1280), "cross_attention_dim": 2048, "transformer_layers_per_block": (1, 2, 10),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"), "attention_head_dim": (5, 10, 20),
    "use_linear_projection": True, "addition_embed_type": "text_time", "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}  # fmt: skip
TOY_XL = {
    "model_channels": 32, "transformer_depth": [0, 0, 1, 1, 1, 1], "transformer_depth_middle": 1,
    "transformer_depth_output": [0, 0, 0, 1, 1, 1, 1, 1, 1], "context_dim": 64, "num_head_channels": 16,
}  # fmt: skip
TOY_XL_DIFFUSERS = {
    "block_out_channels": (32, 64, 128), "cross_attention_dim": 64, "transformer_layers_per_block": (1, 1, 1),
    "attention_head_dim": (2, 4, 8),
}  # fmt: skip
SHAPES = {
    "SD1.5": Shape("SD15", _sd15.UNET, _sd15.DIFFUSERS),
    "SDXL": Shape("SDXL", SDXL_UNET, SDXL_DIFFUSERS),
}
TOYS = {
    "SD1.5": Shape(
        "SD15", _sd15.UNET | {"model_channels": 32}, _sd15.DIFFUSERS | {"block_out_channels": (32, 64, 128, 128)}
    ),
    "SDXL": Shape("SDXL", SDXL_UNET | TOY_XL, SDXL_DIFFUSERS | TOY_XL_DIFFUSERS),
}


class Events(Clock):
    """Seconds of the GPU's own events, from before the work's first kernel to after its last."""

    def __call__(self, work: Callable[[], Any]) -> float:
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        work()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / 1000


def run(args: argparse.Namespace) -> list[Table]:
    if not args.quick and not torch.cuda.is_available():
        sys.exit("There is no CUDA device here. `python dev.py bench gpu --quick` runs all of it at toy size.")
    rate = matrix_rate(256 if args.quick else 8192)
    with comfyui_here() as ui:
        return [
            table
            for name, shape in (TOYS if args.quick else SHAPES).items()
            for table in tables(ui, name, shape, rate, args)
        ]


def tables(ui: ComfyUI, name: str, shape: Shape, rate: float, args: argparse.Namespace) -> list[Table]:
    """Time, memory and share of the matrix rate for each size and batch of one network."""
    model, made = random_model(shape), []
    for px in (64,) if args.quick else (512, 1024):
        for batch in (1,) if args.quick else (1, 4):
            bed = Bed(ui, model, px // 8, batch, clock(), shape.diffusers)
            made += measured(bed, f"{name}, {px} px, batch {batch}", rate, args)
    return made


def measured(bed: Bed, what: str, rate: float, args: argparse.Namespace) -> list[Table]:
    makers: dict[str, Callable[[], Any]] = {FLOOR: lambda: Floor(bed), OURS: lambda: Ours(bed), PEFT: lambda: Peft(bed)}
    if args.compile:
        makers |= {OURS_COMPILED: lambda: Compiled(bed), PEFT_COMPILED: lambda: Peft(bed, compiled=True)}
    memory = {arm: [peak(make)] for arm, make in makers.items() if arm != FLOOR}
    arms = {arm: make().turn for arm, make in makers.items()}
    time = in_turn(arms, *((1, 0) if args.quick else (TURNS, 2)))
    work = operations(arms[OURS])
    share = {arm: [100 * work / seconds / rate for seconds in values] for arm, values in time.items() if arm != FLOOR}
    note = f"The card's measured rate is {rate / 1e12:.3g} TFLOP/s; a step of ours counts {work / 1e12:.3g} TFLOP."
    return [
        Table(f"A step: {what}", "s", time, PEFT, GOALS),
        Table(f"Memory above the base: {what}", "MB", memory, PEFT, (Goal(OURS, PEFT, 1.0),)),
        Table(f"Share of the matrix rate: {what}", "%", share, PEFT, (), note),
    ]


class Compiled(Ours):
    """Ours, the frozen network through torch.compile."""

    def turn(self) -> list[float]:
        self.bed.network.compile()
        try:
            return super().turn()
        finally:
            self.bed.network._compiled_call_impl = None


def clock() -> Clock:
    return Events() if torch.cuda.is_available() else Clock()


def random_model(shape: Shape) -> Any:
    """A MODEL of this shape with random weights in bfloat16, on its device."""
    import comfy.model_management
    import comfy.supported_models
    from comfy.model_patcher import ModelPatcher

    device = comfy.model_management.get_torch_device()
    config = getattr(comfy.supported_models, shape.config)(dict(shape.unet))
    config.unet_config.update(shape.unet)  # over what the class fixes at full size
    config.set_inference_dtype(torch.bfloat16, None)
    model = config.get_model({}, "").to(device)
    torch.manual_seed(0)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            gain = (0.5 / weight[0].numel()) ** 0.5 if weight.ndim > 1 else float("norm" in name and "weight" in name)
            weight.normal_(0, gain) if weight.ndim > 1 else weight.fill_(gain)
    patcher = ModelPatcher(model, load_device=device, offload_device=device)
    comfy.model_management.load_models_gpu([patcher])
    return patcher


def peak(make: Callable[[], Any]) -> float:
    """MB that an arm takes at most, from its making through three steps, above what lay there before."""
    if not torch.cuda.is_available():
        before = settle()
        make().turn()
        return (resident("VmHWM") - before) / 1e6
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    make().turn()
    return (torch.cuda.max_memory_allocated() - before) / 1e6


def matrix_rate(side: int) -> float:
    """Floating point operations a second in products of square bfloat16 matrices."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    a, b = (torch.randn(side, side, dtype=torch.bfloat16, device=device) for _ in range(2))
    time = clock()
    times = [time(lambda: [a @ b for _ in range(10)]) / 10 for _ in range(5)]
    return 2 * side**3 / min(times)


def operations(turn: Callable[[], Any]) -> float:
    """Floating point operations of a step: products, convolutions and attention, forward and backward."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        turn()
    return counter.get_total_flops() / STEPS


if __name__ == "__main__":
    main(__doc__, run, "gpu", ("--compile", "'yes': measure the compiled base as well"))
