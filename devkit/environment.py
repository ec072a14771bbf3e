"""The virtual environment `.venv`: made once, stamped, and made again when what it should hold changes."""

import ast
import hashlib
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from devkit import DevError
from devkit.terminal import run_quietly

TORCH = ("torch==2.14.1", "torchvision==0.29.1", "torchaudio==2.11.0")
"""These three fit together; newer or CPU-only builds of one break another."""
UV = "uv==0.13.8"
"""Installs the same packages as pip, four times as fast."""
NOT_NEEDED = ("comfyui-workflow-templates",)
"""Most of ComfyUI's download besides torch: example pictures that no test, demo or node looks at."""
EXTRAS = ("headless", "test")
DISK_GB = 9
REMEDY = f"Check the network and that {DISK_GB} GB of disk are free, then run the same command again."

STAMP = "trilora-installed"
UNFINISHED = "trilora-unfinished"


def python_of(venv: Path) -> Path:
    """The environment's own interpreter."""
    return venv / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def requirements(root: Path, comfy: Path) -> list[str]:
    """All that demo, tests and ComfyUI need, one requirement a line: the pins first."""
    project = (root / "pyproject.toml").read_text(encoding="utf-8")
    lines = [*TORCH, *listed(project, "dependencies")]
    for extra in EXTRAS:
        lines += listed(project, extra)
    lines += plain_lines(root / "requirements.txt")
    lines += [line for line in plain_lines(comfy / "requirements.txt") if not line.startswith(NOT_NEEDED)]
    return list(dict.fromkeys(lines))


def listed(project: str, key: str) -> list[str]:
    """The strings of one list in pyproject.toml, one a line there (Python 3.10 has no TOML reader)."""
    found = re.search(rf"^{key} = \[\n(.*?)^\]", project, re.MULTILINE | re.DOTALL)
    if not found:
        raise DevError(f"pyproject.toml has no list '{key}', written with one string a line.")
    return re.findall(r'^\s*"([^"]+)"', found[1], re.MULTILINE)


def plain_lines(file: Path) -> list[str]:
    """A requirements file without comments and empty lines."""
    lines = (line.partition("#")[0].strip() for line in file.read_text(encoding="utf-8").splitlines())
    return [line for line in lines if line]


def stamp(lines: list[str]) -> str:
    """What is to be installed, as one hash."""
    text = "\n".join([sys.version.split()[0], *sorted(lines)])
    return hashlib.sha256(text.encode()).hexdigest()


def make(venv: Path) -> Path:
    """Make the bare environment unless a usable one is there, and return its interpreter.

    One whose installation was interrupted, or whose interpreter no longer starts, is made afresh.
    """
    python = python_of(venv)
    if not (venv / UNFINISHED).exists() and starts(python):
        return python
    shutil.rmtree(venv, ignore_errors=True)
    venv.mkdir(parents=True)
    (venv / UNFINISHED).touch()
    base = getattr(sys, "_base_executable", None) or sys.executable
    remedy = "On Debian and Ubuntu: apt-get install python3-venv. Then run the same command again."
    run_quietly(f"Making {venv.name}", [base, "-m", "venv", str(venv)], venv / "install.log", remedy)
    return python


def starts(python: Path) -> bool:
    """Whether this interpreter is there and runs."""
    return python.exists() and subprocess.run([python, "-c", ""], capture_output=True).returncode == 0


def install(venv: Path, lines: list[str]) -> None:
    """Install the requirements unless the stamp says that just these are in."""
    mark = venv / STAMP
    if mark.exists() and mark.read_text() == stamp(lines):
        return
    check_disk(venv)
    (venv / UNFINISHED).touch()
    wanted = venv / "requirements.txt"
    wanted.write_text("\n".join(lines) + "\n", encoding="utf-8")
    install_packages(python_of(venv), wanted, venv / "install.log")
    mark.write_text(stamp(lines))
    (venv / UNFINISHED).unlink()


def check_disk(venv: Path) -> None:
    """Say now, not after gigabytes of download, that the disk is too small for a new environment."""
    free = shutil.disk_usage(venv).free / 1e9
    if free < DISK_GB and not (venv / STAMP).exists():
        raise DevError(
            f"PyTorch and ComfyUI's requirements need {DISK_GB} GB of disk; {free:.1f} GB are free at {venv}."
        )


def install_packages(python: Path, wanted: Path, log: Path) -> None:
    """Install with uv, and with plain pip where uv can't be had or doesn't succeed."""
    pip = [str(python), "-m", "pip", "--no-input", "--disable-pip-version-check"]
    title = "Installing PyTorch and ComfyUI's requirements (a download of about 3 GB the first time)"
    try:
        run_quietly("Installing uv", [*pip, "install", UV], log, REMEDY)
        uv = [str(python), "-m", "uv", "pip", "install", "--python", str(python), "-r", str(wanted)]
        run_quietly(title, uv, log, REMEDY, env=uv_settings(pip_config(pip)))
    except DevError as error:
        print(f"{error}\n\nTrying once more with pip.", flush=True)
        run_quietly(title, [*pip, "install", "-r", str(wanted)], log, REMEDY)


def pip_config(pip: list[str]) -> str:
    """The index, certificates and so on that pip was told to use on this machine."""
    return subprocess.run([*pip, "config", "list"], capture_output=True, text=True, check=True).stdout


UV_NAMES = {
    "index-url": "UV_DEFAULT_INDEX",
    "extra-index-url": "UV_INDEX",
    "find-links": "UV_FIND_LINKS",
    "no-index": "UV_NO_INDEX",
    "trusted-host": "UV_INSECURE_HOST",
    "constraint": "UV_CONSTRAINT",
    "cert": "SSL_CERT_FILE",
    "proxy": "ALL_PROXY",
}
"""pip's settings in uv's words: uv does not read pip's own."""


def uv_settings(config: str) -> dict[str, str]:
    """Turn `pip config list` into uv's environment; what the user has set for uv goes first."""
    settings = {"UV_HTTP_TIMEOUT": "120", "UV_INDEX_STRATEGY": "unsafe-best-match"}  # both as pip does
    for line in sorted(
        config.splitlines(), key=lambda line: line.startswith(":env:")
    ):  # the environment overrides files
        key, _, value = line.partition("=")
        name = UV_NAMES.get(key.rpartition(".")[2])
        if name:
            separator = "," if name == "UV_FIND_LINKS" else " "
            settings[name] = separator.join(str(ast.literal_eval(value)).split())
    return {name: os.environ.get(name, value) for name, value in settings.items()}


@contextmanager
def alone(lock: Path) -> Iterator[None]:
    """Let one process at a time in; another waits here until the first is done, or dead."""
    with lock.open("w") as handle:
        if not taken(handle.fileno()):
            print("Waiting for another `dev.py` that is installing here ...", flush=True)
            while not taken(handle.fileno()):
                time.sleep(1)
        yield


def taken(handle: int) -> bool:
    """Take the lock of this open file if it is free; closing the file gives it back."""
    try:
        if os.name == "nt":
            import msvcrt

            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
