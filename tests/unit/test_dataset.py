"""Folders to pictures, captions, buckets and batches."""

import math
from collections import Counter
from pathlib import Path

import numpy
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from trilora import dataset
from trilora.dataset import Batches, Dataset, Picture, bucket, from_tensors, generator, read_folder
from trilora.errors import DataError

RED, BLUE, WHITE = (255, 0, 0), (0, 0, 255), (255, 255, 255)


def halves(width: int = 40, height: int = 20) -> Image.Image:
    """Red on the left, blue on the right."""
    picture = Image.new("RGB", (width, height), RED)
    picture.paste(BLUE, (width // 2, 0, width, height))
    return picture


def only(folder: Path) -> Picture:
    (picture,) = read_folder(folder)
    return picture


def colours(picture: Picture, size: tuple[int, int] | None = None) -> numpy.ndarray:
    return (picture.pixels(size or picture.size) * 255).round().numpy()


def close(pixel: numpy.ndarray, colour: tuple[int, int, int], tolerance: int = 4) -> bool:
    return bool((abs(pixel - numpy.array(colour)) <= tolerance).all())


@pytest.mark.parametrize(
    ("beside", "caption"),
    [
        ({}, ""),
        ({"a.txt": "a cat"}, "a cat"),
        ({"a.caption": "a dog"}, "a dog"),
        ({"a.txt": "a cat", "a.caption": "a dog"}, "a cat"),
        ({"a.txt": "\ufeff a cat,\r\n on a  mat \n"}, "a cat, on a mat"),
        ({"a.txt": "猫 ü"}, "猫 ü"),
        ({"b.txt": "another"}, ""),
    ],
)
def test_the_caption_is_the_text_beside_the_picture(tmp_path, beside, caption):
    halves().save(tmp_path / "a.png")
    for name, text in beside.items():
        (tmp_path / name).write_bytes(text.encode())
    assert only(tmp_path).caption == caption


def test_a_caption_that_is_not_utf8_is_named(tmp_path):
    halves().save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_bytes("été".encode("latin-1"))
    with pytest.raises(DataError, match=r"a\.txt is not UTF-8 text\. Save it again"):
        read_folder(tmp_path)


def test_every_picture_of_the_folder_is_read_in_order_of_name_and_nothing_else(tmp_path):
    for name in ("c.PNG", "a.jpg", "d.jpeg", "b.webp", "e.bmp"):
        halves().save(tmp_path / name)
    (tmp_path / "notes.md").write_text("not a picture")
    (tmp_path / "more").mkdir()
    pictures = read_folder(tmp_path)
    assert [picture.name for picture in pictures] == ["a.jpg", "b.webp", "c.PNG", "d.jpeg", "e.bmp"]
    assert {picture.size for picture in pictures} == {(40, 20)}


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
def test_a_picture_is_turned_as_its_camera_says(tmp_path, suffix):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned a quarter clockwise
    halves().save(tmp_path / f"a.{suffix}", exif=exif, quality=95)
    picture = only(tmp_path)
    assert picture.size == (20, 40)
    pixels = colours(picture)
    assert pixels.shape == (40, 20, 3)
    assert close(pixels[2, 10], RED, 40)
    assert close(pixels[-3, 10], BLUE, 40)


@pytest.mark.parametrize(
    ("mode", "colour", "seen"),
    [
        ("RGBA", (255, 0, 0, 0), WHITE),
        ("RGBA", (0, 0, 0, 128), (127, 127, 127)),
        ("RGBA", (255, 0, 0, 255), RED),
        ("LA", (0, 0), WHITE),
        ("LA", (80, 255), (80, 80, 80)),
        ("L", 80, (80, 80, 80)),
        ("1", 1, WHITE),
    ],
)
def test_transparency_is_seen_over_white(tmp_path, mode, colour, seen):
    Image.new(mode, (32, 32), colour).save(tmp_path / "a.png")
    assert close(colours(only(tmp_path))[9, 9], seen)


def test_a_palette_keeps_its_colours_and_its_transparent_one_turns_white(tmp_path):
    picture = halves().quantize(4)
    picture.save(tmp_path / "a.png")
    assert close(colours(only(tmp_path))[9, 3], RED)
    picture.save(tmp_path / "a.png", transparency=picture.getpixel((3, 9)))
    pixels = colours(only(tmp_path))
    assert close(pixels[9, 3], WHITE)
    assert close(pixels[9, -3], BLUE)


def test_a_transparent_colour_of_an_rgb_picture_turns_white(tmp_path):
    halves().save(tmp_path / "a.png", transparency=RED)
    pixels = colours(only(tmp_path))
    assert close(pixels[9, 3], WHITE)
    assert close(pixels[9, -3], BLUE)


@pytest.mark.parametrize("transparency", [None, 0])
def test_a_16_bit_picture_keeps_its_greys(tmp_path, transparency):
    ramp = numpy.linspace(257, 65535, 64 * 64).reshape(64, 64).astype(numpy.uint16)
    options = {} if transparency is None else {"transparency": transparency}
    Image.fromarray(ramp).save(tmp_path / "a.png", **options)
    pixels = colours(only(tmp_path))
    assert abs(pixels - (ramp / 257)[..., None]).max() <= 1.5


@pytest.mark.parametrize("mode", ["CMYK", "YCbCr"])
def test_a_print_or_video_coloured_jpeg_keeps_its_colours(tmp_path, mode):
    Image.new("RGB", (32, 32), (200, 30, 30)).convert(mode).save(tmp_path / "a.jpg", quality=95)
    assert close(colours(only(tmp_path))[9, 9], (200, 30, 30))


def test_every_picture_that_cannot_be_read_is_named(tmp_path):
    halves().save(tmp_path / "good.png")
    whole = (tmp_path / "good.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "page.jpg").write_text("<html>")
    (tmp_path / "empty.webp").write_bytes(b"")
    halves(15, 40).save(tmp_path / "tiny.bmp")
    with pytest.raises(DataError) as caught:
        read_folder(tmp_path)
    message = str(caught.value)
    for name in ("cut.png", "page.jpg", "empty.webp"):
        assert f"{name} can't be read as a picture" in message
    assert "tiny.bmp is only 15 x 40 pixels" in message
    assert "good.png" not in message
    assert message.count("remove it") == 4


@pytest.mark.parametrize(
    ("suffix", "good", "bad"),
    [("png", b"IDAT", b"\x01\xb93\xd2"), ("webp", b"MM\x00*", b"MM\xfa*"), ("png", b"IHDR", b"IHDX")],
    ids=["a chunk's name", "the camera's notes", "the head"],
)
def test_a_picture_with_a_damaged_part_is_named(tmp_path, suffix, good, bad):
    exif = Image.Exif()
    exif[0x0112] = 6
    file = tmp_path / f"a.{suffix}"
    halves().save(file, exif=exif)
    data = file.read_bytes()
    assert good in data
    file.write_bytes(data.replace(good, bad, 1))
    with pytest.raises(DataError, match=rf"a\.{suffix} can't be read as a picture"):
        read_folder(tmp_path)


@pytest.mark.parametrize("size", [(15, 40), (40, 15), (1, 1)])
def test_a_picture_too_small_is_named_with_its_size(tmp_path, size):
    halves(*size).save(tmp_path / "a.png")
    with pytest.raises(DataError, match=rf"a\.png is only {size[0]} x {size[1]} pixels\. Use a larger picture"):
        read_folder(tmp_path)
    with pytest.raises(DataError, match=f"picture 1 is only {size[0]} x {size[1]} pixels"):
        from_tensors([torch.zeros(size[1], size[0], 3)], [""])


def test_the_smallest_picture_is_taken(tmp_path):
    halves(16, 16).save(tmp_path / "a.png")
    assert only(tmp_path).size == (16, 16)


def test_a_folder_that_is_none_or_holds_nothing_says_what_to_do(tmp_path):
    with pytest.raises(DataError, match="gone is not a folder. Put your pictures into a folder"):
        read_folder(tmp_path / "gone")
    (tmp_path / "a.txt").write_text("a caption without a picture")
    with pytest.raises(DataError, match=r"holds no picture \(\.png, .*Put 10 to 100 pictures there"):
        read_folder(tmp_path)


def test_pixels_are_cut_from_the_middle_and_scaled(tmp_path):
    picture = Image.new("RGB", (60, 20), WHITE)
    picture.paste(RED, (20, 0, 40, 20))
    picture.save(tmp_path / "a.png")
    pixels = only(tmp_path).pixels((10, 10))
    assert pixels.shape == (10, 10, 3)
    assert pixels.dtype == torch.float32
    assert close(pixels[5, 5].numpy() * 255, RED)
    assert 0 <= float(pixels.min()) <= float(pixels.max()) <= 1


def test_pixels_are_width_by_height_and_kept_as_they_are_at_their_own_size(tmp_path):
    halves().save(tmp_path / "a.png")
    pixels = only(tmp_path).pixels((40, 20))
    assert pixels.shape == (20, 40, 3)
    assert numpy.array_equal(pixels.numpy() * 255, numpy.asarray(halves()))
    assert only(tmp_path).pixels((24, 48)).shape == (48, 24, 3)


def test_pictures_from_memory_come_with_their_captions():
    images = [torch.zeros(20, 40, 3), torch.ones(32, 24, 4)]
    first, second = from_tensors(images, [" a cat ", ""])
    assert (first.name, first.caption, first.size) == ("picture 1", "a cat", (40, 20))
    assert (second.caption, second.size) == ("", (24, 32))
    assert not first.pixels((16, 16)).any()
    assert (second.pixels((24, 32)) == 1).all()


def test_pictures_and_captions_must_be_as_many():
    with pytest.raises(DataError, match="2 pictures came with 1 captions.*one caption for each"):
        from_tensors([torch.zeros(20, 20, 3)] * 2, ["a"])


shapes = st.tuples(st.integers(16, 4000), st.integers(16, 4000))
grids = st.sampled_from([(64, 8), (64, 64), (256, 16), (512, 64), (768, 32), (1024, 64), (500, 64)])


def shape_error(chosen: tuple[int, int], size: tuple[int, int]) -> float:
    """How far a bucket's shape is from a picture's, on a log scale, shapes beyond 1:2 counting as 1:2."""
    return abs(math.log(chosen[0] / chosen[1] / min(max(size[0] / size[1], 0.5), 2.0)))


@given(shapes, grids)
def test_a_bucket_is_a_multiple_of_the_step_within_the_area(size, grid):
    resolution, step = grid
    width, height = bucket(size, resolution, step)
    assert width % step == height % step == 0
    assert 0 < width * height <= resolution**2
    assert 0.5 <= width / height <= 2


@given(shapes, grids)
def test_no_bucket_that_uses_the_area_is_nearer_in_shape(size, grid):
    resolution, step = grid

    def fits(width: int, height: int) -> bool:
        return width * height <= resolution**2 and width <= 2 * height and height <= 2 * width

    sides = range(step, 2 * resolution + 1, step)
    full = [(w, h) for w in sides for h in sides if fits(w, h) and not fits(w + step, h) and not fits(w, h + step)]
    chosen = bucket(size, resolution, step)
    assert shape_error(chosen, size) <= min(shape_error(each, size) for each in full) + 1e-5


@given(shapes, grids)
def test_a_landscape_is_treated_as_its_portrait(size, grid):
    one, other = bucket(size, *grid), bucket(size[::-1], *grid)
    assert shape_error(one, size) == pytest.approx(shape_error(other, size[::-1]), abs=1e-5)
    assert one[0] * one[1] == other[0] * other[1]


@pytest.mark.parametrize(
    ("size", "want"),
    [((100, 100), (512, 512)), ((300, 1000), (320, 640)), ((800, 1200), (384, 640)), ((1200, 800), (640, 384))],
)
def test_buckets_of_common_shapes(size, want):
    assert bucket(size, 512, 64) == want


def test_without_a_step_every_picture_is_square():
    picture = Picture("a", "", (300, 1000), torch.zeros(1000, 300, 3))
    assert Dataset((picture,), resolution=384, bucket_step=0).size_of(picture) == (384, 384)
    assert Dataset((picture,), resolution=512, bucket_step=64).size_of(picture) == (320, 640)


@pytest.mark.parametrize(
    ("trigger", "caption", "prompt"),
    [("zxk", "a cat", "zxk, a cat"), ("zxk", "", "zxk"), ("", "a cat", "a cat"), ("", "", "")],
)
def test_the_prompt_is_the_trigger_and_the_caption(trigger, caption, prompt):
    picture = Picture("a", caption, (20, 20), torch.zeros(20, 20, 3))
    assert Dataset((picture,), trigger).prompt_of(picture) == prompt


size_lists = st.lists(st.sampled_from([(8, 8), (8, 16), (16, 8)]), min_size=1, max_size=20).map(tuple)


def epoch(batches: Batches, number: int) -> list[list[int]]:
    return [batches.at(number * batches.per_epoch + i) for i in range(batches.per_epoch)]


@given(size_lists, st.integers(1, 6), st.integers(0, 99), st.integers(0, 3))
def test_every_index_comes_once_an_epoch_in_batches_of_one_size(sizes, batch, seed, number):
    batches = Batches(sizes, batch, seed)
    drawn = epoch(batches, number)
    assert all(len(indices) == batch for indices in drawn)
    assert all(len({sizes[i] for i in indices}) == 1 for indices in drawn)
    assert {i for indices in drawn for i in indices} == set(range(len(sizes)))
    for size, members in Counter(sizes).items():  # what is more than once fills up the last batch of its size
        rows = [indices for indices in drawn if sizes[indices[0]] == size]
        assert len(rows) == -(-members // batch)
        assert sum(len(set(indices)) == batch for indices in rows) >= members // batch
        counts = Counter(i for indices in rows for i in indices).values()
        assert max(counts) - min(counts) <= 1
        if members % batch == 0:
            assert set(counts) == {1}


@given(size_lists, st.integers(1, 4), st.integers(0, 99), st.permutations(range(12)))
def test_a_batch_depends_on_seed_and_step_alone(sizes, batch, seed, order):
    batches = Batches(sizes, batch, seed)
    asked = {step: batches.at(step) for step in order}
    assert [asked[step] for step in range(12)] == [Batches(sizes, batch, seed).at(step) for step in range(12)]


def test_epochs_differ_and_the_seed_decides():
    sizes = ((8, 8),) * 20
    batches = Batches(sizes, 4, 1)
    assert epoch(batches, 0) != epoch(batches, 1)
    assert epoch(batches, 0) == epoch(Batches(sizes, 4, 1), 0)
    assert epoch(batches, 0) != epoch(Batches(sizes, 4, 2), 0)


def test_sizes_are_mixed_within_an_epoch():
    sizes = ((8, 8),) * 20 + ((8, 16),) * 20
    order = [sizes[indices[0]] for indices in epoch(Batches(sizes, 2, 0), 0)]
    assert order != sorted(order)
    assert order != sorted(order, reverse=True)


def test_a_generator_is_decided_by_its_seed_and_its_purpose():
    def draw(*what):
        return torch.rand(4, generator=generator(*what)).tolist()

    assert draw(0, "noise", 1) == draw(0, "noise", 1)
    others = [draw(0, "noise", 2), draw(1, "noise", 1), draw(0, "batches", 1), draw(0, "noise", "1"), draw(0)]
    assert len({tuple(values) for values in [*others, draw(0, "noise", 1)]}) == 6


def test_the_global_random_state_is_left_alone():
    before = torch.get_rng_state()
    Batches(((8, 8),) * 5, 2, 0).at(7)
    assert torch.equal(torch.get_rng_state(), before)


def test_no_list_of_formats_is_longer_than_what_is_read(tmp_path):
    for suffix in dataset.PICTURES:
        halves().save(tmp_path / f"a{suffix}")
    assert len(read_folder(tmp_path)) == len(dataset.PICTURES)
