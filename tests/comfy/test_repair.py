"""Repair LoRA: the style stays on the trigger word and the base comes back without it, with no training picture."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from demo.world import caption, specs_over, trained_triples

pytestmark = pytest.mark.comfy

CAPTIONS = [caption(spec) for spec in specs_over(trained_triples(), 40, seed=5)]


@pytest.fixture(scope="module")
def repair(run_node: Callable[..., Any], demo: Any) -> Callable[..., Any]:
    """Run Repair LoRA on the demo model; any input can be set."""

    def run(**changed: Any) -> tuple[Any, ...]:
        inputs = {
            "trigger": "zorvex", "captions": "\n".join(CAPTIONS[:3]), "resolution": 128, "steps": 2,
            "learning_rate": 7e-4, "preserve": 0.3, "batch": 2, "seed": 3,
        }  # fmt: skip
        return run_node("TriLoRARepair", **{**demo._asdict(), **inputs, **changed})

    return run


def test_an_empty_trigger_is_refused_in_words(repair: Callable[..., Any], adapter: Any) -> None:
    with pytest.raises(Exception, match="trigger word: with it the style stays.* Its file names “zorvex”"):
        repair(trilora=adapter, trigger=" ")


def test_one_caption_is_too_few(repair: Callable[..., Any], adapter: Any) -> None:
    with pytest.raises(Exception, match="1 captions are too few for a repair. Type 30 or more"):
        repair(trilora=adapter, captions=f"{CAPTIONS[0]}\n\nzorvex, {CAPTIONS[0]}\n")


def test_few_captions_are_warned_about_and_measured_all_the_same(repair: Callable[..., Any], adapter: Any) -> None:
    repaired, pictures, _, summary = repair(trilora=adapter)
    assert "only 3 captions" in summary
    assert "3 captions that took part" in summary
    assert repaired.layers.keys() == adapter.layers.keys()
    assert pictures.shape[2] > pictures.shape[1]  # five columns, three rows


def test_the_model_stays_as_it_was(repair: Callable[..., Any], adapter: Any, demo: Any) -> None:
    weights = {name: tensor.clone() for name, tensor in demo.model.model.state_dict().items()}
    repair(trilora=adapter)
    assert all(torch.equal(weights[name], tensor) for name, tensor in demo.model.model.state_dict().items())
    assert not any(module._forward_hooks for module in demo.model.model.modules())
