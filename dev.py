"""One command for each thing one does with this repository; needs nothing but Python 3.10 or newer.

python dev.py demo            train and use a TriLoRA in a real ComfyUI, and show the pictures
python dev.py test [ARGS]     run every check; ARGS go to pytest
python dev.py comfy [ARGS]    open ComfyUI's page with the pack in it; ARGS go to ComfyUI
python dev.py bench [NAME]    run one of the benchmarks
"""

import sys

if sys.version_info < (3, 10):  # noqa: UP036 - before anything that an older Python can't read
    sys.exit("TriLoRA needs Python 3.10 or newer; this is " + sys.version.split()[0])

import argparse
import os
import shutil
import signal
import subprocess
import time
import webbrowser
from pathlib import Path

from demo.workflow import build
from devkit import ROOT, DevError, browser, comfyui, environment
from devkit.demo import adapters, lay_out_sheet, pictures, run_watched
from devkit.server import comfy_server, free_port
from devkit.terminal import clock

VENV = ROOT / ".venv"
BASE = ROOT / ".demo"
"""ComfyUI's base directory for the demo and the page: models, input, output, user."""
COMFY_PORT = 8188


def prepare() -> tuple[Path, Path]:
    """Make sure of the environment and of ComfyUI; return the interpreter and ComfyUI's folder."""
    with environment.alone(ROOT / ".venv.lock"):
        python = environment.make(VENV)
        comfy = comfyui.obtain(ROOT, python)
        environment.install(VENV, environment.requirements(ROOT, comfy))
    return python, comfy


def demo(args: argparse.Namespace) -> int:
    """Queue the shipped workflow on a headless ComfyUI and say where its results are."""
    start = time.monotonic()
    prompt = build()
    python, comfy = prepare()
    lay_out(BASE)
    ready = time.monotonic()
    print("Starting ComfyUI ...", flush=True)
    with comfy_server(python, comfy, BASE, args.rest) as server:
        since = time.time()
        entry = run_watched(server, prompt)
        made = pictures(server, prompt, entry)
    sheet = lay_out_sheet(python, made, BASE / "output" / "TriLoRA" / "sheet.png")
    end = time.monotonic()
    print(f"\nDone in {clock(end - start)}, {clock(end - ready)} of it after the installation. Look at:")
    print(f"  {sheet}  (base, LoRA and TriLoRA side by side; strengths; loss and singular values)")
    print(f"  {BASE / 'output' / 'TriLoRA'}  (each picture)")
    for file in adapters(BASE, since):
        print(f"  {file}  (an adapter, a standard LoRA file)")
    print("\nSee it, change it, run it again in the browser: python dev.py comfy")
    return 0


def comfy(args: argparse.Namespace) -> int:
    """Open ComfyUI's page with the pack in it, until Ctrl-C."""
    python, folder = prepare()
    lay_out(BASE)
    print("Starting ComfyUI ...", flush=True)
    with comfy_server(python, folder, BASE, args.rest, port=args.port or free_port(COMFY_PORT)) as server:
        print(f"ComfyUI runs at {server.url} (log: {server.log}). The example workflows are in its template browser")
        print("under TriLoRA, and among the saved workflows. Ctrl-C stops it.", flush=True)
        if not args.no_browser:
            webbrowser.open(server.url)
        server.process.wait()
        server.check_alive()
    return 0


def test(args: argparse.Namespace) -> int:
    """Run every check, even when one has failed, and fail if any did."""
    python, comfy = prepare()
    checks = {
        "ruff check": ["ruff", "check", "."],
        "ruff format": ["ruff", "format", "--check", "."],
        "mypy": ["mypy"],
        "pytest": ["pytest", *args.rest],
    }
    failed = [] if has_browser() else ["a browser"]
    for name, command in checks.items():
        print(f"-- {name}", flush=True)
        if run_module(python, comfy, command):
            failed.append(name)
    if failed:
        print(f"Failed: {', '.join(failed)}")
    return 1 if failed else 0


def has_browser() -> bool:
    """Whether there is a browser to test the page in; where not, its tests fail, and this says why beforehand."""
    try:
        return bool(browser.find())
    except DevError as error:
        print(error, flush=True)
        return False


def bench(args: argparse.Namespace) -> int:
    """Run a benchmark by name, or list them."""
    files = {file.stem: file for file in sorted((ROOT / "benchmarks").glob("*.py")) if not file.stem.startswith("_")}
    if args.name not in files:
        print("Benchmarks: " + (", ".join(files) or "none yet"))
        return 0 if args.name is None else 2
    python, comfy = prepare()
    return subprocess.run([python, files[args.name], *args.rest], cwd=ROOT, env=with_comfy(comfy)).returncode


def run_module(python: Path, comfy: Path, command: list[str]) -> int:
    """Run a tool of the environment in the repository, and return its exit code."""
    return subprocess.run([python, "-m", *command], cwd=ROOT, env=with_comfy(comfy)).returncode


def with_comfy(comfy: Path) -> dict[str, str]:
    """The process environment, with ComfyUI's place in it."""
    return {**os.environ, "COMFYUI_PATH": str(comfy)}


def lay_out(base: Path) -> None:
    """Fill ComfyUI's base directory: example datasets, and example workflows where the page lists saved ones."""
    (base / "custom_nodes").mkdir(parents=True, exist_ok=True)
    (base / "models").mkdir(exist_ok=True)
    for dataset in folders(ROOT / "demo" / "styles"):
        shutil.copytree(dataset, base / "input" / dataset.name, dirs_exist_ok=True)
    saved = base / "user" / "default" / "workflows" / "TriLoRA"
    saved.mkdir(parents=True, exist_ok=True)
    for workflow in (ROOT / "example_workflows").glob("*.json"):
        if not (saved / workflow.name).exists():  # what was changed in the browser stays
            shutil.copy2(workflow, saved)


def folders(parent: Path) -> list[Path]:
    """The folders inside a folder; none if it is not there."""
    return [folder for folder in parent.iterdir() if folder.is_dir()] if parent.is_dir() else []


def parse(argv: list[str]) -> argparse.Namespace:
    """Read the command line; what is not known here is handed on in `rest`."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    commands = parser.add_subparsers(required=True, metavar="demo | test | comfy | bench")
    for command in (demo, test, comfy, bench):
        one = commands.add_parser(
            command.__name__, allow_abbrev=False, help=command.__doc__, description=command.__doc__
        )
        one.set_defaults(command=command)
        if command is comfy:
            one.add_argument("--no-browser", action="store_true", help="don't open the page")
            one.add_argument("--port", type=int, help=f"default: {COMFY_PORT}, or a free one")
        if command is bench:
            one.add_argument("name", nargs="?")
    args, rest = parser.parse_known_args(argv)
    args.rest = rest
    return args


def main(argv: list[str]) -> int:
    """Run one command; what goes wrong is told in words."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that a server we started is stopped too
    args = parse(argv)
    try:
        return args.command(args)
    except KeyboardInterrupt:
        print("\nStopped.")
        return 130
    except DevError as error:
        print(f"\n{error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
