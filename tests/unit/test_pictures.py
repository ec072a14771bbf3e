"""Pictures of every format and fault, from a folder or from memory."""

import struct
import zlib
from pathlib import Path

import numpy
import pytest
import torch
from PIL import Image

from trilora import pictures
from trilora.errors import DataError
from trilora.pictures import Picture, from_encodings, from_tensors, read_folder, with_masks

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


LAST_TAG = b"\x1c\x01\x03\x00\x01\x00\x00\x00\x01\x00\x00\x00"  # of a TIFF; behind it stands where the next page is


@pytest.mark.parametrize(
    ("suffix", "good", "bad"),
    [
        ("png", b"IDAT", b"\x01\xb93\xd2"),
        ("webp", b"MM\x00*", b"MM\xfa*"),
        ("png", b"IHDR", b"IHDX"),
        ("tiff", LAST_TAG + bytes(4), LAST_TAG + b"\x05\x00\x00\x00"),
    ],
    ids=["a chunk's name", "the camera's notes", "the head", "the way to the next page"],
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


def gif(path: Path, *colours: tuple[int, int, int]) -> None:
    first, *rest = [Image.new("RGB", (32, 32), colour) for colour in colours]
    first.save(path, save_all=True, append_images=rest, duration=100)


@pytest.mark.parametrize("suffix", ["gif", "webp", "png", "tiff"])
def test_of_a_moving_picture_the_first_frame_is_taken_and_that_is_noted(tmp_path, suffix):
    gif(tmp_path / f"a.{suffix}", RED, BLUE, WHITE)
    picture = only(tmp_path)
    assert close(colours(picture)[9, 9], RED)
    assert picture.note == "moves or has pages: only the first of 3 is used"


def test_a_still_picture_has_no_note_and_neither_has_a_phones_jpeg_of_two_pictures(tmp_path):
    gif(tmp_path / "a.gif", RED)
    halves().save(tmp_path / "b.jpg", format="MPO", save_all=True, append_images=[halves()])
    assert Image.open(tmp_path / "b.jpg").n_frames == 2
    assert [picture.note for picture in read_folder(tmp_path)] == ["", ""]


def test_a_16_bit_colour_picture_keeps_its_colours(tmp_path):
    """Written by hand: Pillow writes no such PNG."""
    chunk = bytes(range(0, 192, 6)) * 6
    rows = numpy.frombuffer(chunk[: 32 * 6], numpy.uint8).reshape(1, 32 * 6).repeat(32, 0)  # 16 bits a channel
    (tmp_path / "a.png").write_bytes(png(32, 32, 16, 2, rows))
    want = rows.reshape(32, 32, 3, 2)[..., 0]
    assert abs(colours(only(tmp_path)).astype(int) - want).max() <= 1


def png(width: int, height: int, depth: int, kind: int, rows: numpy.ndarray) -> bytes:
    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)
    data = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def test_a_grey_picture_of_floats_in_0_to_1_is_read_and_any_other_named(tmp_path):
    ramp = numpy.linspace(0, 1, 32 * 32, dtype=numpy.float32).reshape(32, 32)
    Image.fromarray(ramp).save(tmp_path / "a.tiff")
    assert abs(colours(only(tmp_path)) - ramp[..., None] * 255).max() <= 1
    Image.fromarray(ramp * 1000).save(tmp_path / "a.tiff")
    with pytest.raises(DataError, match=r"a\.tiff can't be read .*from 0 to 1000.* can't be told"):
        read_folder(tmp_path)


def test_a_picture_of_a_format_that_cannot_be_read_is_named_and_not_left_out(tmp_path):
    halves().save(tmp_path / "a.png")
    (tmp_path / "b.heic").write_bytes(b"....ftypheic")
    with pytest.raises(DataError, match=r"b\.heic can't be read as a picture.*Save it again as PNG"):
        read_folder(tmp_path)


