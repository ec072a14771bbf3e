"""Encodings beyond a budget of RAM: the same bits, in files that are gone with them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from trilora import shelf
from trilora.shelf import Shelf

MB = 2**20


def private_memory() -> int:
    """Bytes of this process that no file stands behind."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))


@pytest.mark.parametrize("budget", [0, 100, 10**9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.bool])
def test_what_is_kept_has_the_same_bits_in_ram_and_beyond_it(tmp_path: Path, budget: int, dtype: torch.dtype) -> None:
    value = {"a": [torch.randn(3, 5).to(dtype), (torch.randn(()).to(dtype), "text")], "b": torch.randn(0, 4).to(dtype)}
    kept = Shelf(tmp_path, budget).kept(value)
    assert kept["a"][1][1] == "text"
    for mine, theirs in ((value["a"][0], kept["a"][0]), (value["a"][1][0], kept["a"][1][0]), (value["b"], kept["b"])):
        assert theirs.dtype == dtype
        assert theirs.shape == mine.shape
        assert torch.equal(mine, theirs)
        assert not mine.numel() or mine.data_ptr() != theirs.data_ptr()


def test_many_tensors_share_files_and_none_overwrites_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shelf, "BLOCK", 4096)
    made = Shelf(tmp_path, 0)
    values = [torch.randn(n) for n in (1, 1000, 3, 5000, 7, 24)]
    kept = [made.kept(value) for value in values]
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(values, kept, strict=True))


def test_ram_grows_by_the_budget_and_no_more(tmp_path: Path) -> None:
    script = "from test_shelf import fill; import sys; fill(sys.argv[1])"
    path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    command = [sys.executable, "-c", script, str(tmp_path)]  # new: this one may have freed memory to take from
    subprocess.run(command, env=os.environ | {"PYTHONPATH": path}, check=True)


def fill(folder: str) -> None:
    """Keep 240 MB with a budget of 20."""
    made, before = Shelf(Path(folder), 20 * MB), private_memory()
    kept = [made.kept(torch.full((MB,), float(n))) for n in range(60)]
    grown = private_memory() - before
    assert 15 * MB < grown < 100 * MB, grown
    assert [float(tensor.mean()) for tensor in kept] == list(range(60))


def test_no_file_is_left_in_the_folder(tmp_path: Path) -> None:
    kept = Shelf(tmp_path / "new", 0).kept(torch.ones(9))
    assert list((tmp_path / "new").iterdir()) == []
    assert kept.sum() == 9


def test_a_disk_that_refuses_leaves_all_in_ram_and_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_bytes(b"no folder")
    made = Shelf(tmp_path / "file", 0)
    assert torch.equal(made.kept(torch.arange(9)), torch.arange(9))
    assert torch.equal(made.kept(torch.arange(4)), torch.arange(4))
    assert caplog.text.count("RAM is used") == 1


@pytest.mark.parametrize("budget", [0, 10**9])
def test_what_is_kept_under_inference_mode_may_be_saved_by_autograd(tmp_path: Path, budget: int) -> None:
    with torch.inference_mode():
        made = Shelf(tmp_path, budget)
        kept = made.kept(torch.ones(3))
    made.kept(torch.ones(3))
    weight = torch.ones(3, requires_grad=True)
    (weight * kept).sum().backward()
    assert torch.equal(weight.grad, torch.ones(3))
