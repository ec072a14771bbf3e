"""The demo's workflow: unseen prompts, whole wires, and a sheet for its pictures."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from demo.card import write_card
from demo.workflow import PROMPTS, STRENGTHS, STYLE, build
from demo.world import SceneSpec, caption, held_out_triples
from devkit import ROOT


def test_its_prompts_show_what_neither_base_nor_style_ever_showed() -> None:
    scenes = ("meadow", "sea", "desert", "night", "snow")
    unseen = {caption(SceneSpec(*triple, scene)) for triple in held_out_triples() for scene in scenes}
    assert set(PROMPTS) <= unseen
    shown = {file.read_text().strip() for file in (ROOT / "demo" / "styles").rglob("*.txt")}
    assert shown
    assert not set(PROMPTS) & shown


def test_the_base_can_be_measured_where_it_was_not_trained(tmp_path: Path) -> None:
    """The card tells of its training too, so there it stays as it is."""
    write_card(tmp_path / "work", tmp_path, {"pictures": 2, "all": 0.5}, 25, 4.0)
    assert not list(tmp_path.iterdir())


def test_its_style_is_shipped() -> None:
    folder = ROOT / "demo" / "styles" / STYLE.removeprefix("demo: ")
    assert 24 <= len(list(folder.glob("*.png"))) == len(list(folder.glob("*.txt"))) <= 50


def test_every_wire_ends_at_a_node() -> None:
    prompt = build()
    for node in prompt.values():
        for value in node["inputs"].values():
            if isinstance(value, list):
                assert value[0] in prompt


def test_its_sheet_shows_every_picture(tmp_path: Path) -> None:
    titles = [node["_meta"]["title"] for node in build().values() if node["class_type"] == "SaveImage"]
    assert len([title for title in titles if " | " in title]) == 3 * len(PROMPTS) + len(STRENGTHS)
    cells = []
    for i, title in enumerate(titles):
        Image.new("RGB", (128, 128), (i * 9 % 256, 80, 200)).save(tmp_path / f"{i}.png")
        cells.append((title, str(tmp_path / f"{i}.png")))
    out = tmp_path / "sheet.png"
    subprocess.run(
        [sys.executable, str(ROOT / "demo" / "sheet.py"), str(out)], input=json.dumps(cells).encode(), check=True
    )
    with Image.open(out) as sheet:
        colours = {sheet.getpixel((x, y)) for x in range(0, sheet.width, 8) for y in range(0, sheet.height, 8)}
    for i, title in enumerate(titles):
        assert (i * 9 % 256, 80, 200) in colours, title


def test_a_missing_picture_fails_the_sheet(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "demo" / "sheet.py"), str(tmp_path / "sheet.png")]
    with pytest.raises(subprocess.CalledProcessError):
        subprocess.run(command, input=b'[["a | b", "/nowhere.png"]]', check=True, capture_output=True)
