"""Several processes that train one model: on few cores quicker than several threads. Started by torchrun, or alone."""

from __future__ import annotations

import os

import torch
import torch.distributed as dist
from torch import nn


class Peers:
    """The processes of this run; alone if torchrun did not start it."""

    def __init__(self) -> None:
        self.count = int(os.environ.get("WORLD_SIZE", "1"))
        self.rank = int(os.environ.get("RANK", "0"))
        if self.count > 1 and not dist.is_initialized():
            dist.init_process_group("gloo")

    @property
    def first(self) -> bool:
        """True in the one process that prints and saves."""
        return self.rank == 0

    def wait(self) -> None:
        """Goes on when all have come here."""
        if self.count > 1:
            dist.barrier()

    def average(self, models: list[nn.Module], *values: float) -> list[float]:
        """Gives every process the mean of all gradients; returns the means of the plain values."""
        if self.count == 1:
            return list(values)
        grads = [p.grad for model in models for p in model.parameters() if p.grad is not None]
        flat = torch.cat([*(g.flatten() for g in grads), torch.tensor(values)])
        dist.all_reduce(flat)
        flat /= self.count
        parts = flat.split([*(g.numel() for g in grads), len(values)])
        for grad, part in zip(grads, parts[:-1], strict=True):
            grad.copy_(part.view_as(grad))
        return parts[-1].tolist()
