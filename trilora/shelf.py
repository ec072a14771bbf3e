"""Encodings of a data set: in RAM up to a budget, beyond it in files that the system reads as they are needed."""

import contextlib
import logging
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

BUDGET = 10**9  # bytes of RAM for one data set
BLOCK = 64 * 2**20  # bytes of a file, at least
CHUNK = 2**20  # bytes written at once
ALIGNED = 64  # bytes; what vector instructions like


def mapped(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """A value with every tensor within its dicts, lists and tuples changed."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, dict):
        return {key: mapped(item, change) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(mapped(item, change) for item in value)
    return value


class Shelf:
    """Copies of tensors, on the CPU: those beyond the budget lie in memory-mapped files, which are gone with them.

    Args:
        folder: for the files, on a real disk; None for the system's temporary folder.
        budget: bytes of RAM; None for `BUDGET`.
    """

    def __init__(self, folder: Path | None = None, budget: int | None = None) -> None:
        self.folder, self.left = folder, BUDGET if budget is None else budget
        self.block = torch.empty(0, dtype=torch.uint8)  # what is free of the last file

    def kept(self, value: Any) -> Any:
        """Tensors in dicts, lists and tuples, with the same bits; a disk that refuses leaves them in RAM."""
        with torch.inference_mode(False):  # so that autograd may save them, whoever asks
            return mapped(value, self._kept)

    def _kept(self, tensor: Tensor) -> Tensor:
        tensor, size = tensor.detach(), tensor.nbytes
        if size <= self.left:
            self.left -= size
        elif room := self._room(size):
            return room[0].view(tensor.dtype).view(tensor.shape).copy_(tensor)
        return tensor.to("cpu", copy=True, memory_format=torch.contiguous_format)

    def _room(self, size: int) -> tuple[Tensor, ...]:
        """So many bytes of a file; none where the disk refuses."""
        taken = -(-size // ALIGNED) * ALIGNED
        if taken > len(self.block):
            try:
                self.block = _mapped_file(self.folder, max(taken, BLOCK))
            except OSError as error:
                logging.warning("A data set this large is kept on disk, but that refuses: %s. RAM is used.", error)
                self.left = 2**63
                return ()
        room, self.block = self.block[:size], self.block[taken:]
        return (room,)


def _mapped_file(folder: Path | None, size: int) -> Tensor:
    """The bytes of a new file; written first, because a mapping that the disk has no room for would kill the process.

    The name ends so that the cache clears away what a system leaves that can't remove a file in use.
    """
    if folder:
        folder.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=folder, suffix=".part", delete=False) as file:
        path = Path(file.name)
        try:
            for _ in range(-(-size // CHUNK)):
                file.write(bytes(CHUNK))
            file.flush()
            return torch.from_file(file.name, shared=True, size=size, dtype=torch.uint8)
        finally:
            with contextlib.suppress(OSError):
                path.unlink()
