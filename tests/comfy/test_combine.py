"""Merge, Extract and Resize, held against the very weights that the real ComfyUI computes."""

import asyncio
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

pytestmark = pytest.mark.comfy

ALL = {"keep": "all"}
LAYERS = "all linear + convolutions"


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
def other(demo: Any, adapter: Any) -> Any:
    """A second adapter, of another rank, on the layers of the MLPs too."""
    import comfy.lora

    makes = type(next(iter(adapter.layers.values())))
    generator, shapes = torch.Generator().manual_seed(3), bare(demo.model)
    layers = {}
    for name, key in comfy.lora.model_lora_keys_unet(demo.model.model, {}).items():
        if name in adapter.layers or name.startswith(("lora_unet_down", "lora_unet_up")) and "_ff_net_" in name:
            out, inner = shapes[key].shape
            u, vh = (torch.randn(shape, generator=generator) / 10 for shape in ((out, 6), (6, inner)))
            layers[name] = makes(u, torch.rand(6, generator=generator), vh)
    return replace(adapter, layers=layers)


@pytest.fixture(scope="module")
def on(demo: Any, run_node: Callable[..., Any]) -> Callable[..., Any]:
    """The demo MODEL with adapters on it, one after the other: `on((adapter, strength), ...)`."""

    def put(*pairs: tuple[Any, float]) -> Any:
        model = demo.model
        for adapter, strength in pairs:
            (model,) = run_node("TriLoRAApply", model=model, trilora=adapter, strength=strength)
        return model

    return put


@pytest.fixture(scope="module")
def merge(run_node: Callable[..., Any]) -> Callable[..., Any]:
    def run(*adapters: Any, weights: str = "1", keep: dict[str, Any] = ALL, **more: Any) -> Any:
        named = {f"trilora{i}": adapter for i, adapter in enumerate(adapters)}
        return run_node("TriLoRAMerge", adapters=named, weights=weights, keep=keep, **more)

    return run


@pytest.fixture(scope="module")
def renamed(demo: Any) -> Callable[[Any], Any]:
    """The same adapter, its layers named `diffusion_model.<path>`."""
    import comfy.lora

    known = comfy.lora.model_lora_keys_unet(demo.model.model, {})
    return lambda adapter: replace(
        adapter, layers={known[name].removesuffix(".weight"): factors for name, factors in adapter.layers.items()}
    )


@pytest.mark.parametrize("amounts", ["1", "0.7; -0.4"])
def test_a_merge_gives_the_weights_of_both_loaded_in_a_row(
    on: Callable[..., Any], merge: Callable[..., Any], adapter: Any, other: Any, amounts: str
) -> None:
    merged, report = merge(adapter, other, weights=amounts)
    first, second = (1.0, 1.0) if amounts == "1" else (0.7, -0.4)
    in_a_row = on((adapter, first), (other, second))
    assert len(merged.layers) == len(other.layers) > len(adapter.layers)
    assert distance(weights(on((merged, 1.0))), weights(in_a_row)) < 1e-6
    assert "100.00% of the energy kept" in report


def test_with_a_model_other_names_of_the_same_layers_are_known(
    on: Callable[..., Any], merge: Callable[..., Any], renamed: Callable[..., Any], demo: Any, adapter: Any, other: Any
) -> None:
    merged, report = merge(adapter, renamed(other), model=demo.model)
    assert merged.layers.keys() == other.layers.keys()
    assert all(name.startswith("lora_unet_") for name in merged.layers)
    assert distance(weights(on((merged, 1.0))), weights(on((adapter, 1.0), (other, 1.0)))) < 1e-6
    assert "WARNING" not in report


def test_without_a_model_names_that_look_disjoint_are_warned_of(
    merge: Callable[..., Any], renamed: Callable[..., Any], adapter: Any, other: Any
) -> None:
    merged, report = merge(adapter, renamed(other))
    assert len(merged.layers) == len(adapter.layers) + len(other.layers)
    assert "adapter 2 shares no layer name with the others (its first is diffusion_model." in report


