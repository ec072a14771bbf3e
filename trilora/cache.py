"""What is slow to make, kept on disk under a key of everything that it was made from."""

import contextlib
import hashlib
import json
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from .disk import write
from .errors import FileError

LIMIT = 5 * 10**9  # bytes
SAMPLES = 64  # numbers of each tensor that are looked at, at least, where it has as many
STALE = 3600  # seconds after which a half-written file has no writer any more


class Cache:
    """A folder of safetensors files, one for each value: tensors in plain lists, tuples and dicts.

    It can only ever save time: an entry that is broken is made again, and a disk that refuses is left alone.
    """

    def __init__(self, folder: Path, limit: int = LIMIT) -> None:
        self.folder, self.limit, self.writable = folder, limit, True

    def kept(self, key: object, make: Callable[[], Any]) -> Any:
        """The value under a key (anything that `digest` takes); made, and written, if it is not there."""
        path = self.folder / f"{digest(key)}.safetensors"
        try:
            value = _read(path)
        except (OSError, ValueError, KeyError, TypeError, safetensors.SafetensorError):
            value = make()
            self._write(path, value)
        else:
            with contextlib.suppress(OSError):  # a disk that only reads
                os.utime(path)  # what is used last is removed last
        return value

    def trim(self) -> None:
        """Remove the longest unused entries until the rest fits the limit, and what broken runs left half written."""
        try:
            files = sorted(((f.stat(), f) for f in self.folder.iterdir()), key=lambda pair: -pair[0].st_mtime)
            total = 0
            for stat, file in files:
                total += stat.st_size if file.suffix == ".safetensors" else 0
                stale = file.suffix == ".part" and stat.st_mtime < time.time() - STALE
                if stale or (file.suffix == ".safetensors" and total > self.limit):
                    file.unlink(missing_ok=True)
        except OSError as error:
            logging.debug("The cache in %s can't be trimmed: %s", self.folder, error)

    def _write(self, path: Path, value: Any) -> None:
        tensors: dict[str, Tensor] = {}
        try:
            shape = json.dumps(_described(value, tensors))
        except TypeError:  # a value of other things than tensors can't be kept
            return
        if self.writable:
            plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
            data = safetensors.torch.save(plain, {"shape": shape, "digest": digest(value)})
            try:
                write(path, data)
            except FileError as error:
                self.writable = False
                logging.warning(
                    "Encoded pictures can't be kept, so the next run will encode them again: %s", error
                )  # fmt: skip


def digest(value: object) -> str:
    """A hash of tensors (shape, type and bytes), texts and numbers in lists, tuples and dicts.

    Of any other object only the class counts.
    """
    tensors: dict[str, Tensor] = {}
    found = hashlib.sha256(json.dumps(_described(value, tensors, strict=False)).encode())
    for tensor in tensors.values():
        found.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
        found.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def thinned(tensor: Tensor) -> list[Any]:
    """Type, shape and evenly spread samples of a tensor: what `digest` needs to tell one model's weights from others.

    Models that differ in a few numbers between those, and in nothing else, share a name. Training changes every number
    of a tensor, and so does merging.
    """
    flat = tensor.detach().reshape(-1)
    return [str(tensor.dtype), list(tensor.shape), flat[:: max(1, len(flat) // SAMPLES)].cpu()]


def _described(value: Any, tensors: dict[str, Tensor], strict: bool = True) -> Any:
    """A value as JSON, its tensors by name; those go into `tensors`."""
    if isinstance(value, Tensor):
        tensors[str(len(tensors))] = value
        return {"tensor": str(len(tensors) - 1)}
    if type(value) in (list, tuple):
        return {type(value).__name__: [_described(item, tensors, strict) for item in value]}
    if type(value) is dict and all(type(name) is str for name in value):
        return {"dict": {name: _described(item, tensors, strict) for name, item in value.items()}}
    if value is None or type(value) in (bool, int, float, str):
        return {"plain": value}
    if strict:
        raise TypeError(f"A {type(value).__name__} can't be kept.")
    return {"class": f"{type(value).__module__}.{type(value).__qualname__}"}


def _rebuilt(shape: dict[str, Any], tensors: dict[str, Tensor]) -> Any:
    ((kind, content),) = shape.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "dict":
        return {name: _rebuilt(item, tensors) for name, item in content.items()}
    if kind in ("list", "tuple"):
        return {"list": list, "tuple": tuple}[kind](_rebuilt(item, tensors) for item in content)
    return content


def _read(path: Path) -> Any:
    with safetensors.safe_open(path, "pt") as file:
        about = file.metadata() or {}
        value = _rebuilt(json.loads(about["shape"]), {name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
    if digest(value) != about["digest"]:
        raise ValueError(f"{path} holds other bytes than were written.")
    return value
