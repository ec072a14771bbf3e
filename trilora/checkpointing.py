"""Gradient checkpointing: each block of a network is computed again in the backward instead of remembered."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

_LISTS = (nn.ModuleList, nn.ModuleDict, nn.Sequential)
_SHARE = 16  # a block that holds more than 1/16 of the network is divided where it can be


def blocks(network: nn.Module) -> list[nn.Module]:
    """The blocks that the network is a list of: transformer blocks, residual blocks.

    A block stands in a list and holds at least two weight matrices. Of nested ones the outer is taken, as long as it
    is a small part of the network.
    """
    limit = sum(p.numel() for p in network.parameters()) / _SHARE
    return list(dict.fromkeys(_blocks(network, False, limit)))


def _blocks(module: nn.Module, listed: bool, limit: float) -> list[nn.Module]:
    inner = [b for child in module.children() for b in _blocks(child, isinstance(module, _LISTS), limit)]
    if not listed or isinstance(module, _LISTS):
        return inner
    sizes = [p.numel() for p in module.parameters()]
    matrices = sum(p.ndim > 1 for p in module.parameters())
    return [module] if matrices > 1 and (sum(sizes) <= limit or not inner) else inner


@contextmanager
def checkpointed(network: nn.Module) -> Iterator[int]:
    """Within the block, the network's blocks are checkpointed; gives their number. Afterwards all is as it was."""
    changed: list[nn.Module] = []
    try:
        for block in blocks(network):
            if "forward" not in vars(block):  # someone else's replacement stays in place
                block.forward = _remembering_inputs(block.forward)
                changed.append(block)
        yield len(changed)
    finally:
        for block in changed:
            del block.forward


def _remembering_inputs(forward: Callable[..., Any]) -> Callable[..., Any]:
    def run(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        names, count, first = list(kwargs), len(args), [(*args, *kwargs.values())]

        def once_more(*copies: Any) -> Any:
            values = first.pop() if first else copies
            return forward(*values[:count], **dict(zip(names, values[count:], strict=True)))

        return checkpoint(once_more, *map(_as_it_is, first[0]), use_reentrant=False, preserve_rng_state=False)

    return run


def _as_it_is(value: Any) -> Any:
    """A copy for the second time: networks write on into the dicts they hand out, and blocks into their inputs."""
    if isinstance(value, torch.Tensor):
        tokens = value.ndim == 3  # (batch, tokens, channels): added to before any gradient reaches them, too
        return value.clone() if value.requires_grad or tokens else value
    return dict(value) if type(value) is dict else value
