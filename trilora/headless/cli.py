"""The command line: each verb is a module of this room with HELP, arguments(parser) and run(options)."""

import argparse
import importlib
import importlib.util
import sys
from collections.abc import Sequence
from types import ModuleType

from ..errors import TriLoRAError

VERBS = ("train", "sample", "evaluate", "info", "resize", "merge", "extract", "convert", "study")
PROGRAM = "python -m trilora"
REFUSED, MISUSED, INTERRUPTED = 1, 2, 130  # exit codes


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a verb; gives the exit code: 0, 1 for a refusal, 2 for wrong flags, 130 after Ctrl-C."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or words[0] in ("-h", "--help"):
        print(overview())
        return 0 if words else MISUSED
    if words[0] not in known():
        print(f"{PROGRAM}: {words[0]!r} is none of: {', '.join(known())}. Try {PROGRAM} --help.", file=sys.stderr)
        return MISUSED
    verb = _module(words[0])
    options = parser(words[0], verb).parse_args(words[1:])
    try:
        verb.run(options)
    except TriLoRAError as error:
        print(f"{PROGRAM} {words[0]}: {error}", file=sys.stderr)
        return REFUSED
    except KeyboardInterrupt as interrupt:
        print(str(interrupt) or "stopped", file=sys.stderr)
        return INTERRUPTED
    return 0


def parser(name: str, verb: ModuleType) -> argparse.ArgumentParser:
    """The verb's flags; HELP is its help page, examples included."""
    made = argparse.ArgumentParser(
        prog=f"{PROGRAM} {name}", description=verb.HELP, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    verb.arguments(made)
    return made


def overview() -> str:
    """The help page of the program: each verb and the first line of its own help."""
    lines = [f"  {name:<10}{_module(name).HELP.strip().splitlines()[0]}" for name in known()]
    return "\n".join(
        [
            f"usage: {PROGRAM} <verb> [flags]",
            "",
            "TriLoRA on diffusers pipelines: Stable Diffusion 1.x, 2.x and XL.",
            "",
            *lines,
            "",
            f"{PROGRAM} <verb> --help says what a verb takes, with examples.",
        ]
    )


def known() -> list[str]:
    """The verbs whose modules are there."""
    return [name for name in VERBS if importlib.util.find_spec(f"{__package__}.{name}")]


def _module(name: str) -> ModuleType:
    return importlib.import_module(f".{name}", __package__)
