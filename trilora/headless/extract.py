"""The best adapter for the difference of two models."""

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import TargetError
from ..extract import CHOICES, extract, layers_of
from ..factors import nearest, nearest_holding
from ..lineage import of_extraction
from ..seeds import generator
from . import keeping
from .paths import kohya

HELP = """the best adapter for the difference of two models: base + adapter comes close to the tuned one

examples:
  python -m trilora extract --base sd15/ --tuned my_finetune/ --rank 32 -o difference.safetensors
  python -m trilora extract --base sd15/ --tuned my_finetune/ --energy 0.9 --layers "all linear" -o d.safetensors
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--base", required=True, help="the model that the adapter will be loaded on: folder or file")
    parser.add_argument("--tuned", required=True, help="the model to come close to, of the same architecture")
    parser.add_argument("--base-config", help="for single files, a folder in diffusers' layout of their kind")
    ways = parser.add_mutually_exclusive_group()
    ways.add_argument("--rank", type=int, default=32, help="singular values in each layer [32]")
    ways.add_argument("--energy", type=float, help="share of each layer's change that is kept at least, such as 0.9")
    parser.add_argument("--largest-rank", type=int, default=128, help="with --energy, the most of any layer [128]")
    parser.add_argument("--layers", choices=CHOICES, default=CHOICES[0], help=f"which layers [{CHOICES[0]}]")
    keeping.add_output(parser)


def run(options: argparse.Namespace) -> None:
    from .pipelines import load_pipeline
    from .running import base_of

    draw = generator(0, "extract")
    find: Any = partial(nearest, rank=options.rank, generator=draw)
    if options.energy is not None:
        find = partial(nearest_holding, share=keeping.share_of(options), largest=options.largest_rank, generator=draw)
    base, tuned = (load_pipeline(path, config=options.base_config) for path in (options.base, options.tuned))
    changes = _changes(base.unet, tuned.unet, options.layers)
    about = of_extraction(base_of(base), Path(options.base).name, Path(options.tuned).name)
    keeping.write(*extract(changes, find, about), options)


def _changes(base: nn.Module, tuned: nn.Module, choice: str) -> dict[str, Callable[[], Tensor]]:
    """Layer name in the file -> a function that gives W_tuned - W_base."""
    theirs = dict(tuned.named_modules())
    made: dict[str, Callable[[], Tensor]] = {}
    for path in layers_of(base, choice):
        before: Any = base.get_submodule(path)
        after: Any = theirs.get(path)
        if after is None or after.weight.shape != before.weight.shape:
            raise TargetError(f"The two models differ in the layer {path}. Give two of the same architecture.")
        made[kohya(path)] = partial(torch.sub, after.weight, before.weight)
    return made
