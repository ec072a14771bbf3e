"""Random numbers by purpose: no draw depends on how many were drawn before."""

import hashlib

import torch


def generator(seed: int, *stream: str | int) -> torch.Generator:
    """A CPU generator that is a function of the seed and of what it is for, so that no draw depends on another."""
    digest = hashlib.sha256(repr((seed, *stream)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "little"))
