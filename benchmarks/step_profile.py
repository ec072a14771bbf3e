"""Where a step's time above the floor goes: ours over ComfyUI's network, peft's over diffusers'.

    python dev.py bench step_profile            # SD1.5 at full size, batch 1; about fifteen minutes of one core
    python dev.py bench step_profile --quick    # the demo model

The steps of `step`, under PyTorch's profiler: what each kind of work takes beyond the same kind in the floor of that
turn. The profiler's own cost falls to whoever calls more operations, so that all together is more than `step` measures.
"""

import argparse
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from torch.profiler import ProfilerActivity, profile

from benchmarks import _sd15
from benchmarks._arms import DEMO, Bed, DiffusersFloor, Floor, Ours, Peft
from benchmarks._comfyui import comfyui_here
from benchmarks._measure import Clock, Table, in_turn, main

KINDS = {
    "products of matrices": r"aten::(mm|addmm|bmm|baddbmm)_?$",
    "convolutions": r"aten::.*conv",
    "AdamW and clipping": r"aten::_(fused|foreach)_|aten::linalg_vector_norm",
    "sums, factors, norms, attention": r"aten::(add|sub|mul|div|sum|mean|pow|neg|cat|copy|fill|zero|silu|gelu|sigmoid|"
    r"_?softmax|native_|_?scaled_dot|_flash|_?upsample)",
}
REST, WHOLE = "views, allocation, autograd, Python", "all together"
TURNS = 8


class ProfilingClock(Clock):
    """Keeps the milliseconds that each kind of work took, of every step timed.

    Attributes:
        seen: kind -> milliseconds, a step each.
    """

    def __init__(self) -> None:
        self.seen: list[Counter[str]] = []

    def __call__(self, work: Callable[[], Any]) -> float:
        with profile(activities=[ProfilerActivity.CPU]) as watched:
            taken = super().__call__(work)
        self.seen.append(by_kind(watched.key_averages(), 1000 * taken))
        return taken


def by_kind(operations: Iterable[Any], whole: float) -> Counter[str]:
    """Milliseconds of each kind of work; what no kind claims is the rest of the whole."""
    found = Counter({WHOLE: whole})
    for operation in operations:
        kind = next((name for name, like in KINDS.items() if re.match(like, operation.key)), None)
        if kind:
            found[kind] += operation.self_cpu_time_total / 1000
    found[REST] = whole - sum(found[kind] for kind in KINDS)
    return found


def run(args: argparse.Namespace) -> list[Table]:
    with comfyui_here() as ui:
        model = (ui.demo() if args.quick else ui.sd15()).model
        bed = Bed(ui, model, 8 if args.quick else 16, 1, ProfilingClock(), DEMO if args.quick else _sd15.DIFFUSERS)
        arms = {"floor": Floor(bed), "ours": Ours(bed), "floor of diffusers": DiffusersFloor(bed), "peft": Peft(bed)}
        seen: dict[str, list[Counter[str]]] = {name: [] for name in arms}

        def watched(name: str) -> list[float]:
            bed.clock.seen.clear()
            taken = arms[name].turn()
            seen[name] += bed.clock.seen[1:]
            return taken

        turns = 1 if args.quick else TURNS
        taken = in_turn({name: lambda name=name: watched(name) for name in arms}, turns)
    counted = {name: steps[-len(taken[name]) :] for name, steps in seen.items()}  # without the warm-up's
    return [above(counted, "ours", "floor"), above(counted, "peft", "floor of diffusers")]


def above(seen: Mapping[str, Sequence[Counter[str]]], arm: str, floor: str) -> Table:
    """What the arm's steps take of each kind beyond the floor's."""
    samples = {floor: [step[WHOLE] for step in seen[floor]]}
    for kind in (*KINDS, REST, WHOLE):
        samples[kind] = [a[kind] - b[kind] for a, b in zip(seen[arm], seen[floor], strict=True)]
    return Table(f"What {arm} takes above the {floor}", "ms", samples, floor)


if __name__ == "__main__":
    main(__doc__, run, "step_profile")
