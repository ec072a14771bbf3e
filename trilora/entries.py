"""Lists that people type: "0, 0.5, 1"."""

from typing import TypeVar

from .errors import TriLoRAError

Number = TypeVar("Number", int, float)


def entries(text: str, kind: type[Number], name: str) -> list[Number]:
    """The numbers of a list with commas or spaces between them, in order, each once.

    Raises:
        TriLoRAError: something that is no such number, or nothing; `name` is the input that it was typed into.
    """
    try:
        found = list(dict.fromkeys(kind(part) for part in text.replace(",", " ").split()))
    except ValueError:
        found = []
    if not found:
        wanted = "whole numbers with commas between, such as '1, 4'"
        if kind is float:
            wanted = "numbers with commas between, such as '0, 0.5, 1'"
        raise TriLoRAError(f"{name} holds {text!r}. Write {wanted}.")
    return found
