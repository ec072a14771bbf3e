"""What is kept on disk comes back as it was, or is made again; it is never in the way."""

import errno
import logging
import os
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import randn

from trilora import cache as module
from trilora.cache import Cache, digest

VALUE = [
    [randn(1, 2, 3), {"pooled_output": randn(2, 4).to(torch.bfloat16), "mask": None, "size": (1, 2.5, "x", True)}],
    torch.arange(3)[::2],
]


def never() -> Any:
    pytest.fail("made again, although it was kept")


def only(folder: Path) -> Path:
    (file,) = folder.iterdir()
    return file


def test_what_was_made_comes_back_in_the_next_run_with_every_type_and_bit(tmp_path):
    folder = tmp_path / "not" / "there yet"
    assert Cache(folder).kept("key", lambda: VALUE) is VALUE
    again = Cache(folder).kept("key", never)
    assert digest(again) == digest(VALUE)
    assert again[0][1]["pooled_output"].dtype == torch.bfloat16
    assert again[0][1]["size"] == (1, 2.5, "x", True)


def test_another_key_is_another_entry(tmp_path):
    cache = Cache(tmp_path)
    keys = ["a", ["a"], ["a", 1], ["a", "1"], ["a", None], [torch.zeros(2)], [torch.zeros(1, 2)]]
    for i, key in enumerate(keys):
        assert cache.kept(key, lambda i=i: torch.tensor(i)) == i
    assert [int(cache.kept(key, never)) for key in keys] == list(range(len(keys)))


@pytest.mark.parametrize("damage", ["cut", "one bit", "text", "empty", "folder"])
def test_a_broken_entry_is_made_again_and_replaced(tmp_path, damage):
    cache = Cache(tmp_path)
    cache.kept("key", lambda: randn(0, 50))
    file = only(tmp_path)
    data = bytearray(file.read_bytes())
    data[-7] ^= 1
    broken = {"cut": data[:-10], "one bit": data, "text": b"gone", "empty": b""}
    file.unlink()
    if damage == "folder":
        file.mkdir()
    else:
        file.write_bytes(broken[damage])
    assert torch.equal(cache.kept("key", lambda: randn(0, 50)), randn(0, 50))
    if damage != "folder":
        assert torch.equal(cache.kept("key", never), randn(0, 50))


def test_a_disk_that_refuses_is_told_once_and_is_no_error(tmp_path, caplog):
    (tmp_path / "file").write_text("where the folder should be")
    cache = Cache(tmp_path / "file")
    with caplog.at_level(logging.WARNING):
        assert [int(cache.kept(key, lambda: torch.tensor(3))) for key in "ab"] == [3, 3]
    (line,) = caplog.messages
    assert "so the next run will encode them again" in line
    cache.trim()


def test_a_full_disk_leaves_nothing_half_written(tmp_path, monkeypatch):
    def full(_handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    cache = Cache(tmp_path)
    assert int(cache.kept("key", lambda: torch.tensor(3))) == 3
    assert not cache.writable
    assert not list(tmp_path.iterdir())


def test_what_holds_other_things_than_tensors_is_not_kept(tmp_path):
    cache = Cache(tmp_path)
    assert isinstance(cache.kept("key", lambda: [object()])[0], object)
    assert not list(tmp_path.iterdir())


def test_an_error_while_making_is_passed_on(tmp_path):
    with pytest.raises(ZeroDivisionError):
        Cache(tmp_path).kept("key", lambda: 1 / 0)


def test_the_longest_unused_goes_first_when_there_is_too_much(tmp_path):
    cache = Cache(tmp_path, limit=3600)
    for age, key in enumerate("abc", start=1):  # each a little over 1000 bytes
        known = set(tmp_path.iterdir())
        cache.kept(key, lambda: torch.zeros(250))
        (file,) = set(tmp_path.iterdir()) - known
        os.utime(file, (age, age))
    cache.kept("a", never)
    cache.kept("d", lambda: torch.zeros(250))
    cache.trim()
    for key in "acd":
        cache.kept(key, never)
    with pytest.raises(RuntimeError, match="b is gone"):
        cache.kept("b", gone)


def test_what_lies_on_a_disk_that_only_reads_is_found(tmp_path, monkeypatch):
    cache = Cache(tmp_path)
    cache.kept("a", lambda: torch.ones(3))

    def refused(*_: Any) -> None:
        raise PermissionError("read-only")

    monkeypatch.setattr(module.os, "utime", refused)
    assert cache.kept("a", never).equal(torch.ones(3))


def gone() -> Any:
    raise RuntimeError("b is gone")


def test_half_written_files_of_broken_runs_are_removed_once_they_are_old(tmp_path):
    for name, age in (("old.part", 2 * module.STALE), ("new.part", 0)):
        (tmp_path / name).write_bytes(b"half")
        os.utime(tmp_path / name, (time.time() - age,) * 2)
    (tmp_path / "notes.txt").write_text("somebody else's")
    Cache(tmp_path, limit=0).trim()
    assert {file.name for file in tmp_path.iterdir()} == {"new.part", "notes.txt"}


plain = st.one_of(st.none(), st.booleans(), st.integers(-2, 2), st.sampled_from(["", "1", 1.0]))
values = st.one_of(plain, st.lists(plain, max_size=2), st.dictionaries(st.sampled_from("ab"), plain, max_size=2))


@given(values, values)
def test_equal_values_share_a_digest_and_others_do_not(one, other):
    assert digest(one) == digest(one)
    assert (digest(one) == digest(other)) == (repr(one) == repr(other))


def test_a_digest_tells_tensors_apart_by_shape_type_and_bits():
    ones = torch.ones(4)
    others = [ones.view(2, 2), ones.half(), ones.int(), torch.ones(3), ones.clone().index_fill_(0, torch.tensor(2), 2)]
    assert len({digest(tensor) for tensor in [ones, *others]}) == 6
    assert digest(torch.arange(6).view(2, 3).T) == digest(torch.arange(6).view(2, 3).T.contiguous())
    assert digest(torch.tensor(1.0)) != digest(torch.tensor(2.0))
