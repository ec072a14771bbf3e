"""Time to the first step: from queueing to the end of the first optimizer step, ours and core's.

    python dev.py bench first_step            # SD1.5 at full size, 20 drawn pictures of 128 x 128 px; ten minutes
    python dev.py bench first_step --quick    # the demo model, 3 pictures

Both begin with a loaded checkpoint and a folder of pictures with captions. Core goes through its own dataset nodes and
TrainLoraNode; cold, ours encodes everything; warm, it finds it on disk, as in a second run of ComfyUI.
"""

import argparse
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks._arms import CORE, after_each_step, quiet_bar
from benchmarks._comfyui import ComfyUI, Wires, comfyui_here
from benchmarks._measure import Clock, Goal, Table, in_turn, main
from demo.draw import draw
from demo.world import caption, specs_over, trained_triples

COLD, WARM, CORE_COLD = "ours, nothing encoded", "ours, encoded before", "core"
FOLDER = "bench_pictures"
TRAIN = {
    "steps": 1000, "learning_rate": 1e-4, "rank": 16, "batch": 1, "seed": 0, "alpha": 8.0, "preserve": 0.0,
    "shrink": 0.0, "clip_norm": 1.0, "targets": {"targets": "attention"},
    "method": {"method": "trilora", "core": "diagonal", "initialisation": "balanced"},
}  # fmt: skip
WATCH = {
    "held_out_share": 0.0, "previews": {"previews": "off"}, "resume": False, "checkpoint_every": 0, "score_every": 50,
    "patience": 0, "keep_best": True, "checkpoints": 2,
}  # fmt: skip


class FirstStepDone(BaseException):
    """Ends a training after its first step."""


def run(args: argparse.Namespace) -> list[Table]:
    with comfyui_here() as ui:
        lay_out_pictures(ui.base / "input" / FOLDER, 3 if args.quick else 20)
        wires = ui.demo() if args.quick else ui.sd15()
        arms = {COLD: lambda: ours(ui, wires, True), WARM: lambda: ours(ui, wires, False)}
        arms[CORE_COLD] = lambda: core(ui, wires)
        samples = in_turn(arms, 1 if args.quick else 5, warm=0)
        shutil.rmtree(ui.base / "input" / FOLDER)
    goals = (Goal(COLD, CORE_COLD, 1.0), Goal(WARM, COLD, 0.3))
    count = "3" if args.quick else "20"
    note = "Ours tries a step beforehand, to say how long the run will take."
    return [Table(f"To the first step, {count} pictures", "s", samples, CORE_COLD, goals, note)]


def lay_out_pictures(folder: Path, count: int) -> None:
    """Drawn pictures with a caption each."""
    folder.mkdir(parents=True, exist_ok=True)
    for i, spec in enumerate(specs_over(trained_triples(), count, seed=0)):
        draw(spec).save(folder / f"{i:05}.png")
        (folder / f"{i:05}.txt").write_text(caption(spec))


def ours(ui: ComfyUI, wires: Wires, cold: bool) -> list[float]:
    if cold:
        shutil.rmtree(ui.base / "output" / "TriLoRA", ignore_errors=True)

    def queue() -> None:
        chosen = {"trigger": [""], "resolution": [128], "bucket_step": [0]}
        (dataset,) = ui.run("TriLoRADataset", folder=[FOLDER], **chosen)
        (watch,) = ui.run("TriLoRATrainWatch", **WATCH)
        ui.run("TriLoRATrain", **wires._asdict(), dataset=dataset, watch=watch, **TRAIN)

    return [until_the_first_step(queue)]


def core(ui: ComfyUI, wires: Wires) -> list[float]:
    def queue() -> None:
        images, texts = ui.run("LoadImageTextDataSetFromFolder", folder=FOLDER)
        encoders = {"vae": [wires.vae], "clip": [wires.clip]}
        latents, positive = ui.run("MakeTrainingDataset", images=images, texts=texts, **encoders)
        chosen = CORE | {"steps": 1000, "batch_size": 1, "bypass_mode": True}
        inputs = {name: [value] for name, value in chosen.items()}
        ui.run("TrainLoraNode", model=[wires.model], latents=latents, positive=positive, **inputs)

    return [until_the_first_step(queue)]


def until_the_first_step(queue: Callable[[], Any]) -> float:
    def work() -> None:
        try:
            queue()
        except FirstStepDone:
            return
        raise AssertionError("The training made no step.")

    with after_each_step(_done), quiet_bar():
        return Clock()(work)


def _done() -> None:
    raise FirstStepDone


if __name__ == "__main__":
    main(__doc__, run, "first_step")
