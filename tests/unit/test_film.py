"""The film strip of a run: its own pictures, whatever else lies in the folder."""

from pathlib import Path

import torch

from trilora.film import Film, Preview


def test_a_copy_of_a_preview_in_the_folder_ends_no_run(tmp_path: Path) -> None:
    film = Film(Preview(every=1), tmp_path, lambda _tick: torch.rand(16, 16, 3))
    film.take(1, print)
    for name in ("preview-0000001 - Copy.png", "preview-0000001 (1).png", "preview-best.png"):
        (tmp_path / name).write_bytes((tmp_path / "preview-0000001.png").read_bytes())
    film.begin(1)
    film.take(2, print)
    assert film.steps() == [1, 2]
    assert film.tensor().shape == (2, 16, 16, 3)
    film.begin(0)
    assert sorted(path.name for path in tmp_path.glob("preview-*")) == [
        "preview-0000001 (1).png", "preview-0000001 - Copy.png", "preview-best.png",
    ]  # fmt: skip
