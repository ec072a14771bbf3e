"""A user study as one page: each prompt drawn by two or three methods, side by side, nobody told which is which."""

import base64
import hashlib
import io
import itertools
import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from ..captions import beside
from ..errors import DataError
from ..pictures import flat, opened, picture_files

TEMPLATE = Path(__file__).with_name("blind.html")
PLACE = "/*STUDY*/null"  # where the template takes its study


@dataclass(frozen=True)
class Key:
    """What the page keeps to itself.

    Attributes:
        study: names this study; answers carry it.
        question: what people were asked.
        methods: their names.
        pages: of each page, the pictures' common name and which method each side shows, left to right.
    """

    study: str
    question: str
    methods: tuple[str, ...]
    pages: tuple[tuple[str, tuple[str, ...]], ...]

    def to_json(self) -> str:
        """The key file's text."""
        return json.dumps(asdict(self), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "Key":
        """The key in a key file's text.

        Raises:
            DataError: it is no key.
        """
        try:
            told = json.loads(text)
            pages = tuple((str(name), tuple(map(str, sides))) for name, sides in told["pages"])
            return cls(str(told["study"]), str(told["question"]), tuple(map(str, told["methods"])), pages)
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"This is no key of a study ({error!r}). Give the .key.json file that was written beside the page."
            ) from None


def pair(folders: Mapping[str, Path]) -> dict[str, dict[str, Path]]:
    """Picture name -> method -> file, of pictures that have the same name in every folder; the ending may differ.

    Raises:
        DataError: not two or three folders, or a picture without its like.
    """
    if len(folders) not in (2, 3):
        raise DataError(f"A study shows two or three methods, not {len(folders)}. Give two or three folders.")
    found = {method: _named(folder) for method, folder in folders.items()}
    names = set().union(*found.values())
    for method, files in found.items():
        if lost := sorted(names - set(files)):
            raise DataError(
                f"{folders[method]} has no picture named {lost[0]}, which another folder has ({len(lost)} missing). "
                "Name the pictures of one prompt alike in all folders."
            )
    return {name: {method: files[name] for method, files in found.items()} for name in sorted(names)}


def draw_key(names: Sequence[str], methods: Sequence[str], question: str, seed: int) -> Key:
    """Pages in random order; every order of the sides comes up as often as any other, to within one."""
    shuffled, rng = list(names), random.Random(seed)
    rng.shuffle(shuffled)
    orders = list(itertools.permutations(methods))
    rng.shuffle(orders)
    sides = [orders[i % len(orders)] for i in range(len(names))]
    rng.shuffle(sides)
    pages = tuple(zip(shuffled, sides, strict=True))
    mark = hashlib.sha256(repr((pages, question, seed)).encode()).hexdigest()[:12]
    return Key(mark, question, tuple(methods), pages)


def page(key: Key, pictures: Mapping[str, Mapping[str, Path]], longest: int, prompts: bool = False) -> str:
    """The whole page as HTML: every picture inside, drawn anew, so that no file tells where it is from.

    Args:
        longest: longest side of a picture in pixels; larger ones are made smaller.
        prompts: whether to show the text file beside a picture, of the first method that has one.
    """
    pages = [
        {
            "pictures": [_inside(pictures[name][method], longest) for method in sides],
            "prompt": next(filter(None, map(beside, pictures[name].values())), "") if prompts else "",
        }
        for name, sides in key.pages
    ]
    study: dict[str, Any] = {"study": key.study, "question": key.question, "pages": pages}
    safe = json.dumps(study).replace("<", "\\u003c")  # a question may not end the script
    return TEMPLATE.read_text(encoding="utf-8").replace(PLACE, safe)


def _named(folder: Path) -> dict[str, Path]:
    if not folder.is_dir():
        raise DataError(f"{folder} is not a folder. Give a folder of pictures for each method.")
    files = sorted(picture_files(folder))
    named = {file.stem: file for file in files}
    if not files or len(named) < len(files):
        wrong = "no picture" if not files else "two pictures of one name"
        raise DataError(f"{folder} holds {wrong}. Give one picture a prompt, named alike in all folders.")
    return named


def _inside(file: Path, longest: int) -> str:
    """A picture as a data URI: PNG without a word of where it is from."""
    picture = flat(opened(file)[0])
    picture.thumbnail((longest, longest), Image.Resampling.LANCZOS)
    clean, store = Image.new("RGB", picture.size), io.BytesIO()
    clean.paste(picture)
    clean.save(store, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(store.getvalue()).decode("ascii")
