"""Merge, Extract and Resize, held against the very weights that the real ComfyUI computes."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

pytestmark = pytest.mark.comfy

ALL = {"keep": "all"}


def weights(model: Any) -> dict[str, torch.Tensor]:
    """The weights that the MODEL samples with, patches applied, as ComfyUI calculates them."""
    with torch.inference_mode():
        return {key: model.patch_weight_to_device(key, return_weight=True).clone() for key in model.patches}


def bare(model: Any) -> dict[str, torch.Tensor]:
    return {key: tensor.clone() for key, tensor in model.model.state_dict().items()}


def distance(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    """Largest difference of any entry, relative to the largest entry of its weight."""
    assert a.keys() == b.keys()
    assert a
    return max(float((a[key] - b[key]).abs().max() / b[key].abs().max()) for key in a)


@pytest.fixture(scope="module")
def other(train: Callable[..., Any]) -> Any:
    """A second adapter, of another rank, on other layers too: those of the MLPs as well."""
    return train(steps=8, learning_rate=5e-3, seed=11, rank=6, targets={"targets": "attention + mlp"}).trilora


@pytest.fixture
def on(demo: Any, run_node: Callable[..., Any]) -> Callable[..., Any]:
    """The demo MODEL with adapters on it, one after the other: `on((adapter, strength), ...)`."""

    def put(*pairs: tuple[Any, float]) -> Any:
        model = demo.model
        for adapter, strength in pairs:
            (model,) = run_node("TriLoRAApply", model=model, trilora=adapter, strength=strength)
        return model

    return put


def conv(seed: int, rank: int = 3) -> dict[str, Any]:
    """Layers of an adapter for one 3 x 3 convolution and one 1 x 1 projection of the demo model's UNet."""
    torch.manual_seed(seed)
    return {}


@pytest.mark.parametrize("amounts", [(1.0, 1.0), (0.7, -0.4)])
def test_a_merge_gives_the_weights_of_both_loaded_in_a_row(
    on: Callable[..., Any], adapter: Any, other: Any, run_node: Callable[..., Any], amounts: tuple[float, float]
) -> None:
    text = ", ".join(map(str, amounts))
    merged, _ = run_node(
        "TriLoRAMerge", adapters={"trilora0": adapter, "trilora1": other}, weights=text, keep=ALL
    )  # fmt: skip
    in_a_row = on((adapter, amounts[0]), (other, amounts[1]))
    assert len(merged.layers) == len(other.layers) > len(adapter.layers)
    assert distance(weights(on((merged, 1.0))), weights(in_a_row)) < 1e-6
