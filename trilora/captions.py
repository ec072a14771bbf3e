"""Captions: found beside pictures, and said in several orders of their tags."""

import json
import os
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch

from .errors import DataError
from .seeds import generator

METADATA = "metadata.jsonl"
SOURCES = ("automatic", "name.txt", "name.caption", METADATA, "folder's name")
BESIDE = (".txt", ".caption")
TRIES = 8  # for each order of tags that is wanted; the same one may be drawn again


def finder(root: Path, source: str = "automatic") -> Callable[[Path], str]:
    """A function from a picture's file under `root` to its caption, "" where there is none.

    Args:
        root: the data set's folder.
        source: one of `SOURCES`; `automatic` takes the first of name.txt, name.caption and metadata.jsonl.

    Raises:
        DataError: an unknown source, or (when called) a text that can't be read; names the file.
    """
    if source not in SOURCES:
        raise DataError(f"Captions from {source!r} are unknown. Choose one of: {', '.join(SOURCES)}.")
    table = cache(read_metadata)
    return {
        "automatic": lambda file: beside(file) or from_metadata(file, root, table),
        METADATA: lambda file: from_metadata(file, root, table),
        "folder's name": folders_name,
    }.get(source, lambda file: beside(file, (source.removeprefix("name"),)))


def beside(file: Path, suffixes: tuple[str, ...] = BESIDE) -> str:
    """The text of the first of `name.txt`, `name.caption` that lies beside a picture, or ""."""
    for suffix in suffixes:
        text = file.with_suffix(suffix)
        if os.path.isfile(text):  # a Path would raise where this name is longer than a disk can hold
            return one_line(_read(text))
    return ""


def folders_name(file: Path) -> str:
    """The name of the folder that a picture lies in; `10_red_cat` says "red cat"."""
    return one_line(re.sub(r"^\d+_", "", file.absolute().parent.name).replace("_", " "))


def from_metadata(file: Path, root: Path, table: Callable[[Path], dict[str, str]]) -> str:
    """What metadata.jsonl says of a picture: the one beside it, else one further up, as far as `root`."""
    for folder in file.parents:
        caption = table(folder / METADATA).get(file.relative_to(folder).as_posix(), "")
        if caption or folder == root:
            return caption
    return ""


def read_metadata(file: Path) -> dict[str, str]:
    """file_name -> caption of a Hugging Face image folder's metadata.jsonl; empty where there is no such file.

    Raises:
        DataError: a line that is no JSON object with `file_name` and `text` (or `caption`); names the line.
    """
    if not file.is_file():
        return {}
    found = {}
    for number, line in enumerate(_read(file).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
            name, caption = entry["file_name"], entry.get("text", entry.get("caption"))
            found[Path(name).as_posix()] = one_line(caption or "")
        except (ValueError, KeyError, TypeError, AttributeError):
            raise DataError(
                f"{file}, line {number}, is not as it should be. Write one object a line: "
                '{"file_name": "1.png", "text": "a red cat"}.'
            ) from None
    return found


def orders(caption: str, count: int, kept: int) -> tuple[str, ...]:
    """Up to `count` different orders of a caption's comma-separated tags, the written one first.

    The first `kept` tags stay in front. The same caption always gives the same orders.
    """
    tags = [tag.strip() for tag in caption.split(",") if tag.strip()]
    front, rest = tags[:kept], tags[kept:]
    made = {", ".join(tags): caption}
    for number in range(1, count * TRIES):
        if len(made) == count:
            break
        order = torch.randperm(len(rest), generator=generator(0, "tags", caption, number)).tolist()
        words = ", ".join([*front, *(rest[i] for i in order)])
        made.setdefault(words, words)
    return tuple(made.values())


def without(word: str, text: str) -> str:
    """The text without a word, in any case of its letters, and without the comma that set it apart."""
    found = re.sub(rf"(?<!\w){re.escape(word)}(?!\w)[\s,]*", "", text, flags=re.IGNORECASE) if word else text
    return text if found == text else found.strip(" ,")


def one_line(text: str) -> str:
    """A caption of several lines as one."""
    return " ".join(text.split())


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise DataError(f"{file} is not UTF-8 text. Save it again as UTF-8.") from None
    except OSError as error:
        raise DataError(f"{file} can't be read: {error.strerror}. Give it the rights, or take it away.") from None
