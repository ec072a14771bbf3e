"""How cost grows: with the rank, the number of layers, the size of the pictures, and their number.

    python dev.py bench growth            # ten thousand drawn pictures; half an hour of one core
    python dev.py bench growth --quick

Ranks, layers and sizes on a UNet of ComfyUI's SD1.5 class that is 128 channels wide, with random weights; pictures with
the demo model's own encoders, at 64 x 64 px.
"""

import argparse
import math
import shutil
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw

from benchmarks import _sd15
from benchmarks._arms import Bed, Floor, Ours
from benchmarks._comfyui import ComfyUI, comfyui_here
from benchmarks._measure import Clock, Table, in_turn, main, number
from benchmarks._memory import settle
from benchmarks.first_step import FOLDER, lay_out_pictures

RANKS, DEPTHS, SIDES, PICTURES = (4, 8, 16, 32, 64, 128), (2, 4, 6, 9), (8, 16, 24, 32), (10, 100, 1000, 10_000)
QUICK = ((4, 16), (1, 2), (4, 8), (4, 8))
ATTENTION = 56  # attention layers for each transformer block in every place of the small UNet
FLOOR = "floor"


def run(args: argparse.Namespace) -> list[Table]:
    ranks, depths, sides, counts = QUICK if args.quick else (RANKS, DEPTHS, SIDES, PICTURES)
    turns = 1 if args.quick else 4
    with comfyui_here() as ui:
        middle = bed(ui, 2 if not args.quick else 1, 16)
        by_rank = {rank: Ours(middle, rank=rank) for rank in ranks}
        by_depth = {ATTENTION * depth: Ours(bed(ui, depth, 8)) for depth in depths}
        by_side = {side * 8: Ours(bed(ui, 1, side)) for side in sides}
        return [
            grown("rank", steps(by_rank, turns, Floor(middle)), args.to),
            grown("layers", steps(by_depth, turns), args.to),
            grown("px", steps(by_side, turns), args.to),
            *many_pictures(ui, counts, args.to),
        ]


def bed(ui: ComfyUI, depth: int, side: int) -> Bed:
    """A UNet with `depth` transformer blocks in each of its seven places, and a latent."""
    import comfy.model_management
    import comfy.supported_models
    from comfy.model_patcher import ModelPatcher

    sizes = {"model_channels": 128, "channel_mult": [1, 2], "num_res_blocks": [1, 1], "transformer_depth": [depth] * 2}
    sizes |= {"transformer_depth_middle": depth, "transformer_depth_output": [depth] * 4, "context_dim": 128}
    config = comfy.supported_models.SD15(_sd15.UNET | sizes)
    config.set_inference_dtype(torch.float32, None)
    model = config.get_model({}, "")
    torch.manual_seed(0)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.copy_(_sd15.random_like(name, weight))
    device = comfy.model_management.get_torch_device()
    return Bed(ui, ModelPatcher(model, device, comfy.model_management.unet_offload_device()), side, 1, Clock(), {})


def steps(trainings: Mapping[int, Ours], turns: int, floor: Floor | None = None) -> dict[str, list[float]]:
    """Seconds of a step of each, in turn."""
    arms: dict[str, Callable[[], Sequence[float]]] = {str(size): each.turn for size, each in trainings.items()}
    return in_turn(({FLOOR: floor.turn} if floor else {}) | arms, turns)


def grown(what: str, samples: Mapping[str, Sequence[float]], folder: Path, unit: str = "s") -> Table:
    """The table and its plot."""
    first = next(iter(samples))
    sizes = [(float(size), statistics.median(values)) for size, values in samples.items() if size != FLOOR]
    name = f"growth-{what.replace(' ', '_')}.png"
    folder.mkdir(parents=True, exist_ok=True)
    plot(sizes, f"{what} -> {unit}").save(folder / name, optimize=True)
    return Table(f"Growth with {what}", unit, samples, first, picture=name)


def many_pictures(ui: ComfyUI, counts: Sequence[int], folder: Path) -> list[Table]:
    """From a folder of drawn pictures to what training takes, nothing encoded before; and the memory that stays."""
    time, held = {}, {}
    for count in counts:
        lay_out_pictures(ui.base / "input" / FOLDER, count)
        shutil.rmtree(ui.base / "output" / "TriLoRA", ignore_errors=True)
        before, kept = settle(), []
        time[str(count)] = [Clock()(lambda kept=kept: kept.append(encoded(ui)))]
        held[str(count)] = [(settle() - before) / 1e6]
        shutil.rmtree(ui.base / "input" / FOLDER)
    return [grown("pictures", time, folder), grown("pictures in memory", held, folder, "MB")]


def encoded(ui: ComfyUI) -> Any:
    """A folder of pictures as a training holds them."""
    encoding = ui.module("nodes.encoding")
    chosen = {"trigger": [""], "resolution": [64], "bucket_step": [0]}
    (dataset,) = ui.run("TriLoRADataset", folder=[FOLDER], **chosen)
    model, clip, vae = ui.demo()
    with torch.inference_mode():
        made = encoding.encode(dataset, clip, vae, False, lambda *_: None, encoding.kept_on_disk())
    with ui.module("nodes.lending").lent(model) as patcher:
        return made, encoding.examples(ui.module("nodes.denoiser").ComfyDenoiser(patcher), made)


def plot(points: Sequence[tuple[float, float]], title: str, size: tuple[int, int] = (480, 300)) -> Image.Image:
    """Points joined by a line; both axes from 0, or both logarithmic where they span a hundredfold."""
    (width, height), edge = size, 40
    wide = points[-1][0] > 100 * points[0][0]
    shown = [tuple(math.log10(max(v, 1e-9)) for v in point) if wide else point for point in points]
    left, low = min(x for x, _ in shown) if wide else 0, min(y for _, y in shown) if wide else 0
    right, top = max(x for x, _ in shown), max(max(y for _, y in shown), low + 1e-9)
    picture = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(picture)
    places = [
        (
            edge + (x - left) / (right - left) * (width - 2 * edge),
            height - edge - (y - low) / (top - low) * (height - 2 * edge),
        )
        for x, y in shown
    ]
    draw.line([(edge, edge), (edge, height - edge), (width - edge, height - edge)], fill="grey")
    draw.line(places, fill="#2060c0", width=2)
    for (x, y), (size_, value) in zip(places, points, strict=True):
        draw.ellipse((x - 3, y - 3, x + 3, y + 3), fill="#2060c0")
        draw.text((x - 10, height - edge + 6), f"{size_:g}", fill="black")
        draw.text((x - 10, y - 16), number(value), fill="black")
    draw.text((edge, 8), title + (", both axes logarithmic" if wide else ""), fill="black")
    return picture


if __name__ == "__main__":
    main(__doc__, run, "growth")
