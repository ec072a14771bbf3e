"""Pictures about Σ: energy and effective rank by block, and the labelled grid of pictures."""

from collections.abc import Mapping, Sequence

from PIL import Image, ImageDraw
from torch import Tensor

from .factors import Factors
from .plot import COLOURS, FAINT, INK, PAPER, SIZE, font, picture_of, spectrum_chart, stacked, wrapped
from .spectrum import Layer, by_block, measure

ROW, LABEL, GAP = 22, 170, 16  # pixels: a block's row, its name, between the two halves


def spectrum_picture(layers: Mapping[str, Factors]) -> Image.Image:
    """The spectrum of the whole adapter, and what each block of the network holds of it."""
    return stacked([spectrum_chart(layers), block_chart(measure(layers))])


def block_chart(lines: Sequence[Layer]) -> Image.Image:
    """A row for each block: its share of the energy as a bar, the effective rank of each of its layers as a dot."""
    blocks = by_block(lines)
    shares = {block: sum(line.share for line in inside) for block, inside in blocks.items()}
    longest, rank = max(shares.values()) or 1.0, max(len(line.sigma) for line in lines)
    picture = Image.new("RGB", (SIZE[0], 64 + ROW * len(blocks) + 30), PAPER)
    draw = ImageDraw.Draw(picture)
    half = (SIZE[0] - LABEL - 4 * GAP) / 2
    bars, dots = LABEL + GAP, LABEL + 2 * GAP + half
    draw.text((bars, 34), "Energy, % of the whole", INK, font(14), anchor="ls")
    draw.text((dots, 34), f"Effective rank of each layer, 1 to {rank}", INK, font(14), anchor="ls")
    for tick in range(1, rank + 1, max(1, rank // 4)):
        column = dots + half * (tick - 1) / max(rank - 1, 1)
        draw.line([(column, 46), (column, picture.height - 26)], fill="#e8edf1")
        draw.text((column, picture.height - 8), str(tick), INK, font(12), anchor="ms")
    for i, (block, inside) in enumerate(blocks.items()):
        top = 50 + i * ROW
        middle = top + ROW / 2
        draw.text((LABEL, middle), _shortened(block), INK, font(12), anchor="rm")
        length = (half - 44) * shares[block] / longest
        draw.rectangle([bars, top + 4, bars + length, top + ROW - 4], fill=COLOURS[1])
        draw.text((bars + length + 5, middle), f"{shares[block]:.1%}", INK, font(12), anchor="lm")
        draw.line([(dots, middle), (dots + half, middle)], fill=FAINT)
        for line in inside:
            column = dots + half * (line.rank - 1) / max(rank - 1, 1)
            draw.ellipse([column - 3, middle - 3, column + 3, middle + 3], fill=COLOURS[0], outline=PAPER)
    return picture


def labelled_grid(
    rows: Sequence[str], columns: Sequence[str], pictures: Mapping[tuple[str, str], Tensor], cell: int = 512
) -> Image.Image:
    """Pictures in a grid with the columns' names on top and each row's name above it.

    Args:
        pictures: (row, column) -> (height, width, 3) in 0..1; a cell that is missing stays empty.
        cell: longest side of a picture in pixels; larger ones are made smaller, none larger.
    """
    small = {place: picture_of(pixels) for place, pixels in pictures.items()}
    for picture in small.values():
        picture.thumbnail((cell, cell), Image.Resampling.LANCZOS)
    width, height = (max(picture.size[side] for picture in small.values()) for side in (0, 1))
    size = max(11, min(18, width // 11))
    gap, line = max(4, width // 32), size + 6
    names = [wrapped(name, width, size) for name in columns]
    texts = [wrapped(name, len(columns) * (width + gap) - gap, size) for name in rows]
    head = gap + line * max(len(name) for name in names)
    tall = head + sum(line * len(text) + height + gap for text in texts) + gap
    sheet = Image.new("RGB", (len(columns) * (width + gap) + gap, tall), PAPER)
    draw = ImageDraw.Draw(sheet)
    for x, name in enumerate(names):
        for i, words in enumerate(name):
            draw.text((gap + x * (width + gap) + width / 2, gap + i * line), words, INK, font(size), anchor="ma")
    top = head
    for row, text in zip(rows, texts, strict=True):
        for words in text:
            draw.text((gap, top), words, INK, font(size))
            top += line
        for x, column in enumerate(columns):
            if (row, column) in small:
                sheet.paste(small[row, column], (gap + x * (width + gap), top))
        top += height + gap
    return sheet


def _shortened(name: str, letters: int = 24) -> str:
    return name if len(name) <= letters else "…" + name[1 - letters :]
