"""Charts about Σ, and the labelled grid."""

import torch
from PIL import ImageColor, ImageStat

from trilora.charts_sigma import block_chart, labelled_grid, spectrum_picture
from trilora.factors import Factors
from trilora.plot import COLOURS
from trilora.spectrum import measure


def layer(size: float, rank: int = 4) -> Factors:
    return Factors(torch.eye(8)[:, :rank], size * torch.logspace(0, -1, rank), torch.eye(8)[:rank])


def bar_lengths(layers: dict[str, Factors]) -> list[int]:
    """Pixels of bar in each row of the chart."""
    picture = block_chart(measure(layers))
    blue = ImageColor.getrgb(COLOURS[1])
    rows = [sum(picture.getpixel((x, y)) == blue for x in range(picture.width)) for y in range(picture.height)]
    middles = [50 + i * 22 + 8 for i in range((picture.height - 94) // 22)]
    return [rows[y] for y in middles]


def test_a_blocks_bar_is_as_long_as_its_energy() -> None:
    first, second = bar_lengths({"blocks.0.q": layer(1.0), "blocks.1.q": layer(2.0)})
    assert abs(4 * first - second) <= 8


def test_the_picture_grows_with_the_blocks_and_takes_an_adapter_of_one_value() -> None:
    few, many = ({f"blocks.{i}.q": layer(1.0, 1) for i in range(count)} for count in (1, 40))
    assert spectrum_picture(many).height - spectrum_picture(few).height == 39 * 22


def test_each_picture_of_a_grid_stands_in_its_row_and_column() -> None:
    shades = {("a prompt", "base"): 0.0, ("a prompt", "top 1"): 0.5, ("another", "top 1"): 0.25}
    pictures = {place: torch.full((40, 60, 3), shade) for place, shade in shades.items()}
    grid = labelled_grid(["a prompt", "another"], ["base", "top 1"], pictures)
    counts = dict((shade, count) for count, (shade, *_) in grid.getcolors(1 << 20))
    assert counts[128] >= 40 * 60
    assert counts[64] >= 40 * 60
    columns = {shade: where(grid, shade) for shade in (128, 64)}
    assert columns[128][0] == columns[64][0]
    assert columns[128][1] < columns[64][1]


def where(grid, shade: int) -> tuple[int, int]:
    """Left upper corner of a shade that fills a picture."""
    mask = grid.convert("L").point(lambda value: 255 * (value == shade))
    columns = [x for x in range(grid.width) if ImageStat.Stat(mask.crop((x, 0, x + 1, grid.height))).sum[0] >= 255 * 40]
    rows = [y for y in range(grid.height) if ImageStat.Stat(mask.crop((0, y, grid.width, y + 1))).sum[0] >= 255 * 60]
    return columns[0], rows[0]


def test_pictures_larger_than_a_cell_are_made_smaller_and_none_larger() -> None:
    small, large = (labelled_grid(["r"], ["c"], {("r", "c"): torch.rand(100, 200, 3)}, cell) for cell in (64, 512))
    assert small.width < 64 + 20
    assert 200 < large.width < 220
