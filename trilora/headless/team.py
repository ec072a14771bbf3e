"""The processes of `accelerate launch`: each works on its share of a batch, and their gradients are added."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor

from ..team import Alone, Team

PATIENCE = timedelta(days=7)  # others wait while the first encodes; torch gives up after 10 minutes (NCCL) or 30 (gloo)


class Processes:
    """`trilora.team.Team` by Hugging Face Accelerate."""

    def __init__(self, device: str = "") -> None:
        from accelerate import Accelerator, InitProcessGroupKwargs

        waiting = InitProcessGroupKwargs(timeout=PATIENCE)
        self.accelerator = Accelerator(cpu=device == "cpu", kwargs_handlers=[waiting])
        self.index, self.count = self.accelerator.process_index, self.accelerator.num_processes

    def add(self, tensors: Sequence[Tensor]) -> None:
        for same in by_dtype(tensors):
            flat = torch.cat([tensor.reshape(-1) for tensor in same])
            total = self.accelerator.reduce(flat, "sum").split([tensor.numel() for tensor in same])
            for tensor, part in zip(same, total, strict=True):
                tensor.copy_(part.view_as(tensor))


def by_dtype(tensors: Sequence[Tensor]) -> list[list[Tensor]]:
    """The tensors of each dtype, in the order given: every process must send its groups in the same one."""
    groups: dict[torch.dtype, list[Tensor]] = {}
    for tensor in tensors:
        groups.setdefault(tensor.dtype, []).append(tensor)
    return list(groups.values())


def gathered(device: str = "") -> tuple[Team, str, Callable[[], Any]]:
    """The team of this process, the device it works on, and a context that the first process goes through first."""
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        return Alone(), device, _at_once
    team = Processes(device)
    return team, str(team.accelerator.device), team.accelerator.main_process_first


@contextmanager
def _at_once() -> Iterator[None]:
    yield
