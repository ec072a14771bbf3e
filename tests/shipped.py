"""What is shipped with the pack: the demo base, and a style to train on."""

from pathlib import Path

from devkit import ROOT

BASE = ROOT / "demo" / "base"
STYLE = ROOT / "demo" / "styles" / "stained_glass"
TRIGGER = "zorvex"


def few_pictures(folder: Path, count: int = 6) -> Path:
    """A folder with the first pictures of the style and their captions."""
    folder.mkdir()
    for picture in sorted(STYLE.glob("*.png"))[:count]:
        for file in (picture, picture.with_suffix(".txt")):
            (folder / file.name).write_bytes(file.read_bytes())
    return folder
