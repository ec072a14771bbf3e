"""`python -m trilora evaluate`: folders in, a table or JSON out, and words where something does not fit."""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from demo.draw import draw
from demo.world import all_triples, caption, specs_over
from devkit import ROOT
from trilora.errors import DataError
from trilora.headless import evaluate as verb
from trilora.metrics import extractors
from trilora.metrics.evaluation import evaluate
from trilora.pictures import read_folder

EYE = ROOT / "demo" / "judge"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """made/ with prompts, base/ of the same names, real/ of other scenes; one picture is of another size."""
    root, specs = tmp_path_factory.mktemp("sets"), specs_over(all_triples(), 12, seed=3)
    for name, chosen, style in (
        ("made", specs[:6], "paper_print"),
        ("base", specs[:6], None),
        ("real", specs[6:], "paper_print"),
    ):
        (root / name).mkdir()
        for number, spec in enumerate(chosen):
            picture = draw(spec, style)
            (picture.resize((200, 160)) if number == 2 else picture).save(root / name / f"{number}.png")
            if name == "made":
                (root / name / f"{number}.txt").write_text(caption(spec), encoding="utf-8")
    return root


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    def call(*words: object) -> str:
        parser = argparse.ArgumentParser()
        verb.arguments(parser)
        verb.run(parser.parse_args([str(word) for word in words] + ["--demo", "--device", "cpu"]))
        return capsys.readouterr().out

    return call


def test_folders_are_measured_by_the_core(folders: Path, run: Callable[..., str]) -> None:
    found: dict[str, Any] = json.loads(run(folders / "made", folders / "real", "--base", folders / "base", "--json"))
    singles = {
        name: [picture.pixels(picture.size)[None] for picture in read_folder(folders / name)]
        for name in ("made", "real", "base")
    }
    prompts = [picture.caption for picture in read_folder(folders / "made")]
    expected = evaluate(extractors.demo(EYE), singles["made"], singles["real"], singles["base"], prompts).as_dict()
    assert found.pop("warnings") == list(expected.pop("warnings"))
    assert found.pop("extractor") == expected.pop("extractor")
    assert found == pytest.approx(expected, rel=1e-4)
    assert found["nfid"] < 1
    assert found["clip_score"] > 0
    assert found["base_clip_score"] > 0


def test_the_table_shows_what_there_is(folders: Path, run: Callable[..., str]) -> None:
    table = run(folders / "base", folders / "real")
    assert "6 generated, 6 real, 0 base pictures, seen by demo" in table
    assert table.splitlines()[3].split()[:2] == ["generated", "-"]
    assert "! generated: 6 pictures are few for 128 features" in table


def test_prompts_may_come_from_one_file(folders: Path, run: Callable[..., str], tmp_path: Path) -> None:
    lines = [picture.caption for picture in read_folder(folders / "made")]
    (tmp_path / "prompts.txt").write_text("\n".join(lines), encoding="utf-8")
    pair = (folders / "made", folders / "real", "--json")
    assert json.loads(run(*pair, "--prompts", tmp_path / "prompts.txt")) == json.loads(run(*pair))
    (tmp_path / "prompts.txt").write_text("\n".join(lines[:4]), encoding="utf-8")
    with pytest.raises(DataError, match="4 prompts came with 6 pictures"):
        run(*pair, "--prompts", tmp_path / "prompts.txt")


def test_a_missing_prompt_and_a_base_of_other_names_are_told(
    folders: Path, run: Callable[..., str], tmp_path: Path
) -> None:
    for number in range(6):
        (tmp_path / f"x{number}.png").write_bytes((folders / "base" / f"{number}.png").read_bytes())
    with pytest.raises(DataError, match="not named like the generated ones"):
        run(folders / "made", folders / "real", "--base", tmp_path)
    (tmp_path / "x0.txt").write_text("a red cat", encoding="utf-8")
    with pytest.raises(DataError, match="5 of 6 generated pictures have no prompt, x1.png first"):
        run(tmp_path, folders / "real")
