"""Flags that several verbs share: how much of an adapter is kept, and writing it."""

import argparse
import math
from functools import partial
from pathlib import Path

from .. import files
from ..cutting import Report, Rule, at_energy, at_rank, at_size
from ..errors import TriLoRAError
from ..files import DTYPES, PAIRS, Adapter


def add_output(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--output", "-o", required=True, metavar="FILE", help="the .safetensors file to write")
    parser.add_argument("--dtype", choices=list(DTYPES), default="float32", help="of its numbers [float32]")


def add_keep(parser: argparse.ArgumentParser, required: bool) -> None:
    ways = parser.add_mutually_exclusive_group(required=required)
    ways.add_argument("--rank", type=int, help="singular values kept in each layer, at most")
    ways.add_argument("--energy", type=float, help="share of each layer's energy that is kept at least, such as 0.99")
    ways.add_argument("--megabytes", type=float, help="largest file; the values worth most per byte are kept")


def rule_of(options: argparse.Namespace) -> Rule:
    """The cut that the flags ask for; without any, everything.

    Raises:
        TriLoRAError: a number that can't be.
    """
    if options.rank is not None:
        if options.rank < 1:
            raise TriLoRAError(f"The rank {options.rank} keeps nothing. Give 1 or more.")
        return partial(at_rank, rank=options.rank)
    if options.megabytes is not None:
        if not 0 < options.megabytes < math.inf:
            raise TriLoRAError(f"{options.megabytes:g} MB is no size of a file. Give a number above 0.")
        return partial(at_size, size=int(options.megabytes * 1e6), dtype=DTYPES[options.dtype])
    return partial(at_energy, share=share_of(options))


def share_of(options: argparse.Namespace) -> float:
    """The share of the energy to keep, 1 where none is given."""
    share = 1.0 if options.energy is None else float(options.energy)
    if not 0 < share <= 1:
        raise TriLoRAError(f"The energy {share:g} is no share. Give a number above 0, up to 1.")
    return share


def write(adapter: Adapter, report: Report, options: argparse.Namespace) -> None:
    """The file, and in words what was kept."""
    save(adapter, options)
    print(report.summary())


def save(adapter: Adapter, options: argparse.Namespace, suffixes: tuple[str, str] = PAIRS[0]) -> None:
    """The file, and its size."""
    path = Path(options.output)
    files.save(adapter, path, DTYPES[options.dtype], suffixes)
    print(f"saved {path}, {path.stat().st_size / 1e6:.1f} MB")
