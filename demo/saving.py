"""Training states that survive a kill, and folders that are replaced file by file."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import torch


def save_state(path: Path, **state: object) -> None:
    """Writes beside the target, then renames: a reader never sees half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    torch.save(state, partial)
    os.replace(partial, path)


def load_state(path: Path) -> dict:
    """A state of `save_state`, tensors and plain values only."""
    return torch.load(path, map_location="cpu", weights_only=True)


def replace_files(source: Path, target: Path) -> None:
    """Moves every file below `source` to its place below `target`, one atomic rename each."""
    for file in sorted(p for p in source.rglob("*") if p.is_file()):
        goal = target / file.relative_to(source)
        goal.parent.mkdir(parents=True, exist_ok=True)
        os.replace(file, goal)
    shutil.rmtree(source)
