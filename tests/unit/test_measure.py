"""What benchmarks say of their measurements: medians, spreads, ratios, goals, the files they leave."""

import json
from pathlib import Path

import pytest

import dev
from benchmarks import _measure
from benchmarks._measure import Clock, Goal, Table, in_turn, keep, number, ratio
from trilora.errors import FileError


def test_arms_take_turns_and_the_first_turn_is_not_counted() -> None:
    order: list[str] = []

    def arm(name: str) -> list[float]:
        order.append(name)
        return [float(len(order))]

    samples = in_turn({"a": lambda: arm("a"), "b": lambda: arm("b")}, turns=2)
    assert order == ["a", "b"] * 3
    assert samples == {"a": [3.0, 5.0], "b": [4.0, 6.0]}


def test_the_clock_counts_work_and_no_waiting() -> None:
    import time

    waited = Clock()(lambda: time.sleep(0.2))
    worked = Clock()(lambda: sum(range(3_000_000)))
    assert waited < 0.1
    assert worked > 0.01


def test_one_outlier_does_not_move_a_ratio() -> None:
    found = ratio([2.0, 2.2, 1.8, 2.1, 100.0], [1.0, 1.0, 1.0, 1.0, 1.0])
    assert found.value == pytest.approx(2.1)
    assert found.low <= found.value <= found.high
    assert found.low >= 1.8


def test_what_slows_both_arms_of_a_turn_does_not_move_their_ratio() -> None:
    slow = [1.0, 1.6, 1.0, 1.3, 2.0, 1.0]
    found = ratio([1.1 * second for second in slow], slow)
    assert found == pytest.approx((1.1, 1.1, 1.1))
    assert ratio([2.0, 4.0], slow).value == pytest.approx(3 / 1.15)  # not in turn: of the medians


def test_a_ratio_of_steady_arms_has_no_spread_and_comes_out_the_same_again() -> None:
    assert ratio([3.0] * 5, [2.0] * 5) == (1.5, 1.5, 1.5)
    noisy = [1.0, 1.3, 0.9, 1.1, 1.2]
    assert ratio(noisy, [1.0] * 5) == ratio(noisy, [1.0] * 5)


@pytest.mark.parametrize(
    ("ours", "verdict"),
    [([1.0, 1.01, 1.02], "reached"), ([1.5, 1.5, 1.5], "missed"), ([1.0, 1.06, 1.2], "within the spread")],
)
def test_a_goal_is_reached_missed_or_within_the_spread(ours: list[float], verdict: str) -> None:
    table = Table("steps", "s", {"floor": [1.0] * 3, "ours": ours}, "floor", [Goal("ours", "floor", 1.03)])
    assert table.text().splitlines()[-1].endswith(f"| {verdict} |")


def test_a_table_names_every_arm_with_median_spread_count_and_ratio() -> None:
    text = Table("A step", "s", {"floor": [2.0, 1.0, 3.0], "ours": [4.0]}, "floor", note="Of a toy.").text()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]
    assert text.startswith("## A step\n")
    assert rows[0] == ["", "median, s", "least to most", "n", "/ floor"]
    assert {len(row) for row in rows} == {5}
    assert rows[2] == ["floor", "2", "1 to 3", "3", "1.000"]
    assert rows[3] == ["ours", "4", "4 to 4", "1", "2.000"]
    assert "Of a toy." in text


@pytest.mark.parametrize(("value", "said"), [(0.012345, "0.0123"), (12.345, "12.3"), (12345.6, "12,346")])
def test_numbers_are_told_with_three_digits(value: float, said: str) -> None:
    assert number(value) == said


def test_results_hold_every_sample_the_machine_the_versions_and_the_commit(tmp_path: Path) -> None:
    table = Table("A step", "s", {"floor": [2.0, 1.0], "ours": [4.0]}, "floor", [Goal("ours", "floor", 3)])
    page = keep("toy", "Steps of a toy", [table], tmp_path).read_text()
    data = json.loads((tmp_path / "toy.json").read_text())
    assert data["tables"][0]["samples"] == {"floor": [2.0, 1.0], "ours": [4.0]}
    for name in ("machine", "versions", "commit", "command"):
        assert f"- {name}: {data[name]}" in page
    assert "torch 2" in data["versions"]
    assert "ComfyUI" in data["versions"]
    assert page.endswith(table.text())


def test_a_result_that_can_not_be_written_leaves_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = Table("A step", "s", {"floor": [1.0]}, "floor")
    before = keep("toy", "Steps", [table], tmp_path).read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("trilora.disk.os.replace", full)
    with pytest.raises(FileError, match="No space left"):
        keep("toy", "Other steps", [table], tmp_path)
    assert (tmp_path / "toy.md").read_bytes() == before
    assert sorted(file.name for file in tmp_path.iterdir()) == ["toy.json", "toy.md"]


def test_a_dirty_checkout_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    import subprocess

    answers = {"rev-parse": "abc1234\n", "status": " M trilora/run.py\n"}

    def git(command: list[str], **_: object) -> subprocess.CompletedProcess:
        return subprocess.CompletedProcess(command, 0, answers[command[3]])

    monkeypatch.setattr(_measure.subprocess, "run", git)
    assert _measure.commit() == "abc1234 with changes"
    answers["status"] = ""
    assert _measure.commit() == "abc1234"


def test_the_command_lists_the_benchmarks_and_refuses_a_name_that_is_none_of_them(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert dev.bench(dev.parse(["bench"])) == 0
    listed = capsys.readouterr().out
    assert "step" in listed
    assert "_measure" not in listed
    assert dev.bench(dev.parse(["bench", "no_such_one"])) == 2


def test_every_benchmark_says_in_its_first_line_what_it_measures_and_is_on_the_page() -> None:
    folder = Path(_measure.__file__).parent
    page = (folder / "README.md").read_text()
    for file in folder.glob("[!_]*.py"):
        assert f"`{file.stem}`" in page
        assert file.read_text().startswith('"""')
