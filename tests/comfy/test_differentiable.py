"""While training, ComfyUI's networks compute with what has a backward; afterwards with what they had."""

import importlib
from collections.abc import Callable
from typing import Any

import pytest
import torch

pytestmark = pytest.mark.comfy


@pytest.fixture(scope="module")
def differentiable(pack: Any) -> Callable[[], Any]:
    module = pack["TriLoRATrain"].__module__.rsplit(".", 1)[0] + ".differentiable"
    return importlib.import_module(module).differentiable


def state() -> list[Any]:
    """What may be replaced, as it is now."""
    import comfy.ldm.common_dit
    import comfy.ldm.pixart.blocks
    import comfy.model_management
    import comfy_kitchen

    names = [name for name in dir(comfy_kitchen) if "rope" in name and name.strip("_") == name]
    kernels = [getattr(comfy_kitchen, name) for name in names]
    own = "__iadd__" in vars(torch.Tensor)
    attention = comfy.ldm.pixart.blocks.optimized_attention
    return [comfy.model_management.in_training, comfy.ldm.common_dit.rms_norm, attention, own, *kernels]


def test_afterwards_all_is_as_it_was_even_after_an_error_and_when_nested(differentiable: Callable[[], Any]) -> None:
    before = state()
    within = []

    def fail() -> None:
        with differentiable(), differentiable():
            within.extend(state())
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert all(now != then for now, then in zip(within, before, strict=True))
    assert state() == before


def test_a_sum_that_gradients_follow_leaves_its_operand_and_keeps_its_type(differentiable: Callable[[], Any]) -> None:
    x = torch.ones(3, dtype=torch.bfloat16)
    same, addend = x, torch.full((3,), 0.5, requires_grad=True)
    with differentiable():
        x += addend
    assert (same.tolist(), x.tolist(), x.dtype) == ([1.0] * 3, [1.5] * 3, torch.bfloat16)
    x.sum().backward()
    assert addend.grad.tolist() == [1.0] * 3


@pytest.mark.parametrize("grad", [True, False])
def test_other_sums_stay_in_place(differentiable: Callable[[], Any], grad: bool) -> None:
    x = torch.ones(3)
    same, addend = x, torch.full((3,), 0.5, requires_grad=not grad)
    with differentiable(), torch.set_grad_enabled(grad):
        x += addend
        x += 1
    assert x is same
    assert x.tolist() == [2.5] * 3
