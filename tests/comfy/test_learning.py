"""What is learned from a shipped style holds for pictures of it that were not trained on."""

from collections.abc import Callable
from typing import Any

import numpy
import pytest
import torch

from demo.draw import draw
from demo.world import SceneSpec, caption, held_out_triples

pytestmark = [pytest.mark.comfy, pytest.mark.slow]


@pytest.fixture(scope="module")
def unseen(run_node: Callable[..., Any]) -> Any:
    """Pictures in the style, of things, colours and places that neither the base nor the style set ever showed."""
    triples = held_out_triples()[::4][:8]
    specs = [SceneSpec(*triple, scene="meadow", seed=i) for i, triple in enumerate(triples)]
    pixels = [torch.from_numpy(numpy.array(draw(spec, "stained_glass"))).float() / 255 for spec in specs]
    (data,) = run_node(
        "TriLoRADataset", folder=["unused"], trigger=["zorvex"], resolution=[128], bucket_step=[0],
        images=[torch.stack(pixels)], captions=[caption(spec) for spec in specs],
    )  # fmt: skip
    return data


@pytest.fixture(scope="module")
def adapted(train: Callable[..., Any], run_node: Callable[..., Any], demo: Any) -> dict[float, Any]:
    """The demo model with an adapter trained without (0.0) and with (0.3) preservation of the base."""
    models = {}
    for preserve in (0.0, 0.3):
        adapter = train(steps=80, batch=4, rank=8, learning_rate=3e-3, preserve=preserve).trilora
        (models[preserve],) = run_node("TriLoRAApply", model=demo.model, trilora=adapter, strength=1.0)
    return models


def test_training_lowers_the_held_out_loss(
    train: Callable[..., Any], demo: Any, unseen: Any, adapted: dict[float, Any]
) -> None:
    """The loss of a first step, before its correction, at the same noise: bare base against adapted model."""

    def held_out_loss(model: Any) -> float:
        first_steps = [train(model=model, dataset=unseen, steps=1, batch=8, seed=s).loss_map["loss"] for s in range(3)]
        return sum(float(losses[0]) for losses in first_steps) / len(first_steps)

    before = held_out_loss(demo.model)
    after = {preserve: held_out_loss(model) for preserve, model in adapted.items()}
    assert max(after.values()) < 0.85 * before, (before, after)


def test_preservation_keeps_prompts_without_the_trigger(demo: Any, dataset: Any, adapted: dict[float, Any]) -> None:
    """On captions of the training set, their trigger word left out."""
    words = [picture.caption for picture in dataset.pictures[:3]]
    drift = {preserve: sum(difference(demo, model, w) for w in words) for preserve, model in adapted.items()}
    assert drift[0.3] < 0.75 * drift[0.0], drift


@torch.inference_mode()
def difference(demo: Any, adapted: Any, words: str) -> float:
    """Mean squared difference of what base and adapted model predict for a prompt, over noise levels."""
    import comfy.model_management as management

    text = demo.clip.encode_from_tokens_scheduled(demo.clip.tokenize(words))[0][0]
    noisy = torch.randn(6, 4, 16, 16, generator=torch.Generator().manual_seed(3))
    times = torch.tensor([50.0, 200.0, 400.0, 600.0, 800.0, 950.0])
    outputs = []
    for model in (demo.model, adapted):
        management.load_models_gpu([model])
        outputs.append(model.model.diffusion_model(noisy, times, context=text.expand(6, -1, -1)).clone())
    management.load_models_gpu([demo.model])
    return float((outputs[0] - outputs[1]).square().mean())
