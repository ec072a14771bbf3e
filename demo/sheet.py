"""Lays the demo's pictures out on one labelled sheet: `python demo/sheet.py OUT` reads [[title, file], ...] from stdin.

A title `row | column` places a picture in a grid; any other title puts it to the right of the grids.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

CELL, GAP, LABEL = 192, 10, 26
PAPER, INK = "#ffffff", "#22303c"


def grids(cells: list[tuple[str, str]]) -> dict[tuple[str, ...], dict[tuple[str, str], Path]]:
    """Columns -> (row, column) -> picture; rows that share their columns share a grid."""
    rows: dict[str, dict[str, Path]] = {}
    for title, file in cells:
        if " | " in title:
            row, column = title.split(" | ")
            rows.setdefault(row, {})[column] = Path(file)
    found: dict[tuple[str, ...], dict[tuple[str, str], Path]] = {}
    for row, columns in rows.items():
        grid = found.setdefault(tuple(columns), {})
        grid |= {(row, column): file for column, file in columns.items()}
    return found


def grid_picture(columns: tuple[str, ...], cells: dict[tuple[str, str], Path]) -> Image.Image:
    """One grid: column names on top, row names above their row."""
    rows = list(dict.fromkeys(row for row, _ in cells))
    high = CELL + GAP + LABEL
    sheet = Image.new("RGB", (len(columns) * (CELL + GAP) + GAP, LABEL + len(rows) * high + GAP), PAPER)
    pen = ImageDraw.Draw(sheet)
    for x, column in enumerate(columns):
        pen.text((GAP + x * (CELL + GAP) + CELL / 2, LABEL - 6), column, INK, ImageFont.load_default(17), "ms")
    for y, row in enumerate(rows):
        top = LABEL + y * high
        pen.text((GAP, top + LABEL - 8), row, INK, ImageFont.load_default(13), "ls")
        for x, column in enumerate(columns):
            with Image.open(cells[row, column]) as picture:
                large = picture.convert("RGB").resize((CELL, CELL), Image.Resampling.LANCZOS)
            sheet.paste(large, (GAP + x * (CELL + GAP), top + LABEL))
    return sheet


def below(parts: list[Image.Image]) -> Image.Image:
    """Pictures under each other on one page."""
    page = Image.new("RGB", (max(p.width for p in parts), sum(p.height for p in parts)), PAPER)
    top = 0
    for part in parts:
        page.paste(part, (0, top))
        top += part.height
    return page


def beside(parts: list[Image.Image]) -> Image.Image:
    """Pictures next to each other."""
    row = Image.new("RGB", (sum(p.width for p in parts), max(p.height for p in parts)), PAPER)
    left = 0
    for part in parts:
        row.paste(part, (left, 0))
        left += part.width
    return row


def reports(cells: list[tuple[str, str]]) -> list[Image.Image]:
    """The pictures that belong to no grid, each under its title."""
    made = []
    for title, file in cells:
        if " | " not in title:
            with Image.open(file) as picture:
                page = Image.new("RGB", (picture.width, picture.height + LABEL), PAPER)
                page.paste(picture.convert("RGB"), (0, LABEL))
            ImageDraw.Draw(page).text((GAP, LABEL - 6), title, INK, ImageFont.load_default(17), "ls")
            made.append(page)
    return made


def main(out: str) -> None:
    """Read the cells, write the sheet."""
    cells = [(title, file) for title, file in json.load(sys.stdin)]
    left = below([grid_picture(columns, grid) for columns, grid in grids(cells).items()])
    beside([left, *reports(cells)]).save(out)


if __name__ == "__main__":
    main(sys.argv[1])