def test_layers_outside_the_model_keep_their_names(merge: Callable[..., Any], demo: Any, adapter: Any) -> None:
    factors = next(iter(adapter.layers.values()))
    text = replace(adapter, layers={**adapter.layers, "lora_te1_text_model_q": factors})
    merged, _ = merge(text, adapter, model=demo.model)
    assert merged.layers.keys() == text.layers.keys()


def test_an_adapter_of_another_base_is_refused_by_the_model(merge: Callable[..., Any], demo: Any, adapter: Any) -> None:
    factors = next(iter(adapter.layers.values()))
    wrong = replace(adapter, layers={"diffusion_model.double_blocks.0.img_attn.qkv": factors})
    with pytest.raises(Exception, match="No layer of adapter 2 .*img_attn.qkv.*Connect the base model"):
        merge(adapter, wrong, model=demo.model)


@pytest.mark.parametrize("text", ["strong", "1, 2, x"])
def test_weights_that_are_no_numbers_are_quoted(merge: Callable[..., Any], adapter: Any, text: str) -> None:
    with pytest.raises(Exception, match=f"weights is '{text}', which is not a list of numbers. Write '1, 0.5'"):
        merge(adapter, adapter, weights=text)


def test_a_cancelled_merge_stops(merge: Callable[..., Any], adapter: Any) -> None:
    import comfy.model_management

    comfy.model_management.interrupt_current_processing(True)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        merge(adapter, adapter)


@pytest.fixture(scope="module")
def known(demo: Any) -> dict[str, torch.Tensor]:
    """A change of rank 8 for every linear layer and convolution of the demo MODEL, about as large as its weights."""
    generator = torch.Generator().manual_seed(5)
    deltas = {}
    for path, module in demo.model.model.diffusion_model.named_modules():
        if isinstance(module, torch.nn.Linear | torch.nn.Conv2d):
            shape = module.weight.shape
            rank = min(8, shape[0], shape[1:].numel())
            left = torch.randn(shape[0], rank, generator=generator)
            change = left @ torch.randn(rank, shape[1:].numel(), generator=generator)
            deltas[f"diffusion_model.{path}.weight"] = (change * module.weight.std() / rank**0.5).view(shape)
    return deltas


def tuned(model: Any, deltas: dict[str, torch.Tensor]) -> Any:
    changed = model.clone()
    changed.add_patches({key: ("diff", (delta,)) for key, delta in deltas.items()})
    return changed


def extract(run_node: Callable[..., Any], base: Any, other: Any, layers: str = LAYERS, **keep: Any) -> Any:
    keep = keep or {"keep": "rank", "rank": 8}
    return run_node("TriLoRAExtract", base=base, tuned=other, keep=keep, layers=layers)


def deltas_of(model: Any, base: Any) -> dict[str, torch.Tensor]:
    """What the patches of a MODEL add to each weight of the base it was put on, in float64."""
    before = bare(base)
    return {key: weight.double() - before[key].double() for key, weight in weights(model).items()}


def test_a_known_change_of_rank_8_is_extracted_from_the_two_models(
    run_node: Callable[..., Any], demo: Any, known: dict[str, torch.Tensor]
) -> None:
    """Convolutions, projections and linear layers alike, and exact to the rounding of the weights themselves."""
    found, report = extract(run_node, demo.model, tuned(demo.model, known))
    (again,) = run_node("TriLoRAApply", model=demo.model, trilora=found, strength=1.0)
    got = deltas_of(again, demo.model)
    assert got.keys() == known.keys()
    for key, delta in known.items():
        assert (got[key] - delta).norm() < 1e-5 * delta.norm(), key
    assert "100.00% of the energy kept" in report


