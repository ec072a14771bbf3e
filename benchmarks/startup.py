"""ComfyUI's start with and without the pack: processor seconds, and which modules the pack imports.

python dev.py bench startup [--quick]

A whole start differs from the next by more than the pack takes, so its loading is measured alone as well: in new
processes that have loaded all nodes of core.
"""

import argparse
import asyncio
import os
import re
import resource
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks._comfyui import start
from benchmarks._measure import Clock, Goal, Table, in_turn, main
from devkit import ROOT, comfyui

WITH, WITHOUT, AGAIN = "with the pack", "without", "without, plus 0.3 s"
LOADING, LIMIT = "loading the pack", "0.3 s"
HEAVY = ("diffusers", "transformers", "accelerate", "peft")
ALLOWED = 0.3  # seconds


def run(args: argparse.Namespace) -> list[Table]:
    if args.arm:
        print(loading())
        sys.exit()
    alone = [in_process_of_its_own() for _ in range(1 if args.quick else 7)]
    with TemporaryDirectory(prefix="trilora-bench-") as folder:
        bare, packed = (base_directory(Path(folder) / name) for name in ("bare", "packed"))
        (packed / "custom_nodes" / "TriLoRA").symlink_to(ROOT, target_is_directory=True)
        bases = {WITH: packed, WITHOUT: bare}
        arms = {name: (lambda base=base: [starting(base)[0]]) for name, base in bases.items()}
        samples = in_turn(arms, 1 if args.quick else 7, warm=0 if args.quick else 1)
        heavy = imported(packed) - imported(bare) if not args.quick else set()
    samples[AGAIN] = [seconds + ALLOWED for seconds in samples[WITHOUT]]
    said = ", ".join(sorted(heavy)) or "none"
    note = "" if args.quick else f"Of {', '.join(HEAVY)}, imported because of the pack: {said}."
    limited = {LOADING: alone, LIMIT: [ALLOWED] * len(alone)}
    return [
        Table("Loading the pack alone", "s", limited, LIMIT, [Goal(LOADING, LIMIT, 1.0)]),
        Table("Start of ComfyUI", "s", samples, WITHOUT, [Goal(WITH, AGAIN, 1.0)], note),
    ]


def in_process_of_its_own() -> float:
    command = [sys.executable, "-m", "benchmarks.startup", "--arm", "loading"]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True, cwd=ROOT)
    return float(done.stdout.splitlines()[-1])


def loading() -> float:
    """Processor seconds that the pack adds to a ComfyUI that has loaded its own nodes."""
    with TemporaryDirectory(prefix="trilora-bench-") as folder:
        start(Path(folder))
        import nodes

        asyncio.run(nodes.init_extra_nodes(init_custom_nodes=False, init_api_nodes=False))
        return Clock()(lambda: asyncio.run(nodes.load_custom_node(str(ROOT))))


def base_directory(base: Path) -> Path:
    for folder in ("models", "input", "output", "custom_nodes"):
        (base / folder).mkdir(parents=True)
    return base


def starting(base: Path, *python: str) -> tuple[float, str]:
    """Processor seconds of a start that ends when all nodes are loaded, and what was said on the way."""
    place = comfyui.find(ROOT)
    command = [sys.executable, *python, str(place / "main.py"), "--quick-test-for-ci", "--cpu"]
    command += ["--base-directory", str(base), "--database-url", "sqlite:///:memory:"]
    before = spent()
    done = subprocess.run(command, capture_output=True, text=True, cwd=base, env=os.environ)
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    if (base / "custom_nodes" / "TriLoRA").exists() and "IMPORT FAILED" in done.stdout + done.stderr:
        raise RuntimeError("ComfyUI could not load the pack:\n" + done.stderr[-2000:])
    return spent() - before, done.stderr


def spent() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def imported(base: Path) -> set[str]:
    """Which of the heavy packages a start imports."""
    lines = re.findall(r"import time:.*\|\s+([\w.]+)$", starting(base, "-X", "importtime")[1], re.MULTILINE)
    return {name for name in HEAVY if name in lines}


if __name__ == "__main__":
    main(__doc__, run, "startup", ("--arm", "measure the pack's loading in this process"))
