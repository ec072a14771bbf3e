"""A run: what lasts through a break, what is kept, when it ends."""

import contextlib
import errno
import math
import multiprocessing
import random
import signal
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from strategies import Toy, same_bits
from strategies import make as make_factors
from unit.toy_run import EVERYTHING, make, pictures

from trilora import checkpoint, disk
from trilora.errors import FileError, TrainingError
from trilora.factors import Factors, canonical, merged
from trilora.files import Adapter
from trilora.objective import score
from trilora.report import overfitting
from trilora.run import DONE, LEVELS, Watch, difference, fixed_noise, folder_of, identity, moved
from trilora.session import named

RESTLESS = {"steps": 60, "learning_rate": 0.2, "schedule": "constant", "warmup": 0, "average": 0.0}
RESTLESS |= {"rank_dropout": 0.0, "layer_dropout": 0.0}
OPTIMIZERS = ("adamw", "adafactor", "prodigy", "schedule-free")


def all_bits(run) -> dict[str, torch.Tensor]:
    """Every number that a run ends with: parameters, average, best, and what is handed on."""
    handed = {f"{path}.{i}": t for path, each in run.result().items() for i, t in enumerate(each)}
    best = {f"best.{name}": t for name, t in run.best.parameters.items()}
    parameters = {name: p.detach().clone() for name, p in run.training.parameters.items()}
    average = {f"average.{name}": t for name, t in run.training.average.items()}
    return dict(sorted((parameters | average | best | handed).items()))


def rates(optimizer: str) -> dict[str, float]:
    return {"learning_rate": 1.0, "shrink": 0.0} if optimizer == "prodigy" else {}


def whole(folder: Path, **changed):
    """A run from its beginning to its end."""
    run, context = make(folder, **changed)
    with contextlib.closing(context.gen):
        list(run)
        return run, all_bits(run)


def broken_off(folder: Path, after: int, **changed) -> None:
    run, context = make(folder, **changed)
    with contextlib.closing(context.gen):
        for step in run:
            if step.number == after:
                break


def test_a_run_that_breaks_off_within_a_score_makes_it_up_and_ends_with_the_same_bits(tmp_path):
    uninterrupted, want = whole(tmp_path / "whole", steps=10)
    run, context = make(tmp_path / "broken", steps=10)
    denoised = run.training.denoiser.denoised

    def cancel(*args):
        if run.training.number == 8:
            raise KeyboardInterrupt
        return denoised(*args)

    run.training.denoiser.denoised = cancel
    with contextlib.closing(context.gen), pytest.raises(KeyboardInterrupt):
        list(run)
    run.save()
    resumed, got = whole(tmp_path / "broken", steps=10)
    assert resumed.began == 8
    assert resumed.history.held_out == uninterrupted.history.held_out
    assert same_bits(got, want)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("after", [1, 7, 23])
def test_a_run_that_breaks_off_goes_on_to_the_same_bits(tmp_path, optimizer, after):
    changed = {"optimizer": optimizer, **rates(optimizer)}
    uninterrupted, want = whole(tmp_path / "whole", **changed)
    broken_off(tmp_path / "broken", after, **changed)
    run, context = make(tmp_path / "broken", **changed)
    with contextlib.closing(context.gen):
        assert run.began == after // 3 * 3
        list(run)
        assert same_bits(all_bits(run), want)
    assert run.history.loss == uninterrupted.history.loss
    assert run.history.held_out == uninterrupted.history.held_out
    assert len(run.history.loss) == 24


@pytest.mark.parametrize("where", ["prepare", "retract"])
def test_a_run_that_breaks_off_amid_an_update_goes_on_from_the_state_before_it(tmp_path, where):
    """As Ctrl-C may land, or the memory end: factors are then of no step at all."""

    def stopped():
        raise KeyboardInterrupt

    _, want = whole(tmp_path / "whole", initialisation="orthogonal")
    run, context = make(tmp_path / "broken", initialisation="orthogonal")
    with contextlib.closing(context.gen):
        for step in run:
            if step.number == 7:
                break
        setattr(run.training.manifold, where, stopped)
        with pytest.raises(KeyboardInterrupt):
            run.training.step()
        run.save()
    again, context = make(tmp_path / "broken", initialisation="orthogonal")
    with contextlib.closing(context.gen):
        list(again)
        assert same_bits(all_bits(again), want)