def test_patches_of_both_models_count_and_neither_is_changed(
    run_node: Callable[..., Any], on: Callable[..., Any], demo: Any, adapter: Any, other: Any
) -> None:
    base, both = on((other, 0.8)), on((other, 0.8), (adapter, 1.0))
    before, patches = bare(demo.model), {k: list(v) for k, v in both.patches.items()}
    found, report = extract(run_node, base, both, "attention", keep="rank", rank=4)
    (again,) = run_node("TriLoRAApply", model=base, trilora=found, strength=1.0)
    assert distance(weights(again), weights(both)) < 2e-6
    assert found.layers.keys() == adapter.layers.keys()
    assert all(torch.equal(tensor, before[key]) for key, tensor in bare(demo.model).items())
    assert {k: list(v) for k, v in both.patches.items()} == patches
    assert "rank 4" in report


def test_a_tuned_model_whose_weights_are_loaded_gives_the_same(
    run_node: Callable[..., Any], on: Callable[..., Any], demo: Any, adapter: Any
) -> None:
    import comfy.model_management

    patched, before = on((adapter, 1.0)), bare(demo.model)
    first, _ = extract(run_node, demo.model, patched, "attention")
    with torch.inference_mode():
        comfy.model_management.load_models_gpu([patched], force_full_load=True)
    second, _ = extract(run_node, demo.model, patched, "attention")
    in_place = bare(demo.model)  # the two MODELs share one module
    assert not all(torch.equal(in_place[key], before[key]) for key in patched.patches)
    with torch.inference_mode():
        comfy.model_management.unload_all_models()
    for name, factors in first.layers.items():
        assert all(torch.equal(a, b) for a, b in zip(factors, second.layers[name], strict=True))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float8_e4m3fn])
def test_weights_of_fewer_bits_are_compared_in_float32(
    run_node: Callable[..., Any], demo: Any, dtype: torch.dtype
) -> None:
    (rounded, _, _) = run_node("TriLoRADemoModel")
    network = rounded.model.diffusion_model
    keys = [f"{path}.weight" for path, m in network.named_modules() if path.endswith("to_v")]
    for key in keys:
        layer = network.get_submodule(key.removesuffix(".weight"))
        layer.weight = torch.nn.Parameter(layer.weight.to(dtype), requires_grad=False)
    found, report = extract(run_node, demo.model, rounded, keep="rank", rank=4096)
    assert len(found.layers) == len(keys)
    assert "layers are the same in both models and were left out" in report
    (again,) = run_node("TriLoRAApply", model=demo.model, trilora=found, strength=1.0)
    want = {key: tensor.float() for key, tensor in bare(rounded).items() if key in again.patches}
    assert distance(weights(again), want) < 1e-6


def test_energy_gives_each_layer_the_rank_it_needs(
    run_node: Callable[..., Any], demo: Any, known: dict[str, torch.Tensor]
) -> None:
    model = tuned(demo.model, known)
    half, _ = extract(run_node, demo.model, model, keep="energy", share=0.5, largest_rank=128)
    needed = []
    for delta in known.values():
        squares = torch.linalg.svdvals(delta.flatten(1).double()).square()
        needed.append(int((squares.cumsum(0) < 0.5 * squares.sum()).sum()) + 1)
    assert [factors.rank for factors in half.layers.values()] == needed
    assert len(set(needed)) > 1
    capped, _ = extract(run_node, demo.model, model, keep="energy", share=0.99, largest_rank=3)
    assert capped.rank == 3


def test_the_extracted_file_is_loaded_by_core_and_says_what_it_is(
    run_node: Callable[..., Any],
    core_nodes: dict[str, Any],
    demo: Any,
    known: dict[str, torch.Tensor],
    comfy_base: Path,
) -> None:
    found, _ = extract(run_node, demo.model, tuned(demo.model, known))
    assert found.metadata["ss_base_model_version"] == "sd_v1"
    assert found.metadata["trilora.method"] == "extract"
    (file,) = run_node("TriLoRASave", trilora=found, filename="tests/extracted", precision="float32")
    core = core_nodes["LoraLoaderModelOnly"]()
    theirs = core.load_lora_model_only(demo.model, file, 1.0)[0]
    assert distance(weights(theirs), weights(tuned(demo.model, known))) < 1e-5
    (comfy_base / "models" / "loras" / file).unlink()


