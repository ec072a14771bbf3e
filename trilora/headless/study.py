"""`python -m trilora study`: a blind comparison of two or three methods as a page for people, and its count."""

import argparse
import json
import sys
from pathlib import Path

from ..disk import write
from ..errors import DataError
from ..metrics.blind import Key, draw_key, page, pair
from ..metrics.preference import count, read_answers

HELP = """ask people which of two or three methods they prefer, and count their answers

`make` writes one page of blind comparisons, and a key that says which side is which; `count` needs the key.

  python -m trilora study make lora/ trilora/ --out study.html --question "Which is closer to the style?"
  python -m trilora study count study.key.json answers/"""


def arguments(parser: argparse.ArgumentParser) -> None:
    """What the verb is told."""
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="make | count")
    make = verbs.add_parser("make", help="write the page and its key", description="Write the page and its key.")
    make.add_argument(
        "folders", type=Path, nargs="+",
        help="two or three folders, one a method; the pictures of one prompt have the same name in each",
    )  # fmt: skip
    make.add_argument("--out", type=Path, default=Path("study.html"), help="the page; default: %(default)s")
    make.add_argument("--question", default="Which picture do you prefer?", help="what people are asked")
    make.add_argument("--seed", type=int, default=0, help="of the order of pages and sides; default: %(default)s")
    make.add_argument(
        "--longest", type=int, default=768, help="longest side of a picture in pixels; default: %(default)s"
    )
    make.add_argument("--show-prompts", action="store_true", help="show each picture's name.txt above it")
    total = verbs.add_parser("count", help="count the answers", description="Count the answers.")
    total.add_argument("key", type=Path, help="the .key.json file beside the page")
    total.add_argument("answers", type=Path, nargs="+", help="the files that people saved, or folders of them")
    total.add_argument("--json", action="store_true", help="print JSON instead of a table")


def run(options: argparse.Namespace) -> None:
    """Writes the page and its key, or prints the count.

    Raises:
        TriLoRAError: pictures without their like, or answers that are not of this study.
    """
    sys.stdout.write((_make(options) if options.verb == "make" else _count(options)) + "\n")


def _make(options: argparse.Namespace) -> str:
    pictures = pair(_methods(options.folders))
    key = draw_key(list(pictures), list(next(iter(pictures.values()))), options.question, options.seed)
    beside = options.out.with_suffix(".key.json")
    write(options.out, page(key, pictures, options.longest, options.show_prompts).encode("utf-8"))
    write(beside, key.to_json().encode("utf-8"))
    return (
        f"{options.out}: {len(key.pages)} pages; send it to people, or open it in a browser.\n"
        f"{beside}: says which side is which; keep it to yourself until the answers are in."
    )


def _count(options: argparse.Namespace) -> str:
    try:
        key = Key.from_json(options.key.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{options.key} can't be read ({error}). Give the .key.json file beside the page.") from error
    files = [file for path in options.answers for file in (sorted(path.glob("*.json")) if path.is_dir() else [path])]
    found = count(key, [read_answers(file, key) for file in files if file.resolve() != options.key.resolve()])
    return json.dumps(found.as_dict(), indent=2) if options.json else found.words()


def _methods(folders: list[Path]) -> dict[str, Path]:
    """A name for each folder: its own, or as much of its path as tells them apart."""
    parts = [folder.resolve().parts for folder in folders]
    if len(set(parts)) < len(parts):
        raise DataError("A folder was given twice. Give one folder for each method.")
    depth = next(n for n in range(1, max(map(len, parts)) + 1) if len({part[-n:] for part in parts}) == len(parts))
    return {"/".join(part[-depth:]): folder for part, folder in zip(parts, folders, strict=True)}
