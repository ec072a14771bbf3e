"""Captions are found where they are looked for, and never invented."""

import json
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from trilora.captions import orders
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


def test_a_caption_that_may_not_be_read_is_named(tmp_path, monkeypatch):
    Image.new("RGB", (40, 20)).save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("a cat")

    def refused(*_args, **_named):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_text", refused)
    with pytest.raises(DataError, match=r"a\.txt can't be read: Permission denied"):
        only(tmp_path)


@pytest.mark.parametrize("text", ["", "a.txt"], ids=["without a text", "with one"])
def test_a_picture_whose_name_leaves_no_room_for_a_longer_ending_is_read(tmp_path, text):
    stem = "é" * 124 + "aaa"  # 251 of 255 bytes: .png fits, .caption does not
    Image.new("RGB", (40, 20)).save(tmp_path / "a.png")
    (tmp_path / "a.png").rename(tmp_path / f"{stem}.png")
    if text:
        (tmp_path / f"{stem}.txt").write_text("a cat")
    assert only(tmp_path).caption == ("a cat" if text else "")


def test_a_caption_that_is_not_utf8_is_named(tmp_path):
    Image.new("RGB", (40, 20)).save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_bytes("été".encode("latin-1"))
    with pytest.raises(DataError, match=r"a\.txt is not UTF-8 text\. Save it again"):
        read_folder(tmp_path)


def pictures_in(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 20)).save(folder / name)


@pytest.mark.parametrize(
    ("source", "caption"),
    [
        ("automatic", "from txt"),
        ("name.txt", "from txt"),
        ("name.caption", "from caption"),
        ("metadata.jsonl", "from metadata"),
        ("folder's name", "red cats"),
    ],
)
def test_a_source_of_captions_is_the_only_one_when_chosen(tmp_path, source, caption):
    folder = tmp_path / "10_red_cats"
    pictures_in(folder, "a.png", "b.png")
    (folder / "a.txt").write_text("from txt")
    (folder / "a.caption").write_text("from caption")
    (folder / "metadata.jsonl").write_text('{"file_name": "a.png", "text": "from metadata"}\n')
    first, second = read_folder(folder, source)
    assert first.caption == caption
    assert second.caption == (caption if source == "folder's name" else ""), "nothing is invented"


def test_automatic_falls_back_picture_by_picture(tmp_path):
    pictures_in(tmp_path, "a.png", "b.png", "c.png")
    (tmp_path / "a.caption").write_text("one")
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "b.png", "caption": "two"}\n\n{"file_name": "x.png"}')
    assert [p.caption for p in read_folder(tmp_path)] == ["one", "two", ""]


def test_metadata_lies_beside_a_picture_or_further_up(tmp_path):
    pictures_in(tmp_path, "x/a.png", "x/b.png", "y/a.png")
    (tmp_path / "metadata.jsonl").write_text(
        '{"file_name": "x/a.png", "text": "far"}\n{"file_name": "x/b.png", "text": "far too"}'
    )
    (tmp_path / "x" / "metadata.jsonl").write_text('{"file_name": "a.png", "text": "near"}')
    assert [p.caption for p in read_folder(tmp_path, subfolders=True)] == ["near", "far too", ""]


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\x85"])
def test_a_caption_of_metadata_may_hold_any_separator_that_json_takes(tmp_path, separator):
    pictures_in(tmp_path, "a.png")
    line = json.dumps({"file_name": "a.png", "text": f"a red{separator}cat"}, ensure_ascii=False)
    (tmp_path / "metadata.jsonl").write_bytes(f"{line}\r\n".encode())
    assert only(tmp_path).caption == "a red cat"


def test_metadata_above_the_chosen_folder_is_not_looked_at(tmp_path):
    pictures_in(tmp_path, "x/a.png")
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "x/a.png", "text": "far"}')
    assert read_folder(tmp_path / "x")[0].caption == ""


@pytest.mark.parametrize("line", ["{", '["a.png"]', '{"text": "a"}', '{"file_name": "a.png", "text": 3}'])
def test_a_broken_line_of_metadata_is_named(tmp_path, line):
    pictures_in(tmp_path, "a.png")
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "b.png", "text": "b"}\n' + line)
    with pytest.raises(DataError, match=r"metadata\.jsonl, line 2, is not as it should be.*file_name"):
        read_folder(tmp_path)


def test_an_unknown_source_of_captions_says_which_there_are(tmp_path):
    pictures_in(tmp_path, "a.png")
    with pytest.raises(DataError, match=r"'poem' are unknown.*automatic, name\.txt"):
        read_folder(tmp_path, "poem")


tags = st.lists(st.sampled_from(["a", "b b", "c", "d", "e"]), max_size=6)


@given(tags, st.integers(1, 6), st.integers(0, 4))
def test_every_order_holds_the_same_tags_and_the_kept_ones_in_front(words, count, kept):
    caption = ", ".join(words)
    made = orders(caption, count, kept)
    assert made[0] == caption
    assert 1 <= len(made) <= count
    assert len(set(made)) == len(made)
    for order in made:
        assert Counter(order.split(", ")) == Counter(caption.split(", "))
        assert order.split(", ")[:kept] == caption.split(", ")[:kept]
    assert made == orders(caption, count, kept)


def test_tags_are_shuffled():
    made = orders("a, b, c, d, e, f", 6, 1)
    assert len(made) == 6
    assert set(orders("a, b", 5, 0)) == {"a, b", "b, a"}
    assert orders("a, b", 5, 1) == ("a, b",)
    assert orders(" a,b ,, c", 1, 0) == (" a,b ,, c",), "one order is the caption as it is written"
