"""TriLoRA Spectrum on adapters and on MODELs."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from lora_files import CONVOLUTIONS, write

pytestmark = pytest.mark.comfy


def numbers(table: str) -> list[list[str]]:
    """σ1, effective rank and values for 90 % of each layer: they do not depend on how a layer is called."""
    return sorted(line.rsplit(maxsplit=5)[1:] for line in table.splitlines() if line.startswith("  "))


@pytest.fixture(scope="module")
def seen(run_node: Callable[..., Any], adapter: Any) -> tuple[torch.Tensor, str, list[int]]:
    return run_node("TriLoRASpectrum", trilora=adapter)


def test_picture_table_and_histogram_are_those_of_the_adapter(
    seen: tuple[torch.Tensor, str, list[int]], adapter: Any
) -> None:
    picture, table, histogram = seen
    assert picture.shape[0] == 1
    assert picture.std() > 0.05
    assert len(numbers(table)) == len(adapter.layers)
    assert table.startswith(f"{len(adapter.layers)} layers, rank {adapter.rank}.")
    assert len(histogram) == 256
    assert histogram[0] == 1_000_000
    assert histogram == sorted(histogram, reverse=True)


def test_a_model_shows_what_its_adapter_shows(
    run_node: Callable[..., Any], seen: tuple[torch.Tensor, str, list[int]], adapter: Any, demo: Any
) -> None:
    (model,) = run_node("TriLoRAApply", model=demo.model, trilora=adapter, strength=1.0)
    _, table, histogram = run_node("TriLoRASpectrum", model=model)
    assert numbers(table) == numbers(seen[1])
    assert histogram == seen[2]


def test_a_lora_of_cores_loader_is_seen_and_equal_ones_add_up(
    run_node: Callable[..., Any], core_nodes: dict[str, Any], adapter: Any, demo: Any, comfy_base: Path
) -> None:
    (file,) = run_node("TriLoRASave", trilora=adapter, filename="tests/spectrum", precision="float32")
    (once,) = core_nodes["LoraLoaderModelOnly"]().load_lora_model_only(demo.model, file, 0.5)
    (twice,) = run_node("TriLoRAApply", model=once, trilora=adapter, strength=-1.5)
    (comfy_base / "models" / "loras" / file).unlink()
    _, whole, _ = run_node("TriLoRASpectrum", trilora=adapter)
    _, summed, _ = run_node("TriLoRASpectrum", model=twice)  # 0.5 - 1.5 = -1: the same singular values
    assert f"rank {2 * adapter.rank}." in summed.splitlines()[0]

    def largest(text: str) -> list[float]:
        return sorted(float(row[0]) for row in numbers(text))

    assert largest(summed) == pytest.approx(largest(whole), rel=1e-3)


def test_a_convolution_is_one_matrix_whether_a_file_lays_its_kernel_flat_or_not(
    run_node: Callable[..., Any], core_nodes: dict[str, Any], demo: Any, comfy_base: Path
) -> None:
    """Core's trainer writes kernels flat."""
    files = [write(demo.model, layers=CONVOLUTIONS[:1], seed=seed) for seed in (0, 9)]
    file = comfy_base / "models" / "loras" / "convolution.safetensors"
    file.parent.mkdir(exist_ok=True)
    model = demo.model
    for tensors in (files[0].tensors, {key: each.flatten(1) for key, each in files[1].tensors.items()}):
        safetensors.torch.save_file(tensors, file)
        (model,) = core_nodes["LoraLoaderModelOnly"]().load_lora_model_only(model, file.name, 1.0)
    file.unlink()
    _, table, _ = run_node("TriLoRASpectrum", model=model)
    (change,) = (a + b for a, b in zip(*(each.changes.values() for each in files), strict=True))
    assert float(numbers(table)[0][0]) == pytest.approx(float(torch.linalg.svdvals(change.flatten(1))[0]), rel=1e-3)


def test_exactly_one_of_both_inputs_is_asked_for(run_node: Callable[..., Any], adapter: Any, demo: Any) -> None:
    with pytest.raises(Exception, match="neither is connected. Connect exactly one"):
        run_node("TriLoRASpectrum")
    with pytest.raises(Exception, match="both are connected. Connect exactly one"):
        run_node("TriLoRASpectrum", trilora=adapter, model=demo.model)


def test_a_bare_model_is_told_so(run_node: Callable[..., Any], demo: Any) -> None:
    with pytest.raises(Exception, match="no LoRA or TriLoRA is on the model"):
        run_node("TriLoRASpectrum", model=demo.model)