def work(folder: Path, delay: float) -> None:
    """A run in a process of its own."""
    run, _context = make(folder)
    for _ in run:
        time.sleep(delay)


def process(folder: Path, delay: float = 0.0):
    made = multiprocessing.get_context("fork").Process(target=work, args=(folder, delay))
    made.start()
    return made


def test_a_run_killed_at_ten_moments_ends_with_the_bits_of_one_that_was_not(tmp_path):
    """kill -9 lands anywhere: in a step, in a score, while a state is being written."""
    moments = random.Random(7)  # noqa: S311
    for _ in range(10):
        running = process(tmp_path / "killed", delay=0.05)
        time.sleep(moments.uniform(0.05, 0.4))
        running.kill()
        running.join()
        assert running.exitcode == -signal.SIGKILL
    for name in ("killed", "whole"):
        last = process(tmp_path / name)
        last.join()
        assert last.exitcode == 0
    finals = [checkpoint.latest(tmp_path / name, 24) for name in ("whole", "killed")]
    assert [path.name for path in finals] == [checkpoint.NAME.format(24)] * 2
    (first, said), (second, also_said) = (checkpoint._read(path) for path in finals)
    assert same_bits(first, second)
    assert [said[key] for key in ("step", "best")] == [also_said[key] for key in ("step", "best")]
    assert said["history"]["loss"] == also_said["history"]["loss"]


