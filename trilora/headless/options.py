"""Frozen dataclasses as command line flags and as TOML; their docstrings are the help."""

import argparse
import difflib
import json
import re
import sys
from collections.abc import Mapping
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from ..errors import TriLoRAError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

Made = TypeVar("Made")
Values = dict[str, Any]


def add_flags(parser: argparse.ArgumentParser, kind: type, prefixes: Mapping[str, str]) -> None:
    """A flag for each field; those of a field that is a dataclass itself stand in a group, with its prefix if any."""
    told, types = _attributes(kind), get_type_hints(kind)
    for field in fields(kind):
        if is_dataclass(types[field.name]):
            group: Any = parser.add_argument_group(f"[{field.name}]", _attributes(types[field.name]).get(""))
            _add_group(group, types[field.name], prefixes.get(field.name, ""))
        else:
            _add(parser, field.name, types[field.name], f"{told.get(field.name, '')} {_default(field.default)}", "")


def _add_group(group: Any, kind: Any, prefix: str) -> None:
    told, types = _attributes(kind), get_type_hints(kind)
    for field in fields(kind):
        _add(group, field.name, types[field.name], f"{told.get(field.name, '')} {_default(field.default)}", prefix)


def _add(parser: Any, name: str, kind: Any, text: str, prefix: str) -> None:
    flag = f"--{prefix}{name}".replace("_", "-")
    more: Values = {"type": kind, "metavar": kind.__name__.upper()}
    if kind is bool:
        more = {"action": argparse.BooleanOptionalAction}
    parser.add_argument(flag, default=argparse.SUPPRESS, help=text.strip().replace("%", "%%"), **more)


def given(options: argparse.Namespace, kind: type, prefixes: Mapping[str, str]) -> Values:
    """What the flags said, nested as the dataclass is."""
    said, types = vars(options), get_type_hints(kind)
    found: Values = {}
    for field in fields(kind):
        if is_dataclass(types[field.name]):
            prefix = prefixes.get(field.name, "").replace("-", "_")
            inner = [each.name for each in fields(types[field.name]) if prefix + each.name in said]
            found |= {field.name: {name: said[prefix + name] for name in inner}} if inner else {}
        elif field.name in said:
            found[field.name] = said[field.name]
    return found


def read_toml(text: str, source: str) -> Values:
    """The values of a TOML text.

    Raises:
        TriLoRAError: it is none; names the source.
    """
    try:
        return dict(tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        raise TriLoRAError(f"{source} is no TOML: {error}.") from None


def read_file(path: Path) -> Values:
    """The values of a TOML file.

    Raises:
        TriLoRAError: it can't be read, or is none.
    """
    try:
        return read_toml(path.read_text(encoding="utf-8-sig"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise TriLoRAError(f"{path} can't be read: {error}. Give the path of a TOML file.") from None


def over(below: Values, above: Values) -> Values:
    """Nested values with others laid over them."""
    tables = {key for key in below if isinstance(below[key], dict) and isinstance(above.get(key), dict)}
    return {**below, **above, **{key: over(below[key], above[key]) for key in tables}}


def build(kind: type[Made], values: Values, table: str = "") -> Made:
    """The dataclass of nested values.

    Raises:
        TriLoRAError: a name that there is not, or a value of another type; names it.
    """
    types, made = get_type_hints(kind), {}
    for name, value in values.items():
        where = f"{table}.{name}" if table else name
        if name not in types:
            near = difflib.get_close_matches(name, types, 1)
            hint = f"Did you mean {near[0]}?" if near else f"There are: {', '.join(types)}."
            raise TriLoRAError(f"The setting {where} does not exist. {hint}")
        made[name] = build(types[name], _table(value, where), where) if is_dataclass(types[name]) else _as(
            types[name], value, where
        )  # fmt: skip
    return kind(**made)


def to_toml(settings: Any) -> str:
    """A dataclass as TOML, plain values first, then its tables."""
    plain, tables = [], []
    for name, value in asdict(settings).items():
        if isinstance(value, dict):
            tables += ["", f"[{name}]", *(f"{key} = {_literal(inner)}" for key, inner in value.items())]
        else:
            plain.append(f"{name} = {_literal(value)}")
    return "\n".join([*plain, *tables, ""])


def _literal(value: bool | int | float | str) -> str:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str | bool) else repr(value)


def _table(value: Any, where: str) -> Values:
    if not isinstance(value, dict):
        raise TriLoRAError(f"The setting {where} is {value!r}, but has to be a table: [{where}] and lines below it.")
    return value


def _as(kind: type, value: Any, where: str) -> Any:
    """A value of a field's type; whole numbers are numbers."""
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is not kind:
        raise TriLoRAError(f"The setting {where} is {value!r}, but has to be of type {kind.__name__}.")
    return value


def _default(value: Any) -> str:
    return f"[{value}]" if isinstance(value, bool | int | float) or (isinstance(value, str) and value) else ""


def _attributes(kind: Any) -> dict[str, str]:
    """Field -> what the class's docstring says of it; under "" its first line."""
    text = kind.__doc__ or ""
    told = {"": text.strip().splitlines()[0]}
    for names, said in re.findall(r"^ {8}(\w+(?:, \w+)*): (.+(?:\n {12}.+)*)", text, re.MULTILINE):
        told |= {name: " ".join(said.split()).replace("`", "") for name in names.split(", ")}
    return told
