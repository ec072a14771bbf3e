"""What is learned from a shipped style holds for pictures of it that were not trained on."""

from collections.abc import Callable
from typing import Any

import pytest

pytestmark = [pytest.mark.comfy, pytest.mark.slow]


@pytest.fixture(scope="module")
def adapted(train: Callable[..., Any], run_node: Callable[..., Any], demo: Any) -> dict[float, Any]:
    """The demo model with an adapter trained without (0.0) and with (0.3) preservation of the base."""
    models = {}
    for preserve in (0.0, 0.3):
        adapter = train(steps=80, batch=4, rank=8, learning_rate=3e-3, preserve=preserve).trilora
        (models[preserve],) = run_node("TriLoRAApply", model=demo.model, trilora=adapter, strength=1.0)
    return models


def test_training_lowers_the_held_out_loss(
    held_out_loss: Callable[[Any], float], demo: Any, adapted: dict[float, Any]
) -> None:
    before = held_out_loss(demo.model)
    after = {preserve: held_out_loss(model) for preserve, model in adapted.items()}
    assert max(after.values()) < 0.85 * before, (before, after)


def test_preservation_keeps_prompts_without_the_trigger(
    drift: Callable[..., float], dataset: Any, adapted: dict[float, Any]
) -> None:
    """On captions of the training set, their trigger word left out."""
    words = [picture.caption for picture in dataset.pictures[:3]]
    drifts = {preserve: sum(drift(model, w) for w in words) for preserve, model in adapted.items()}
    assert drifts[0.3] < 0.75 * drifts[0.0], drifts
