"""The paper's experiment, toy-sized, on the demo base: every kind of row, a break, and the tables of its files."""

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.paper import data, jobs, run, scale
from benchmarks.paper.jobs import Job, Store

TOY = scale.Scale(
    side=64, rank=2, batch=2, seeds=(0,), rates=(3e-3,), kept_rates=1, steps=3, strengths=(0.7,), after=1, captions=1,
    long_epochs=4, long_pictures=2, long_rates=(3e-3,), paper_seeds=(0,), paper_pictures=2, creature_epochs=2,
    garment_epochs=1, prompts=2, special_steps=2,
)  # fmt: skip
METHODS = {"FIRST": ("lora", "orthogonal"), "REST": ("kaiming",), "PAPER": ("paper",)}
METHODS |= {"OWN": ("balanced",), "LONG": ("lora",), "AFTER": ("lora", "orthogonal")}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The folder of a whole run that was broken off once, and the rows as they were at the break."""
    out = tmp_path_factory.mktemp("paper") / "results"
    with pytest.MonkeyPatch.context() as patch:
        for name, methods in METHODS.items():
            patch.setattr(jobs, name, methods)
        patch.setattr(scale, "DEMO", TOY)
        patch.setattr(data, "COUNTS", {"creatures": 10, "garments": 4, "flat lays": 4, "plain": 6})
        run.main(["--out", str(out), "--rows", "frontier"])
        before = {path.name: path.stat().st_mtime_ns for path in out.glob("fit-*.json")}
        run.main(["--out", str(out)])
        yield out, before


@pytest.mark.slow
def test_every_kind_of_row_finishes_and_a_run_goes_on_without_repeating_one(finished: Any) -> None:
    out, before = finished
    assert len(before) == 2 * 2  # methods, with and without preservation
    assert {name: (out / name).stat().st_mtime_ns for name in before} == before
    planned = [job for part in jobs.plan(TOY, Store(out)).values() for job in part()]
    assert {job.kind for job in planned} == {"fit", "after", "long", "table1"}
    assert all(Store(out).result(job) for job in planned)
    assert not [job.name for job in planned if "failed" in json.dumps(Store(out).result(job))]


def test_learning_lowers_the_held_out_loss_and_preservation_forgets_less(finished: Any) -> None:
    store = Store(finished[0])
    plain, kept = (store.result(Job("fit", "lora", 0, 3e-3, how)) for how in (jobs.PLAIN, jobs.PRESERVED))
    assert plain["points"][0]["style"] > plain["points"][1]["style"]
    assert kept["points"][1]["forgotten"] < plain["points"][1]["forgotten"]


def test_a_strength_of_the_finished_adapter_lies_between_the_base_and_all_of_it(finished: Any) -> None:
    last, weaker = Store(finished[0]).result(Job("fit", "lora", 0, 3e-3))["points"][1:]
    assert weaker["strength"] == 0.7
    assert 0 < weaker["forgotten"] < last["forgotten"]


def test_the_tables_numbers_come_from_the_files(finished: Any, capsys: pytest.CaptureFixture[str]) -> None:
    out, _ = finished
    store = Store(out)
    job = Job("table1", "paper", 0, TOY.garment_rate, "garments")
    row, base = store.result(job), store.result(Job("table1", "base", how="garments"))
    path = out / f"{job.name}.json"
    kept = path.read_text()
    path.write_text(json.dumps(row | {"fid": 0.125 * base["fid"], "clip": 31.25}))
    run.main(["--out", str(out), "--table"])
    path.write_text(kept)
    text = capsys.readouterr().out
    assert "| 0.125 | 31.2 |" in text
    assert (out / "tables.md").read_text().strip() in text
    for heading in ("Table 1", "After the last step", "equal fit", "Learning rates", "After training", "Very long"):
        assert heading in text
    assert {path.name for path in out.glob("*.png")} == {"frontier.png", "rates.png", "long.png"}


def test_a_folder_with_rows_of_another_size_is_refused(finished: Any) -> None:
    out: Path = finished[0]
    with pytest.raises(SystemExit, match="another size"):
        Store(out).opened(scale.QUICK)


def test_the_specialised_base_leaves_the_base_itself_as_it_was(finished: Any) -> None:
    """The base's own row, painted first, comes out the same after everything else."""
    out: Path = finished[0]
    job, first = Job("table1", "base", how="garments"), out / "table1-base-garments-0-0.json"
    before = json.loads(first.read_text())
    first.unlink()
    run.main(["--out", str(out), "--rows", "table1"])
    assert Store(out).result(job)["fid"] == pytest.approx(before["fid"], rel=1e-6)


def test_a_row_that_is_run_alone_comes_out_as_among_the_others(finished: Any) -> None:
    """Forgetting is the distance to the base, whatever is attached when it is first asked for."""
    out: Path = finished[0]
    row = next(path for path in sorted(out.glob("long-*.json")) if "base" not in path.name)
    before = json.loads(row.read_text())["points"]
    row.unlink()
    run.main(["--out", str(out), "--rows", "long"])
    after = json.loads(row.read_text())["points"]
    assert before[0]["forgotten"] > 0
    assert [p["forgotten"] for p in after] == pytest.approx([p["forgotten"] for p in before], rel=1e-4)
