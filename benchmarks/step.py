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
from benchmarks._arms import DEMO, Bed, Core, DiffusersFloor, Floor, Ours, Peft
from benchmarks._comfyui import comfyui_here
from benchmarks._measure import Clock, Goal, Table, in_turn, main

FLOOR, OURS, LORA = "floor", "ours, TriLoRA", "ours, LoRA"
DIFFUSERS_FLOOR, PEFT = "floor of diffusers", "diffusers + peft, LoRA"
BYPASS, BARE, DEFAULT = "core, bypass", "core, bypass, no checkpointing", "core, default mode"
GOALS = {
    1: (Goal(OURS, FLOOR, 1.03), Goal(OURS, LORA, 1.02), Goal(OURS, PEFT, 0.97)),
    4: (Goal(OURS, FLOOR, 1.05), Goal(OURS, LORA, 1.02), Goal(OURS, PEFT, 0.97)),
}
CORE_GOALS = {1: (Goal(OURS, BYPASS, 0.45),), 4: (Goal(OURS, BYPASS, 0.15),)}
TURNS, CORE_TURNS = {1: 12, 4: 6}, {1: 12, 4: 2}  # of two counted steps; core's at batch 4 take most of a minute
DEFAULT_NEEDS = 24e9  # bytes; a run with core's arms in it was killed at 18 GB


def run(args: argparse.Namespace) -> list[Table]:
    with comfyui_here() as ui:
        model = (ui.demo() if args.quick else ui.sd15()).model
        diffusers = DEMO if args.quick else _sd15.DIFFUSERS
        side, made = 8 if args.quick else 16, []
        for batch in map(int, (args.batch or "1,4").split(",")):
            bed = Bed(ui, model, side, batch, Clock(), diffusers)
            ours = Ours(bed)
            made += [quick_arms(bed, ours, args.quick), core_arms(bed, ours, args.quick)]
        return made


def quick_arms(bed: Bed, ours: Ours, quick: bool) -> Table:
    """Ours, the floors and peft."""
    arms = {FLOOR: Floor(bed), OURS: ours, LORA: Ours(bed, "lora")}
    arms |= {DIFFUSERS_FLOOR: DiffusersFloor(bed), PEFT: Peft(bed)}
    samples = in_turn({name: arm.turn for name, arm in arms.items()}, 1 if quick else TURNS.get(bed.batch, 2))
    note = "A turn is three steps of each arm, of which the first is not counted."
    return Table(f"A step at batch {bed.batch}", "s", samples, FLOOR, GOALS.get(bed.batch, ()), note)


def core_arms(bed: Bed, ours: Ours, quick: bool) -> Table:
    """Ours and core's."""
    arms = {OURS: ours, BYPASS: Core(bed, bypass_mode=True)}
    arms[BARE] = Core(bed, bypass_mode=True, gradient_checkpointing=False)
    note = "A turn is three steps; core's are those between its optimizer's."
    if parameters(bed) < 1e8 or free_memory() > DEFAULT_NEEDS:
        arms[DEFAULT] = Core(bed)
    else:
        note += " Its default mode needs more memory than was free here, and was left out."
    turns = 1 if quick else CORE_TURNS.get(bed.batch, 1)
    samples = in_turn({name: arm.turn for name, arm in arms.items()}, turns, warm=0)
    return Table(f"A step at batch {bed.batch}: core's", "s", samples, OURS, CORE_GOALS.get(bed.batch, ()), note)


def parameters(bed: Bed) -> int:
    return sum(weight.numel() for weight in bed.network.parameters())


def free_memory() -> float:
    """Bytes that a process may still take."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    return 1024.0 * next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))


if __name__ == "__main__":
    main(__doc__, run, "step", ("--batch", "pictures a step, such as 1,4"))
