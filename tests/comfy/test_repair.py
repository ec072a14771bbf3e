"""Repair LoRA: the style stays on the trigger word and the base comes back without it, with no training picture."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from demo.world import SceneSpec, caption, held_out_triples, specs_over, trained_triples

pytestmark = pytest.mark.comfy

CAPTIONS = [caption(spec) for spec in specs_over(trained_triples(), 40, seed=5)]


@pytest.fixture(scope="module")
def repair(run_node: Callable[..., Any], demo: Any) -> Callable[..., Any]:
    """Run Repair LoRA on the demo model; any input can be set."""

    def run(**changed: Any) -> tuple[Any, ...]:
        inputs = {
            "trigger": "zorvex", "captions": "\n".join(CAPTIONS), "resolution": 128, "steps": 60,
            "learning_rate": 3e-3, "preserve": 1.0, "batch": 2, "seed": 3,
        }  # fmt: skip
        return run_node("TriLoRARepair", **{**demo._asdict(), **inputs, **changed})

    return run


def test_an_empty_trigger_is_refused_in_words(repair: Callable[..., Any], adapter: Any) -> None:
    with pytest.raises(Exception, match="trigger word: with it the style stays.* Its file names “zorvex”"):
        repair(trilora=adapter, trigger=" ")


def test_one_caption_is_too_few(repair: Callable[..., Any], adapter: Any) -> None:
    with pytest.raises(Exception, match="1 captions are too few for a repair. Type 30 or more"):
        repair(trilora=adapter, captions=f"{CAPTIONS[0]}\n\nzorvex, {CAPTIONS[0]}\n")


def test_latents_with_conditioning_are_refused_in_words(
    repair: Callable[..., Any], run_node: Callable[..., Any], adapter: Any, demo: Any
) -> None:
    conditioning = demo.clip.encode_from_tokens_scheduled(demo.clip.tokenize("a house"))
    (encoded,) = run_node(
        "TriLoRADataset", folder=["unused"], trigger=["zorvex"], resolution=[128], bucket_step=[0],
        latents=[{"samples": torch.randn(2, 4, 16, 16)}], conditioning=[conditioning],
    )  # fmt: skip
    with pytest.raises(Exception, match="came as latents.*Connect one of pictures with captions, or none"):
        repair(trilora=adapter, dataset=encoded)


@pytest.mark.slow
def test_a_short_repair_removes_most_of_the_forgetting_and_keeps_most_of_the_style(
    repair: Callable[..., Any],
    train: Callable[..., Any],
    run_node: Callable[..., Any],
    demo: Any,
    held_out_loss: Callable[[Any], float],
    drift: Callable[..., float],
) -> None:
    """On captions that no repair saw, of an adapter that was trained until the base was gone; and the MODEL stays."""
    method = {"method": "lora", "initialisation": "balanced"}
    forgetful = train(method=method, steps=60, batch=4, rank=8, learning_rate=5e-3).trilora
    weights = {name: tensor.clone() for name, tensor in demo.model.model.state_dict().items()}
    repaired, pictures, _, summary = repair(trilora=forgetful, captions="\n".join(CAPTIONS[:12]), steps=60)
    assert all(torch.equal(weights[name], tensor) for name, tensor in demo.model.model.state_dict().items())
    assert not any(module._forward_hooks for module in demo.model.model.modules())
    assert "only 12 captions" in summary
    assert "2 captions that took no part" in summary
    assert pictures.shape[2] == 5 * 160  # base, before and after without the trigger word, before and after with it

    unseen = [caption(SceneSpec(*triple, scene="snow")) for triple in held_out_triples()[1::6]]
    models = [run_node("TriLoRAApply", model=demo.model, trilora=t, strength=1.0)[0] for t in (forgetful, repaired)]
    before, after = (sum(drift(model, words) for words in unseen) for model in models)
    bare, learned, kept = (held_out_loss(model) for model in (demo.model, *models))
    assert after < 0.45 * before, (before, after)
    assert bare - kept > 0.5 * (bare - learned), (bare, learned, kept)
    assert repaired.layers.keys() == forgetful.layers.keys()
