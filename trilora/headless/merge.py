"""One adapter of several."""

import argparse
import math
from pathlib import Path

from .. import combine, files
from ..errors import TriLoRAError
from . import keeping
from .naming import in_kohya

HELP = """make one adapter of several, each with its weight: the same as loading them in a row

Without --rank, --energy or --megabytes nothing is lost, and the ranks add up.

examples:
  python -m trilora merge a.safetensors b.safetensors -o both.safetensors
  python -m trilora merge a.safetensors b.safetensors --weights 1 0.5 --rank 16 -o both.safetensors
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("files", nargs="+", help="LoRA or TriLoRA files of one base model")
    parser.add_argument("--weights", nargs="+", type=float, default=[1.0], help="one for each file, or one for all [1]")
    keeping.add_keep(parser, required=False)
    keeping.add_output(parser)


def run(options: argparse.Namespace) -> None:
    rule = keeping.rule_of(options)
    if not all(map(math.isfinite, options.weights)):
        raise TriLoRAError(f"The weights {options.weights} are not all numbers. Give a finite one for each file.")
    adapters = [files.load(Path(file)) for file in options.files]
    weights = options.weights * len(adapters) if len(options.weights) == 1 else options.weights
    keeping.write(*combine.merge(adapters, weights, rule, in_kohya(adapters)), options)
