"""A smaller adapter with the least loss."""

import argparse
from pathlib import Path

from .. import combine, files
from . import keeping

HELP = """make an adapter smaller with the least loss: by rank, by energy or by size of the file

examples:
  python -m trilora resize big.safetensors --rank 8 -o small.safetensors
  python -m trilora resize big.safetensors --megabytes 10 --dtype float16 -o small.safetensors
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", help="a LoRA or TriLoRA file")
    keeping.add_keep(parser, required=True)
    keeping.add_output(parser)


def run(options: argparse.Namespace) -> None:
    rule = keeping.rule_of(options)
    keeping.write(*combine.resize(files.load(Path(options.file)), rule), options)