def test_equal_models_and_other_architectures_are_told(run_node: Callable[..., Any], demo: Any) -> None:
    with pytest.raises(Exception, match="the same in all .* chosen layers"):
        extract(run_node, demo.model, demo.model.clone())
    with pytest.raises(Exception, match=r"weight diffusion_model\..* absent in tuned.*of the same architecture"):
        extract(run_node, demo.model, demo.clip.patcher)


def test_resizing_to_a_size_fits_the_file_that_save_writes(
    run_node: Callable[..., Any], other: Any, comfy_base: Path
) -> None:
    for precision in ("float32", "float16"):
        keep = {"keep": "size", "megabytes": 0.12, "precision": precision}
        small, report = run_node("TriLoRAResize", trilora=other, keep=keep)
        (file,) = run_node("TriLoRASave", trilora=small, filename="tests/small", precision=precision)
        path = comfy_base / "models" / "loras" / file
        assert 90_000 < path.stat().st_size <= 120_000
        assert "of the energy kept" in report
        path.unlink()


def test_resizing_gives_the_truncated_svd_of_what_the_adapter_adds(
    run_node: Callable[..., Any], on: Callable[..., Any], demo: Any, other: Any
) -> None:
    small, _ = run_node("TriLoRAResize", trilora=other, keep={"keep": "rank", "rank": 2})
    assert small.rank == 2
    whole, part = deltas_of(on((other, 1.0)), demo.model), deltas_of(on((small, 1.0)), demo.model)
    for key in list(whole)[::5]:
        u, sigma, vh = torch.linalg.svd(whole[key], full_matrices=False)
        assert (part[key] - (u[:, :2] * sigma[:2]) @ vh[:2]).abs().max() < 1e-5 * sigma[0] + 1e-6


def test_a_prompt_with_growing_inputs_runs(
    comfy: Any, run_node: Callable[..., Any], adapter: Any, other: Any, comfy_base: Path
) -> None:
    """Two saved files, merged and saved again, by ComfyUI's own validation and executor."""
    import execution
    from server import PromptServer

    names = ("one", "two")
    for name, trilora in zip(names, (adapter, other), strict=True):
        run_node("TriLoRASave", trilora=trilora, filename=f"tests/{name}", precision="float32")
    files = [{"model": ["1", 0], "file": f"tests/{name}.safetensors", "strength": 1.0} for name in names]
    sources = {"adapters.trilora0": ["2", 1], "adapters.trilora1": ["3", 1], "model": ["1", 0]}
    settings = {"weights": "1, 0.5", "keep": "rank", "keep.rank": 3}
    inputs = {"trilora": ["4", 0], "filename": "tests/sum", "precision": "float16"}
    prompt = {
        "1": {"class_type": "TriLoRADemoModel", "inputs": {}},
        "2": {"class_type": "TriLoRALoad", "inputs": files[0]},
        "3": {"class_type": "TriLoRALoad", "inputs": files[1]},
        "4": {"class_type": "TriLoRAMerge", "inputs": {**sources, **settings}},
        "5": {"class_type": "TriLoRASave", "inputs": inputs},
    }
    valid, *why, nodes = asyncio.run(execution.validate_prompt("id", prompt, None))
    assert valid, (why, nodes)
    executor = execution.PromptExecutor(PromptServer.instance, cache_args={"ram": 0, "ram_inactive": 0, "lru": 0})
    executor.execute(prompt, "id", {}, ["5"])
    assert executor.success, executor.status_messages
    assert (comfy_base / "models" / "loras" / "tests" / "sum.safetensors").is_file()