def test_hidden_files_are_left_out_and_subfolders_count_when_asked_for(tmp_path):
    for name in ("a.png", "more/b.png", "more/deep/c.png", ".trash/d.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        halves().save(tmp_path / name)
    (tmp_path / "._a.png").write_bytes(b"a Mac's notes on a.png")
    assert [picture.name for picture in read_folder(tmp_path)] == ["a.png"]
    assert [p.name for p in read_folder(tmp_path, subfolders=True)] == ["a.png", "more/b.png", "more/deep/c.png"]


def test_a_padded_picture_is_whole_and_its_border_repeats_the_edge_and_weighs_nothing(tmp_path):
    halves(40, 20).save(tmp_path / "a.png")
    picture = only(tmp_path)
    pixels, weights = picture.pixels((40, 40), "pad"), picture.weights((40, 40), "pad")
    assert pixels.shape == (40, 40, 3)
    assert torch.equal(pixels[10:30], picture.pixels((40, 20)))
    assert torch.equal(pixels[0], pixels[10])
    assert weights.sum() == 40 * 20
    assert (weights[10:30] == 1).all()
    assert picture.weights((40, 40), "crop") is None
    assert picture.weights((40, 20), "pad") is None


def test_transparency_becomes_the_mask_when_asked_for(tmp_path):
    picture = halves().convert("RGBA")
    picture.putalpha(Image.fromarray(numpy.repeat([[0, 255]], 20, axis=0).astype(numpy.uint8)).resize((40, 20), 0))
    picture.save(tmp_path / "a.png")
    (plain,), (masked,) = read_folder(tmp_path), read_folder(tmp_path, alpha=True)
    assert plain.weights((40, 20)) is None
    assert (masked.weights((40, 20)) == torch.tensor([0.0, 1.0]).repeat_interleave(20)).all()
    assert torch.equal(plain.pixels((40, 20)), masked.pixels((40, 20)))
    assert 0 < masked.weights((10, 10))[0, 5] <= 1
    halves().save(tmp_path / "a.png")
    assert read_folder(tmp_path, alpha=True)[0].weights((40, 20)) is None, "opaque: all counts"


def test_a_mask_is_scaled_and_cut_with_its_picture():
    mask = torch.zeros(10, 20)
    mask[:, 10:] = 1
    (picture,) = with_masks(from_tensors([torch.ones(20, 40, 3)], [""]), [mask])
    assert (picture.weights((40, 20))[:, 22:] == 1).all()
    assert not picture.weights((40, 20))[:, :18].any()
    cut = picture.weights((20, 20))
    assert cut.shape == (20, 20)
    assert not cut[:, :8].any()
    assert (cut[:, 12:] == 1).all()


def test_a_black_mask_is_named_also_when_only_the_cut_makes_it_black():
    mask = torch.zeros(20, 60)
    with pytest.raises(DataError, match="mask of picture 1 is black all over.*White is what counts"):
        with_masks(from_tensors([torch.ones(20, 60, 3)], [""]), [mask])[0].weights((20, 60))
    mask[:, :5] = 1
    (picture,) = with_masks(from_tensors([torch.ones(20, 60, 3)], [""]), [mask])
    assert picture.weights((60, 20)).any()
    with pytest.raises(DataError, match="picture 1 is black"):
        picture.weights((20, 20))


def test_there_is_a_mask_for_each_picture():
    with pytest.raises(DataError, match="1 pictures came with 2 masks.*one mask for each"):
        with_masks(from_tensors([torch.ones(20, 20, 3)], [""]), [torch.ones(20, 20)] * 2)


def test_a_digest_is_of_the_bytes_not_of_the_name(tmp_path):
    for name, picture in (("a", halves()), ("b", halves()), ("c", halves(20, 20))):
        picture.save(tmp_path / f"{name}.png")
    a, b, c = read_folder(tmp_path)
    assert a.digest() == b.digest() != c.digest()
    (tmp_path / "a.png").write_bytes((tmp_path / "c.png").read_bytes())
    assert a.digest() == c.digest(), "a file is hashed anew each time"
    (tmp_path / "a.png").unlink()
    with pytest.raises(DataError, match=r"a\.png has gone"):
        a.digest()
    one, same, other = from_tensors([torch.ones(20, 20, 3), torch.ones(20, 20, 3), torch.zeros(20, 20, 3)], [""] * 3)
    assert one.digest() == same.digest() != other.digest()


def test_encodings_pass_through_untouched_and_one_conditioning_may_serve_all():
    latents = [torch.randn(16, 5, 8, 12), torch.randn(4, 8, 8)]
    video, still = from_encodings(latents, [["words", {}]])
    assert video.source.latent is latents[0]
    assert video.source.conditioning is still.source.conditioning
    assert (video.name, video.size) == ("latent 1", (12, 8))
    with pytest.raises(DataError, match="came as a latent, so there are no pixels"):
        video.pixels((12, 8))
    with pytest.raises(DataError, match="2 pictures came with 3 conditionings"):
        from_encodings(latents, [1, 2, 3])
