"""The state of a run on disk: enough to go on with the same bits. safetensors and JSON, never a pickle."""

import contextlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import save as to_bytes
from torch import Tensor

from .disk import write
from .errors import FileError
from .training import Training

FORMAT = "1"
NAME = "step-{:07}.safetensors"


@dataclass
class History:
    """What a run has been through.

    Attributes:
        loss: of every step.
        preservation: distance to the base, at the steps where it was taken; NaN elsewhere.
        prior: loss on the regularisation pictures; NaN where there are none.
        held_out: step -> loss on the held-out pictures.
        seconds: time spent in steps, over every sitting.
    """

    loss: list[float] = field(default_factory=list)
    preservation: list[float] = field(default_factory=list)
    prior: list[float] = field(default_factory=list)
    held_out: dict[int, float] = field(default_factory=dict)
    seconds: float = 0.0


@dataclass
class Best:
    """The parameters of the best score so far."""

    step: int = 0
    parameters: dict[str, Tensor] = field(default_factory=dict)


def save(path: Path, training: Training, history: History, best: Best) -> None:
    """Write everything that a run is made of, atomically.

    Raises:
        FileError: the disk refuses; what was there before is untouched.
    """
    optimizer = training.optimizer.state_dict()
    tensors = dict(_flat("optimizer", optimizer["state"])) | dict(_flat("groups", optimizer["param_groups"]))
    tensors |= {f"parameter.{name}": p.detach() for name, p in training.parameters.items()}
    tensors |= {f"average.{name}": value for name, value in training.average.items()}
    tensors |= {f"best.{name}": value for name, value in best.parameters.items()}
    said = {
        "format": FORMAT,
        "step": training.number,
        "best": best.step,
        "history": asdict(history),
        "schedule": training.schedule.last_epoch,
        "scaler": training.scaler.state_dict(),
        "optimizer": _plain(optimizer["state"]),
        "groups": _plain(optimizer["param_groups"]),
    }
    write(path, to_bytes({k: v.contiguous().cpu() for k, v in tensors.items()}, {"trilora.run": json.dumps(said)}))


def restore(path: Path, training: Training) -> tuple[History, Best]:
    """Bring a fresh training to the state in a file.

    Raises:
        FileError: not a whole checkpoint, or one of other layers.
    """
    tensors, said = _read(path)
    names = {key.removeprefix("parameter.") for key in tensors if key.startswith("parameter.")}
    if names != set(training.parameters):
        raise FileError(f"{path} holds the state of other layers than this run has. Remove it to start afresh.")
    with torch.no_grad():
        for name, parameter in training.parameters.items():
            parameter.copy_(tensors[f"parameter.{name}"])
        for name, value in training.average.items():
            value.copy_(tensors[f"average.{name}"])
    training.optimizer.load_state_dict(
        {
            "state": {int(key): value for key, value in _filled("optimizer", said["optimizer"], tensors).items()},
            "param_groups": _filled("groups", said["groups"], tensors),
        }
    )
    training.schedule.last_epoch = said["schedule"]
    if said["scaler"]:
        training.scaler.load_state_dict(said["scaler"])
    training.number = said["step"]
    history = History(**said["history"])
    history.held_out = {int(step): value for step, value in history.held_out.items()}
    prefix = "best."
    best = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
    return history, Best(said["best"], best)


def latest(folder: Path, until: int) -> Path | None:
    """The last whole checkpoint of a folder at or before a step; one that is damaged is passed over."""
    for path in sorted(folder.glob("step-*.safetensors"), reverse=True):
        with contextlib.suppress(FileError):
            if _header(path)["step"] <= until:
                return path
    return None


def prune(folder: Path, keep: int, until: int | None = None) -> None:
    """Remove all but the last `keep` checkpoints; with a step, of those up to it: later ones are of a longer run."""
    last = "" if until is None else NAME.format(until)
    paths = (path for path in folder.glob("step-*.safetensors") if not last or path.name <= last)
    for path in sorted(paths, reverse=True)[keep:]:
        path.unlink(missing_ok=True)


def _header(path: Path) -> dict[str, Any]:
    try:
        with safetensors.safe_open(str(path), "pt") as file:
            said: dict[str, Any] = json.loads((file.metadata() or {})["trilora.run"])
    except (OSError, KeyError, ValueError, safetensors.SafetensorError) as error:
        raise FileError(f"{path} is not a whole checkpoint ({error}). Remove it to start afresh.") from error
    if said["format"] != FORMAT:
        raise FileError(f"{path} was written by another version of TriLoRA. Remove it to start afresh.")
    return said


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    said = _header(path)
    with safetensors.safe_open(str(path), "pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}, said  # noqa: SIM118


def _flat(prefix: str, value: Any) -> Iterator[tuple[str, Tensor]]:
    """Every tensor within dicts and lists, under its path."""
    if isinstance(value, Tensor):
        yield prefix, value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _flat(f"{prefix}.{key}", inner)
    elif isinstance(value, list | tuple):
        for key, inner in enumerate(value):
            yield from _flat(f"{prefix}.{key}", inner)


def _plain(value: Any) -> Any:
    """The same as JSON, with a mark where a tensor stood."""
    if isinstance(value, Tensor):
        return {"tensor": True}
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, list | tuple) else value


def _filled(prefix: str, value: Any, tensors: Mapping[str, Tensor]) -> Any:
    """What `_plain` and `_flat` took apart."""
    if isinstance(value, dict):
        if value == {"tensor": True}:
            return tensors[prefix]
        return {key: _filled(f"{prefix}.{key}", inner, tensors) for key, inner in value.items()}
    if isinstance(value, list):
        return [_filled(f"{prefix}.{key}", inner, tensors) for key, inner in enumerate(value)]
    return value
