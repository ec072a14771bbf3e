"""Step time: our training against the floor, core's trainer, and diffusers with peft.

    python dev.py bench step            # SD1.5 at full size, batch 1 and 4; about an hour of one core, 16 GB of memory
    python dev.py bench step --quick    # the demo model

The network of SD1.5 with random weights, its 128 attention layers at rank 16, 128 x 128 px, float32, one thread; the
processor seconds of whole steps, arms in turn. The floor is the frozen network forward and backward to its input.
Core's trainer is run whole through its node, at its own defaults but for rank and float32; it trains every layer.
"""

import argparse
from pathlib import Path

from benchmarks import _sd15
from benchmarks._arms import DEMO, Bed, Core, Floor, Ours, Peft
from benchmarks._comfyui import comfyui_here
from benchmarks._measure import Clock, Goal, Table, in_turn, main

FLOOR, OURS, LORA, PEFT = "floor", "ours, TriLoRA", "ours, LoRA", "diffusers + peft, LoRA"
BYPASS, BARE, DEFAULT = "core, bypass", "core, bypass, no checkpointing", "core, default mode"
GOALS = {
    1: (Goal(OURS, FLOOR, 1.03), Goal(OURS, LORA, 1.02), Goal(OURS, BYPASS, 0.45), Goal(OURS, PEFT, 0.97)),
    4: (Goal(OURS, FLOOR, 1.05), Goal(OURS, LORA, 1.02), Goal(OURS, BYPASS, 0.15), Goal(OURS, PEFT, 0.97)),
}
TURNS, CORE_TURNS = 6, {1: 3, 4: 1}  # of two counted steps; core's at batch 4 take most of a minute
DEFAULT_NEEDS = 24e9  # bytes; a run with core's arms in it was killed at 18 GB


def run(args: argparse.Namespace) -> list[Table]:
    with comfyui_here() as ui:
        model = (ui.demo() if args.quick else ui.sd15()).model
        diffusers = DEMO if args.quick else _sd15.DIFFUSERS
        batches = [int(batch) for batch in (args.batch or "1,4").split(",")]
        side = 8 if args.quick else 16
        beds = [Bed(ui, model, side, batch, Clock(), diffusers) for batch in batches]
        return [table(bed, *((1, 1) if args.quick else (TURNS, CORE_TURNS[bed.batch]))) for bed in beds]


def table(bed: Bed, turns: int, core_turns: int) -> Table:
    """All arms at one batch: the quick ones and core's bypass in turn, then core's slow ones, once more the floor."""
    arms = {FLOOR: Floor(bed), OURS: Ours(bed), LORA: Ours(bed, "lora"), PEFT: Peft(bed)}
    core = {BYPASS: Core(bed, bypass_mode=True), BARE: Core(bed, bypass_mode=True, gradient_checkpointing=False)}
    note = "A turn is three steps, of which the first is not counted; core's are those between its optimizer's."
    if enough := parameters(bed) < 1e8 or free_memory() > DEFAULT_NEEDS:
        core[DEFAULT] = Core(bed)
    quick = in_turn({name: arm.turn for name, arm in arms.items()}, turns)
    slow = in_turn({name: arm.turn for name, arm in core.items()}, core_turns, warm=0)
    note += "" if enough else " Its default mode needs more memory than was free here, and was left out."
    return Table(f"A step at batch {bed.batch}", "s", {**quick, **slow}, FLOOR, GOALS.get(bed.batch, ()), note)


def parameters(bed: Bed) -> int:
    return sum(weight.numel() for weight in bed.network.parameters())


def free_memory() -> float:
    """Bytes that a process may still take."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    return 1024.0 * next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))


if __name__ == "__main__":
    main(__doc__, run, "step", ("--batch", "pictures a step, such as 1,4"))
