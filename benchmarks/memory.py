"""Memory of one training above the loaded base: ours, core's trainer, diffusers with peft.

    python dev.py bench memory            # SD1.5 at full size; 16 GB of memory, some minutes
    python dev.py bench memory --quick    # the demo model, all in one process

Each arm has a process of its own, which loads the base and trains; what is given is the most that lay in memory
at any moment (peak resident set, Linux's VmHWM) above what lay there when the base was loaded.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Callable

from benchmarks import _sd15
from benchmarks._arms import DEMO, STEPS, Bed, Core, Ours, Peft
from benchmarks._comfyui import comfyui_here
from benchmarks._measure import Clock, Goal, Table, main
from benchmarks._memory import resident, settle

OURS, OURS_LORA, PEFT = "ours, TriLoRA", "ours, LoRA", "diffusers + peft, LoRA"
BYPASS, DEFAULT = "core, bypass", "core, default mode"
REMEMBERING, CHECKPOINTED = "ours at 256 x 256 px", "ours at 256 x 256 px, checkpointing"
SIDES = {REMEMBERING: 32, CHECKPOINTED: 32}
ARMS = (OURS, OURS_LORA, PEFT, BYPASS, DEFAULT, REMEMBERING, CHECKPOINTED)


def run(args: argparse.Namespace) -> list[Table]:
    if args.arm:
        print(json.dumps(one(args.arm, args.quick)))
        sys.exit()
    arms = (OURS, BYPASS, REMEMBERING, CHECKPOINTED) if args.quick else ARMS
    held = {arm: [one(arm, True) if args.quick else in_process_of_its_own(arm)] for arm in arms}
    small = {arm: held[arm] for arm in arms if arm not in SIDES}
    others = [Goal(OURS, arm, 1.0) for arm in small if not arm.startswith("ours")]
    both = {arm: held[arm] for arm in SIDES}
    note = "The base in float32 takes 3,438 MB; an arm above that holds a second one." if not args.quick else ""
    return [
        Table("Memory of a training at 128 x 128 px, batch 1", "MB", small, OURS, others, note),
        Table("Checkpointing", "MB", both, REMEMBERING, [Goal(CHECKPOINTED, REMEMBERING, 2 / 3)]),
    ]


def in_process_of_its_own(arm: str) -> float:
    command = [sys.executable, "-m", "benchmarks.memory", "--arm", arm]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
    return float(json.loads(done.stdout.splitlines()[-1]))


def one(arm: str, quick: bool) -> float:
    """MB that a training takes at most, above the loaded base."""
    with comfyui_here() as ui:
        import comfy.model_management

        model = (ui.demo() if quick else ui.sd15()).model
        comfy.model_management.load_models_gpu([model])
        bed = Bed(ui, model, SIDES.get(arm, 16), 1, Clock(), DEMO if quick else _sd15.DIFFUSERS)
        before = settle()
        train(arm, bed)()
        return (resident("VmHWM") - before) / 1e6


def train(arm: str, bed: Bed) -> Callable[[], object]:
    """Sets an arm up and lets it train."""
    if arm in (BYPASS, DEFAULT):
        return lambda: Core(bed, bypass_mode=arm == BYPASS).run(STEPS)
    if arm == PEFT:
        return lambda: Peft(bed).turn()
    method = "lora" if arm == OURS_LORA else "trilora"
    return lambda: Ours(bed, method, checkpointing=arm == CHECKPOINTED).turn()


if __name__ == "__main__":
    main(__doc__, run, "memory", ("--arm", "measure this one in this process"))
