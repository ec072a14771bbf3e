"""Pictures of every format and fault, from a folder or from memory."""

from pathlib import Path

import numpy
import pytest
import torch
from PIL import Image

from trilora import pictures
from trilora.errors import DataError
from trilora.pictures import Picture, from_tensors, read_folder

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


def test_no_list_of_formats_is_longer_than_what_is_read(tmp_path):
    for suffix in pictures.PICTURES:
        halves().save(tmp_path / f"a{suffix}")
    assert len(read_folder(tmp_path)) == len(pictures.PICTURES)
