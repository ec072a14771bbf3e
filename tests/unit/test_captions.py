"""Captions are found where they are looked for, and never invented."""

from pathlib import Path

import pytest
from PIL import Image

from trilora.errors import DataError
from trilora.pictures import Picture, read_folder


def only(folder: Path) -> Picture:
    (picture,) = read_folder(folder)
    return picture


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
    Image.new("RGB", (40, 20)).save(tmp_path / "a.png")
    for name, text in beside.items():
        (tmp_path / name).write_bytes(text.encode())
    assert only(tmp_path).caption == caption


def test_a_caption_that_is_not_utf8_is_named(tmp_path):
    Image.new("RGB", (40, 20)).save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_bytes("été".encode("latin-1"))
    with pytest.raises(DataError, match=r"a\.txt is not UTF-8 text\. Save it again"):
        read_folder(tmp_path)


