"""Measuring arms in turn, and what is said of them: medians, spreads, ratios, goals; as a page and as JSON."""

import argparse
import gc
import json
import platform
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

from devkit import ROOT, comfyui
from trilora.disk import write

RESULTS, QUICK_RESULTS = ROOT / "benchmarks" / "results", ROOT / ".bench" / "results"
PACKAGES = ("torch", "diffusers", "transformers", "peft", "safetensors")
Samples = Mapping[str, Sequence[float]]
Arm = Callable[[], Sequence[float]]
"""Does its work once and gives what was measured, once or several times."""


class Clock:
    """Processor seconds of this process: what else runs on the machine is not counted, as it is in wall time."""

    def now(self) -> float:
        return time.process_time()

    def __call__(self, work: Callable[[], Any]) -> float:
        begin = self.now()
        work()
        return self.now() - begin


def in_turn(arms: Mapping[str, Arm], turns: int, warm: int = 1) -> dict[str, list[float]]:
    """Every arm once a turn, so that what slows the machine down slows all of them; the first turns warm up."""
    samples: dict[str, list[float]] = {name: [] for name in arms}
    for turn in range(-warm, turns):
        for name, arm in arms.items():
            gc.collect()  # takes 0.3 s in ComfyUI, and would fall to any arm
            measured = arm()
            print(f"turn {turn + 1} of {turns}, {name}:", *map(number, measured), file=sys.stderr, flush=True)
            if turn >= 0:
                samples[name] += measured
    return samples


class Goal(NamedTuple):
    """That one arm over another is at most this; see `ratio`."""

    arm: str
    over: str
    at_most: float


class Ratio(NamedTuple):
    """Of two arms, and where 90 % of it lie when the samples are drawn anew (bootstrap)."""

    value: float
    low: float
    high: float


def ratio(a: Sequence[float], b: Sequence[float], draws: int = 1000) -> Ratio:
    """The median over the turns of `a` / `b`: what slows the machine for a while slows both samples of a turn.

    Where the arms were not measured equally often, the ratio of their medians.
    """
    draw = random.Random(0)

    def again() -> float:
        places = draw.choices(range(len(a)), k=len(a))
        others = places if len(a) == len(b) else draw.choices(range(len(b)), k=len(b))
        return quotient([a[i] for i in places], [b[i] for i in others])

    drawn = sorted(again() for _ in range(draws))
    return Ratio(quotient(a, b), drawn[draws // 20], drawn[-draws // 20])


def quotient(a: Sequence[float], b: Sequence[float]) -> float:
    """The value of `ratio` alone."""
    if len(a) != len(b):
        return statistics.median(a) / statistics.median(b)
    return statistics.median(x / y for x, y in zip(a, b, strict=True))


@dataclass(frozen=True)
class Table:
    """What was measured of arms that are compared.

    Attributes:
        title: what was measured, and of what.
        unit: of the samples.
        samples: arm -> measurements.
        over: the arm that the others are set over.
        goals: what was aimed at.
        note: what a reader has to know.
        picture: file name of a plot beside the page.
    """

    title: str
    unit: str
    samples: Samples
    over: str
    goals: Sequence[Goal] = ()
    note: str = ""
    picture: str = ""

    def text(self) -> str:
        """The table in Markdown, its goals below it."""
        head = f"| | median, {self.unit} | least to most | n | / {self.over} |"
        lines = [f"## {self.title}", "", head, "|---" * 5 + "|"]
        over = self.samples[self.over]
        for arm, values in self.samples.items():
            middle, spread = statistics.median(values), f"{number(min(values))} to {number(max(values))}"
            share = f"{quotient(values, over):.3f}" if all(over) else "-"
            lines.append(f"| {arm} | {number(middle)} | {spread} | {len(values)} | {share} |")
        lines += ["", self.note] if self.note else []
        lines += ["", f"![{self.title}]({self.picture})"] if self.picture else []
        return "\n".join(lines + self._aims()) + "\n"

    def _aims(self) -> list[str]:
        if not self.goals:
            return []
        lines = ["", "| ratio | goal | measured (90 %) | |", "|---" * 4 + "|"]
        for goal in self.goals:
            found = ratio(self.samples[goal.arm], self.samples[goal.over])
            near = "within the spread" if found.low <= goal.at_most else "missed"
            said = "reached" if found.high <= goal.at_most else near
            measured = f"{found.value:.3f} ({found.low:.3f} to {found.high:.3f})"
            lines.append(f"| {goal.arm} / {goal.over} | <= {goal.at_most:.2f} | {measured} | {said} |")
        return lines


def number(value: float) -> str:
    """Three digits, more of large numbers."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def about() -> dict[str, str]:
    """The machine, the versions, the commit."""
    import torch

    devices = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "none"
    return {
        "machine": ", ".join([processor(), f"{torch.get_num_threads()} of its threads", *devices]),
        "system": platform.platform(),
        "versions": ", ".join(map(" ".join, found.items())) + f", ComfyUI {comfyui.VERSION}",
        "commit": commit(),
        "command": " ".join(["python dev.py bench", Path(sys.argv[0]).stem, *sys.argv[1:]]),
    }


def processor() -> str:
    """Its name, where the system tells it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())


def commit() -> str:
    """What is checked out, and whether files were changed since."""
    git = ["git", "-C", str(ROOT)]
    try:
        head = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True).stdout
        changed = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return head.strip() + (" with changes" if changed.strip() else "")


def page(title: str, tables: Sequence[Table], said: Mapping[str, str]) -> str:
    """All of it in Markdown."""
    head = [f"# {title}", "", *(f"- {name}: {value}" for name, value in said.items()), ""]
    return "\n".join([*head, *(table.text() for table in tables)])


def keep(name: str, title: str, tables: Sequence[Table], folder: Path) -> Path:
    """Write `name.md` for people and `name.json` with every sample."""
    said = about()
    data = {"title": title, **said, "tables": [asdict(table) for table in tables]}
    write(folder / f"{name}.json", json.dumps(data, indent=1).encode())
    write(folder / f"{name}.md", page(title, tables, said).encode())
    return folder / f"{name}.md"


def main(doc: str, run: Callable[[argparse.Namespace], Sequence[Table]], name: str, *options: tuple[str, Any]) -> None:
    """The command line that benchmarks share: measure, show, keep.

    Args:
        doc: of the benchmark; its first line is the title.
        run: gives the tables; `args.quick` asks for toy size, `args.to` is where pictures go.
        name: of the files.
        options: further arguments, (flag, help).
    """
    import torch

    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="toy size: shows that it runs; its figures say little")
    parser.add_argument("--to", type=Path, help=f"folder of the results; default {RESULTS.relative_to(ROOT)}")
    for flag, words in options:
        parser.add_argument(flag, help=words)
    args = parser.parse_args()
    args.to = args.to or (QUICK_RESULTS if args.quick else RESULTS)
    if not torch.cuda.is_available():
        torch.set_num_threads(1)
    tables = run(args)
    for table in tables:
        print(table.text(), flush=True)
    title = doc.splitlines()[0].rstrip(".") + (" (toy size)" if args.quick else "")
    print(keep(name, title, tables, args.to))
