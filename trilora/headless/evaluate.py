"""`python -m trilora evaluate`: FID, NFID and CLIP score of folders of pictures."""

import argparse
import itertools
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from ..errors import DataError
from ..metrics import extractors
from ..metrics.evaluation import evaluate
from ..pictures import Picture, read_folder
from . import device as devices

HELP = """measure pictures: FID and NFID against real ones, CLIP score against their prompts

Folders of pictures, the prompt of each in a text file of its name. docs/metrics.md says what the numbers can tell.

  python -m trilora evaluate made/ real/ --base base/ --clip models/clip-vit-large-patch14
  python -m trilora evaluate made/ real/ --inception inception_v3_google-0cc3c7bd.pth --json"""
JUDGE = Path(__file__).parents[2] / "demo" / "judge"


def arguments(parser: argparse.ArgumentParser) -> None:
    """What the verb is told."""
    parser.add_argument("generated", type=Path, help="folder of pictures made with the adapter, at least 2")
    parser.add_argument("real", type=Path, help="folder of real pictures of the style, best ones not trained on")
    parser.add_argument(
        "--base", type=Path, help="folder of the bare base's pictures, same prompts and names: for NFID"
    )
    parser.add_argument(
        "--prompts", type=Path,
        help="text file with one prompt a line, in the order of the pictures' names; default: name.txt beside each "
        "generated picture",
    )  # fmt: skip
    network = parser.add_mutually_exclusive_group(required=True)
    network.add_argument("--clip", type=Path, metavar="FOLDER", help="a whole CLIP as transformers keeps it; it reads")
    network.add_argument("--inception", type=Path, metavar="FILE", help="torchvision's Inception v3 weights; FID alone")
    network.add_argument(
        "--demo", type=Path, metavar="FOLDER", nargs="?", const=JUDGE,
        help="the extractor of the demo world; it knows that world's words alone",
    )  # fmt: skip
    parser.add_argument("--device", help="such as cuda:1 or cpu; the GPU where there is one")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")


def run(options: argparse.Namespace) -> None:
    """Prints the numbers.

    Raises:
        TriLoRAError: a folder, a prompt or the extractor's files are not as they should be.
    """
    made, real = read_folder(options.generated), read_folder(options.real)
    base = read_folder(options.base) if options.base else None
    prompts = _lines(options.prompts) if options.prompts else captions(made)
    if base and prompts and len(prompts) > 1:
        _same_names(made, base)
    found = evaluate(extractor(options), batches(made), batches(real), batches(base) if base else None, prompts)
    text = json.dumps(found.as_dict(), indent=2) if options.json else found.words()
    sys.stdout.write(text + "\n")


def extractor(options: argparse.Namespace) -> extractors.Network:
    """The network that the options name."""
    device = devices.chosen(options.device)
    if options.clip:
        return extractors.clip(options.clip, device)
    if options.inception:
        return extractors.inception(options.inception, device)
    return extractors.demo(options.demo, device)


def captions(pictures: Sequence[Picture]) -> list[str]:
    """The prompt beside each picture; [] where none has one.

    Raises:
        DataError: some have one and some do not.
    """
    missing = [picture.name for picture in pictures if not picture.caption]
    if len(missing) == len(pictures):
        return []
    if missing:
        raise DataError(
            f"{len(missing)} of {len(pictures)} generated pictures have no prompt, {missing[0]} first. Put its prompt "
            "into a text file of the same name beside each, or into one file for --prompts."
        )
    return [picture.caption for picture in pictures]


def batches(pictures: Sequence[Picture]) -> Iterator[Tensor]:
    """Neighbours of one size together, each picture in its own size: (n, height, width, 3)."""
    for size, group in itertools.groupby(pictures, key=lambda picture: picture.size):
        while some := list(itertools.islice(group, extractors.BATCH)):
            yield torch.stack([picture.pixels(size) for picture in some])


def _lines(file: Path) -> list[str]:
    try:
        return [line.strip() for line in file.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except (OSError, ValueError) as error:
        raise DataError(
            f"{file} can't be read as prompts ({error}). Give a UTF-8 text file, a prompt a line."
        ) from error


def _same_names(made: Sequence[Picture], base: Sequence[Picture]) -> None:
    """Prompts go by the generated pictures' order, so the base's have to lie in the same."""
    ours, theirs = ([Path(picture.name).stem for picture in each] for each in (made, base))
    if len(ours) == len(theirs) and ours != theirs:
        odd = next(mine for mine, other in zip(ours, theirs, strict=True) if mine != other)
        raise DataError(
            f"The base's pictures are not named like the generated ones ({odd} is the first without its like), so "
            "prompts can't be told apart. Give both pictures of a prompt the same name."
        )
