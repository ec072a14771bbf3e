"""TriLoRA Demo Pictures: pictures that nothing was trained on, and prompts that fit them."""

from collections.abc import Callable

import pytest
import torch

from demo.world import caption, specs_over, trained_triples

pytestmark = pytest.mark.comfy


def made(run_node: Callable, seed: int = 0) -> tuple[torch.Tensor, list[str], list[str]]:
    return run_node("TriLoRADemoPictures", style="stained_glass", trigger="zorvex", count=24, seed=seed)


def test_there_is_a_picture_and_a_prompt_for_each_and_the_trigger_stands_in_front(run_node: Callable) -> None:
    pictures, prompts, with_trigger = made(run_node)
    assert pictures.shape == (24, 128, 128, 3)
    assert 0 <= pictures.min() < pictures.max() <= 1
    assert with_trigger == [f"zorvex, {prompt}" for prompt in prompts]


def test_no_scene_is_one_that_the_demo_was_trained_on(run_node: Callable) -> None:
    trained = {caption(scene) for scene in specs_over(trained_triples(), 720, seed=0)}
    assert len(trained) == 720
    assert not trained & set(made(run_node)[1])


def test_the_seed_decides_the_pictures(run_node: Callable) -> None:
    assert torch.equal(made(run_node)[0], made(run_node)[0])
    assert made(run_node)[1] != made(run_node, seed=1)[1]
