"""Optimizers, their groups and schedules."""

import importlib

import pytest
import torch
from strategies import Toy, randn
from torch import nn
from unit.toy_run import make

from trilora import optimizers
from trilora.errors import TrainingError
from trilora.layers import create
from trilora.settings import Settings
from trilora.training import create_layers


def layers(**settings) -> dict[str, nn.Module]:
    return create_layers({"a": nn.Linear(8, 8), "b": nn.Linear(8, 8)}, Settings(rank=4, **settings))


@pytest.mark.parametrize("optimizer", ["adamw", "adafactor", "prodigy", "schedule-free"])
def test_every_optimizer_lowers_the_loss(tmp_path, optimizer):
    rate = {"prodigy": 1.0, "adafactor": 3e-2}.get(optimizer, 1e-2)
    steps = 400 if optimizer == "prodigy" else 60  # it begins with a tiny rate and has to find its own
    plain = {"rank_dropout": 0.0, "layer_dropout": 0.0, "average": 0.0, "preserve": 0.0, "shrink": 0.0}
    run, context = make(
        tmp_path, optimizer=optimizer, learning_rate=rate, steps=steps, schedule="constant", warmup=0, **plain
    )
    list(run)
    context.__exit__(None, None, None)
    assert run.history.held_out[steps] < 0.93 * run.history.held_out[0]


@pytest.mark.parametrize(
    ("optimizer", "package"),
    [("adamw 8-bit", "bitsandbytes"), ("prodigy", "prodigyopt"), ("schedule-free", "schedulefree")],
)
def test_an_optimizer_that_is_not_installed_says_what_to_install(monkeypatch, optimizer, package):
    def absent(name):
        raise ImportError(name)

    monkeypatch.setattr(importlib, "import_module", absent)
    with pytest.raises(TrainingError, match=rf"{optimizer}, the Python package {package} .* pip install {package}"):
        optimizers.create(layers(), Settings(rank=4, optimizer=optimizer))


def test_sigma_has_a_learning_rate_of_its_own():
    settings = Settings(rank=4, learning_rate=1e-3, sigma_rate=5.0)
    made, _ = optimizers.create(layers(), settings)
    by_rate = {group["lr"]: {p.ndim for p in group["params"]} for group in made.param_groups}
    assert by_rate == {5e-3: {1}, 1e-3: {2}}


def test_orthonormal_factors_do_not_decay():
    groups = optimizers.groups(layers(initialisation="orthogonal"), Settings(initialisation="orthogonal", shrink=0.5))
    assert {group["params"][0].ndim: group["weight_decay"] > 0 for group in groups} == {1: True, 2: False}


@pytest.mark.parametrize("schedule", ["constant", "cosine", "linear"])
@pytest.mark.parametrize("warmup", [0, 10])
def test_schedules_warm_up_and_come_down(schedule, warmup):
    factor = optimizers.multiplier(Settings(steps=100, schedule=schedule, warmup=warmup))
    values = [factor(step) for step in range(100)]
    assert max(values) == 1.0
    assert all(value > 0 for value in values)
    if warmup:
        assert values[:warmup] == pytest.approx([(i + 1) / warmup for i in range(warmup)])
    if schedule == "constant":
        assert set(values[warmup:]) == {1.0}
    else:
        assert values[-1] < 0.02
        assert values[warmup:] == sorted(values[warmup:], reverse=True)
        middle = values[warmup + (100 - warmup) // 2]
        assert middle == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize("schedule", ["constant", "cosine", "linear"])
@pytest.mark.parametrize("shrink", [0.1, 0.9])
def test_the_decay_takes_its_share_whatever_the_schedule(schedule, shrink):
    settings = Settings(rank=4, steps=50, schedule=schedule, warmup=5, shrink=shrink, learning_rate=1e-2)
    layer = {"a": create("lora", randn(0, 8, 8), 4, 1.0, torch.Generator())}
    with torch.no_grad():
        layer["a"].up.fill_(1.0)
    made, plan = optimizers.create(layer, settings)
    for _ in range(50):
        for parameter in layer["a"].parameters():
            parameter.grad = torch.zeros_like(parameter)
        made.step()
        plan.step()
    torch.testing.assert_close(layer["a"].up.detach(), torch.full((8, 4), 1 - shrink), rtol=1e-4, atol=0)


def test_prodigy_takes_one_rate_for_all():
    with pytest.raises(TrainingError, match="sigma_rate is 2.0, but has to be 1 for prodigy"):
        Settings(optimizer="prodigy", sigma_rate=2.0)


def test_prodigy_is_given_no_decay_that_would_come_to_nothing():
    """The decay is made for the rates of the schedule; prodigy's own are a thousandth of them, so it took 0.03 %."""
    with pytest.raises(TrainingError, match="shrink is 0.5, but has to be 0 for prodigy"):
        Settings(optimizer="prodigy", learning_rate=1.0, shrink=0.5)


def test_a_run_in_float16_scales_its_gradients(tmp_path):
    run, context = make(tmp_path, toy=Toy(), precision="float16", held=0)
    list(run)
    context.__exit__(None, None, None)
    assert run.training.scaler.is_enabled()
    assert all(bool(p.isfinite().all()) for p in run.training.parameters.values())
