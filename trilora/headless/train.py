"""Train an adapter on a folder of pictures."""

import argparse
import signal
from pathlib import Path
from types import FrameType

from .options import add_flags, given, over, read_file
from .plan import PREFIXES, Plan, plan_of

HELP = """train an adapter on a folder of pictures

Every setting is a flag or a line of a TOML file; flags win. The file that comes out is a standard LoRA, and holds
its own TOML: `python -m trilora info FILE --toml > again.toml` makes the same file again.

examples:
  python -m trilora train --base sd15/ --pictures fox/ --trigger zorvex --output fox.safetensors
  python -m trilora train --config fox.toml --steps 2000
  accelerate launch -m trilora train --config fox.toml

Ctrl-C keeps what was learned; the same command goes on from there.
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", metavar="TOML", help="file of settings; flags win over it")
    add_flags(parser, Plan, PREFIXES)


def run(options: argparse.Namespace) -> None:
    below = read_file(Path(options.config)) if options.config else {}
    plan = plan_of(over(below, given(options, Plan, PREFIXES)))
    from .running import run_training

    before = signal.signal(signal.SIGTERM, _interrupted)  # as a launcher or a scheduler ends its processes
    try:
        run_training(plan)
    finally:
        signal.signal(signal.SIGTERM, before)


def _interrupted(_number: int, _frame: FrameType | None) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise KeyboardInterrupt