def test_a_damaged_state_is_passed_over_for_the_one_before(tmp_path):
    broken_off(tmp_path, 7)
    last = checkpoint.latest(tmp_path, 24)
    assert last.name == checkpoint.NAME.format(6)
    last.write_bytes(last.read_bytes()[: last.stat().st_size // 2])
    assert checkpoint.latest(tmp_path, 24).name == checkpoint.NAME.format(3)


def test_states_are_few_and_one_is_left_at_the_end(tmp_path):
    broken_off(tmp_path, 13)
    assert sorted(p.name for p in tmp_path.glob("step-*")) == [checkpoint.NAME.format(n) for n in (9, 12)]
    whole(tmp_path)
    assert [p.name for p in tmp_path.glob("step-*")] == [checkpoint.NAME.format(24)]
    assert not list(tmp_path.glob(".*"))


def test_a_finished_run_is_not_made_again(tmp_path):
    _, want = whole(tmp_path)
    run, context = make(tmp_path)
    with contextlib.closing(context.gen):
        assert list(run) == []
        assert same_bits(all_bits(run), want)


def test_processes_of_a_team_go_by_one_score(tmp_path):
    """Else patience could end one of them, where devices round apart, and leave the others waiting."""
    run, context = make(tmp_path, watch=Watch(score_every=4, checkpoint_every=0))
    own = score(run.training.denoiser, run.held_out, fixed_noise(run.held_out, run.training.settings.seed), LEVELS)

    def add(tensors):
        for tensor in tensors:
            if tensor.shape == (1,) and tensor.dtype == torch.float64:
                tensor += 5  # the other's score

    run.training.team = SimpleNamespace(index=0, count=2, add=add)
    next(iter(run))
    context.__exit__(None, None, None)
    assert run.history.held_out[0] == pytest.approx((own + 5) / 2)


def test_a_later_process_of_a_team_leaves_the_mark_of_a_finished_run(tmp_path):
    """The first one has set it by then, and does not set it again."""
    whole(tmp_path)
    run, context = make(tmp_path)
    run.training.team = SimpleNamespace(index=1, count=2)
    with contextlib.closing(context.gen):
        assert list(run) == []
    assert (tmp_path / DONE).exists()


def test_of_finished_runs_the_last_few_states_are_kept_and_of_unfinished_ones_every_one(tmp_path):
    def states() -> list[str]:
        return sorted(path.parent.name for path in tmp_path.glob("*/step-*"))

    short = {"steps": 4, "schedule": "constant"}
    broken_off(tmp_path / "broken", 3, **short)
    whole(tmp_path / "0", **short)
    (tmp_path / "0" / "preview-0000000.png").touch()
    broken_off(tmp_path / "0", 6, **short | {"steps": 7})  # goes on: not finished any more
    for name in ("1", "2", "3", "4", "5", "1", "6"):  # one is asked for again
        whole(tmp_path / name, **short)
    assert states() == ["0", "0", "1", "3", "4", "5", "6", "broken"]
    whole(tmp_path / "0", **short | {"steps": 7})
    for name in "abcde":
        whole(tmp_path / name, **short)
    assert states() == ["a", "b", "broken", "c", "d", "e"]
    assert (tmp_path / "0" / "preview-0000000.png").exists()


def test_more_steps_go_on_where_only_their_number_changed(tmp_path):
    plain = {"schedule": "constant", "warmup": 0, "shrink": 0.0}
    _, want = whole(tmp_path / "long", steps=30, **plain)
    run, _ = whole(tmp_path / "short", steps=24, **plain)
    assert run.training.settings.course() == make(tmp_path, steps=30, **plain)[0].training.settings.course()
    longer, context = make(tmp_path / "short", steps=30, **plain)
    with contextlib.closing(context.gen):
        assert longer.began == 24
        list(longer)
        got = all_bits(longer)
    assert {k: v for k, v in got.items() if not k.startswith("best")}.keys() == {
        k for k in want if not k.startswith("best")
    }
    assert all(torch.equal(got[name], want[name]) for name in longer.training.parameters)
    assert make(tmp_path, steps=24)[0].training.settings.course()["steps"] == 24  # a schedule counts them


@pytest.mark.parametrize("shorter", [{"steps": 12}, {"watch": Watch(checkpoint_every=3, checkpoints=1, resume=False)}])
def test_a_state_just_written_outlasts_the_states_of_later_steps(tmp_path, shorter):
    """A run of more steps, or one that was not to be gone on with, has left them."""
    changed = {"schedule": "constant", "shrink": 0.0, "watch": Watch(checkpoint_every=3, checkpoints=1)}
    whole(tmp_path, **changed)
    broken_off(tmp_path, 7, **changed | shorter)
    run, context = make(tmp_path, **changed | {"steps": 12})
    with contextlib.closing(context.gen):
        assert run.began == 6
        list(run)
    again, context = make(tmp_path, **changed | {"steps": 12})
    with contextlib.closing(context.gen):
        assert again.began == 12
    assert checkpoint.latest(tmp_path, 24).name == checkpoint.NAME.format(24)


def test_resume_can_be_declined(tmp_path):
    broken_off(tmp_path, 7)
    run, context = make(tmp_path, watch=Watch(resume=False))
    with contextlib.closing(context.gen):
        assert run.began == 0


def test_a_state_of_other_layers_is_refused(tmp_path):
    broken_off(tmp_path, 3, held=0)
    with pytest.raises(FileError, match="state of other layers"):
        make(tmp_path, method="lora")


def test_a_full_disk_costs_the_state_and_not_the_run(tmp_path, monkeypatch, caplog):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    _, want = whole(tmp_path / "room")
    monkeypatch.setattr(disk.os, "fsync", full)
    _, got = whole(tmp_path / "full")
    assert same_bits(got, want)
    assert "state was not saved" in caplog.text
    assert "No space left" in caplog.text
    assert not list((tmp_path / "full").iterdir())


def test_the_best_factors_on_the_held_out_pictures_are_handed_on(tmp_path):
    """At a rate too high the scores go up and down. The result scores as well as the best did."""
    run, _ = whole(tmp_path, **RESTLESS)
    scores = {step: value for step, value in run.history.held_out.items() if step}
    assert run.best.step == min(scores, key=scores.get)
    assert 0 < run.best.step < 60
    assert run.step == run.best.step
    last = run.training.parameters
    assert any(not torch.equal(last[name], run.best.parameters[name]) for name in last)
    run.training.put(run.best.parameters)
    held = [example for (example,) in pictures(2, 200)]
    toy = run.training.denoiser
    with contextlib.closing(make_attached(toy, run)):
        again = score(toy, held, fixed_noise(held, 0), LEVELS)
    assert again == pytest.approx(scores[run.best.step], rel=1e-5)


class Overflowing(Toy):
    """Its estimate is no number in the second score of a run, as float16 may have it."""

    calls = 0

    def denoised(self, noisy, levels, conditions):
        result = super().denoised(noisy, levels, conditions)
        if torch.is_grad_enabled():
            return result
        self.calls += 1
        return result * (math.nan if len(LEVELS) < self.calls / 2 <= 2 * len(LEVELS) else 1)


def test_a_score_that_is_no_number_hides_no_better_one(tmp_path):
    run, _ = whole(tmp_path, toy=Overflowing(), preserve=0.0, watch=Watch(score_every=4, patience=6))
    assert math.isnan(run.history.held_out[4])
    scores = {step: value for step, value in run.history.held_out.items() if step not in (0, 4)}
    assert run.best.step == min(scores, key=scores.get)
    assert f"(step {run.best.step})" in overfitting(run.history)


def make_attached(toy, run):
    from trilora.attach import attached

    context = attached(toy.net, run.training.layers)
    context.__enter__()
    return context.gen


def test_the_last_factors_are_handed_on_where_that_is_asked_for(tmp_path):
    watch = Watch(score_every=4, keep_best=False)
    last, _ = whole(tmp_path, watch=watch, **RESTLESS)
    best, _ = whole(tmp_path / "best", **RESTLESS)
    assert last.step == 60 > best.step
    assert any(not torch.equal(last.result()[path].sigma, best.result()[path].sigma) for path in last.result())


def test_patience_ends_a_run_that_no_longer_gets_better(tmp_path):
    watch = Watch(score_every=2, patience=3)
    run, _ = whole(tmp_path, watch=watch, **(RESTLESS | {"steps": 400}))
    assert run.training.number < 400
    assert run.training.number == run.best.step + 6
    assert "no better score" in run.stopping


def test_a_run_that_patience_ended_gives_the_same_bits_when_it_is_asked_for_again(tmp_path):
    changed = {"watch": Watch(score_every=2, patience=3), **RESTLESS, "steps": 400}
    run, want = whole(tmp_path, **changed)
    again, context = make(tmp_path, **changed)
    with contextlib.closing(context.gen):
        assert again.began == run.training.number
        assert list(again) == []
        assert same_bits(all_bits(again), want)
    assert again.stopping == run.stopping
    longer, _ = whole(tmp_path, **changed | {"watch": Watch(score_every=2, patience=5)})
    assert longer.training.number > run.training.number


def test_stop_ends_after_the_present_step_and_keeps_the_state(tmp_path):
    run, context = make(tmp_path)
    with contextlib.closing(context.gen):
        for step in run:
            if step.number == 5:
                run.stop()
    assert run.training.number == 5
    assert checkpoint.latest(tmp_path, 24).name == checkpoint.NAME.format(5)
    assert 5 in run.history.held_out


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_watching_changes_no_factor(tmp_path, optimizer):
    changed = {"optimizer": optimizer, **rates(optimizer)}
    _, watched = whole(tmp_path / "a", watch=Watch(score_every=1, checkpoint_every=1), **changed)
    unwatched, _ = whole(tmp_path / "b", watch=Watch(checkpoint_every=0), held=0, **changed)
    assert all(torch.equal(p, watched[name]) for name, p in unwatched.training.parameters.items())


def test_what_a_run_is_called_changes_with_its_settings_and_data(tmp_path):
    course = make(tmp_path)[0].training.settings.course()
    assert identity(course, "data") == identity(dict(reversed(course.items())), "data")
    assert identity(course, "data") != identity(course, "other data")
    assert identity(course | {"rank": 5}, "data") != identity(course, "data")
    assert folder_of(tmp_path, "a/b: c", "123").parent == tmp_path


def test_an_adapter_to_start_from_is_told_from_its_opposite():
    """Which a merge at weight -1 makes: its numbers are those of the first but for their signs."""
    one, other = (merged([canonical(make_factors(8, 6, 3))], [weight]) for weight in (1.0, -1.0))
    assert named(Adapter({"a": one})) == named(Adapter({"a": Factors(*(tensor.clone() for tensor in one))}))
    assert named(Adapter({"a": one})) != named(Adapter({"a": other}))
    assert named(Adapter({"a": one})) != named(Adapter({"b": one}))
    assert named(None) == ""


def test_a_new_run_says_which_settings_changed_since_the_last(tmp_path):
    broken_off(tmp_path / "old", 7)
    card = {"settings": EVERYTHING | {"rank": 8}, "data": "toy"}
    assert "rank 4 -> 8" in difference(tmp_path, tmp_path / "new", card)
    assert difference(tmp_path, tmp_path / "new", {**card, "data": "other"}) == ""
    assert difference(tmp_path, tmp_path / "old", card) == ""


def test_forgetting_is_nothing_at_the_start_and_grows_with_training(tmp_path):
    run, context = make(tmp_path, held=0, preserve=0.0)
    with contextlib.closing(context.gen):
        looked_at = [example for (example,) in pictures(3)]
        assert moved(run.training.denoiser, run.training.switch, looked_at, 0) == (0.0, 0.0)
        list(run)
        with_trigger, without = moved(run.training.denoiser, run.training.switch, looked_at, 0)
    assert with_trigger > 0
    assert without > 0


class Breaking(Toy):
    """Its prediction is no number from a step on."""

    def __init__(self, calls: int) -> None:
        super().__init__()
        self.left = calls

    def denoised(self, noisy, levels, conditions):
        self.left -= torch.is_grad_enabled()
        result = super().denoised(noisy, levels, conditions)
        return result * (math.nan if self.left < 0 else 1)


def test_a_loss_that_is_no_number_leaves_the_last_good_state(tmp_path):
    options = {"preserve": 0.0, "accumulate": 1, "rank_dropout": 0.0, "layer_dropout": 0.0}
    run, context = make(tmp_path, toy=Breaking(5), held=0, **options)
    with contextlib.closing(context.gen):
        with pytest.raises(TrainingError, match="no longer a number at step 6"):
            list(run)
        assert run.training.number == 5
        run.save()
    assert checkpoint.latest(tmp_path, 24).name == checkpoint.NAME.format(5)
    assert all(bool(t.isfinite().all()) for t in run.training.parameters.values())


def test_the_layer_where_numbers_end_is_named(tmp_path):
    run, context = make(tmp_path, held=0, preserve=0.0)
    with contextlib.closing(context.gen):
        with torch.no_grad():
            run.training.layers["last"].u[0, 0] = math.inf
        with pytest.raises(TrainingError, match=r"at step 1, first at the layer last "):
            next(iter(run))


def test_an_average_is_what_is_scored_and_handed_on(tmp_path):
    run, _ = whole(tmp_path, watch=Watch(keep_best=False), average=0.9)
    raw = {name: p.detach().clone() for name, p in run.training.parameters.items()}
    assert any(not torch.equal(raw[name], run.training.average[name]) for name in raw)
    with run.training.averaged():
        assert all(torch.equal(p, run.training.average[name]) for name, p in run.training.parameters.items())
    assert all(torch.equal(p, raw[name]) for name, p in run.training.parameters.items())
