"""U Σ Vᵀ on a MODEL's weights, and Σ scaled wherever a low-rank patch came from."""

from collections.abc import Callable, Iterator
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


def largest_difference(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    """Over all weights, relative to the largest entry of each."""
    assert a.keys() <= b.keys()
    return max(float((a[key] - b[key]).abs().max() / b[key].abs().max()) for key in a)


@pytest.fixture
def file(adapter: Any, run_node: Callable[..., Any], comfy_base: Path) -> Iterator[str]:
    (name,) = run_node("TriLoRASave", trilora=adapter, filename="tests/style", precision="float32")
    yield name
    (comfy_base / "models" / "loras" / name).unlink()


@pytest.fixture
def loaders(run_node: Callable[..., Any], core_nodes: dict[str, Any], demo: Any, file: str) -> dict[str, Callable]:
    """Each way to put the same file on the demo MODEL."""
    core = core_nodes["LoraLoaderModelOnly"]
    return {
        "ours": lambda strength: run_node("TriLoRALoad", model=demo.model, file=file, strength=strength)[0],
        "core": lambda strength: core().load_lora_model_only(demo.model, file, strength)[0],
    }


@pytest.mark.parametrize("strength", [1.0, 0.35, -0.5])
def test_loading_gives_the_weights_that_cores_loader_gives(loaders: dict[str, Callable], strength: float) -> None:
    ours, core = weights(loaders["ours"](strength)), weights(loaders["core"](strength))
    assert len(ours) == len(core) > 0
    assert largest_difference(ours, core) < 1e-6


def test_the_adapter_changes_the_weights(loaders: dict[str, Callable], demo: Any) -> None:
    assert largest_difference(weights(loaders["ours"](1.0)), bare(demo.model)) > 1e-3


def test_strength_0_is_the_base_bit_for_bit(loaders: dict[str, Callable], demo: Any, run_node: Callable) -> None:
    (silent,) = run_node("TriLoRAStrength", model=loaders["ours"](1.0), strength=0.0, keep=ALL)
    base = bare(demo.model)
    assert all(torch.equal(weight, base[key]) for model in (silent, loaders["ours"](0.0))
               for key, weight in weights(model).items())  # fmt: skip


@pytest.mark.parametrize("loader", ["ours", "core"])
def test_gains_of_1_change_nothing_bit_for_bit(
    loaders: dict[str, Callable], run_node: Callable[..., Any], loader: str
) -> None:
    model = loaders[loader](0.8)
    for keep in (ALL, {"keep": "top k", "k": 1024}):
        (same,) = run_node("TriLoRAStrength", model=model, strength=1.0, keep=keep)
        assert same is not model
        assert all(torch.equal(a, b) for a, b in zip(weights(same).values(), weights(model).values(), strict=True))


@pytest.mark.parametrize("loader", ["ours", "core"])
def test_strength_equals_loading_at_that_strength(
    loaders: dict[str, Callable], run_node: Callable[..., Any], loader: str
) -> None:
    (scaled,) = run_node("TriLoRAStrength", model=loaders[loader](1.0), strength=0.4, keep=ALL)
    (twice,) = run_node("TriLoRAStrength", model=scaled, strength=0.5, keep=ALL)
    assert largest_difference(weights(scaled), weights(loaders[loader](0.4))) < 1e-6
    assert largest_difference(weights(twice), weights(loaders[loader](0.2))) < 1e-6


@pytest.mark.parametrize("loader", ["ours", "core"])
@pytest.mark.parametrize("k", [0, 1, 3])
def test_top_k_is_the_truncated_svd_of_the_change(
    loaders: dict[str, Callable], run_node: Callable[..., Any], demo: Any, loader: str, k: int
) -> None:
    model, base = loaders[loader](1.0), bare(demo.model)
    (kept,) = run_node("TriLoRAStrength", model=model, strength=1.0, keep={"keep": "top k", "k": k})
    whole, part = weights(model), weights(kept)
    for key in list(whole)[::7]:
        u, sigma, vh = torch.linalg.svd(whole[key].double() - base[key].double(), full_matrices=False)
        expected = (u[:, :k] * sigma[:k]) @ vh[:k]
        assert ((part[key] - base[key]) - expected).abs().max() < 1e-5 * sigma[0] + 1e-6


def test_the_model_that_came_in_is_not_touched(loaders: dict[str, Callable], run_node: Callable[..., Any]) -> None:
    model = loaders["ours"](1.0)
    before, patches, mark = weights(model), {k: list(v) for k, v in model.patches.items()}, model.patches_uuid
    (shaped,) = run_node("TriLoRAStrength", model=model, strength=0.3, keep={"keep": "top k", "k": 1})
    assert {k: list(v) for k, v in model.patches.items()} == patches
    assert model.patches_uuid == mark != shaped.patches_uuid
    assert all(torch.equal(before[key], weight) for key, weight in weights(model).items())


def test_sigma_is_found_however_deep_in_the_chain(
    loaders: dict[str, Callable], run_node: Callable[..., Any], core_nodes: dict[str, Any], demo: Any, file: str
) -> None:
    """Two adapters of ours and core's in a row, and a merge of that with the bare base on top."""
    (both,) = core_nodes["LoraLoaderModelOnly"]().load_lora_model_only(loaders["ours"](1.0), file, 0.5)
    (silent,) = run_node("TriLoRAStrength", model=both, strength=0.0, keep=ALL)
    base = bare(demo.model)
    assert all(torch.equal(weight, base[key]) for key, weight in weights(silent).items())
    (merged,) = core_nodes["ModelMergeSimple"]().merge(demo.model, both, 0.25)
    assert largest_difference(weights(merged), base) > 1e-4
    (quiet,) = run_node("TriLoRAStrength", model=merged, strength=0.0, keep=ALL)
    assert largest_difference(weights(quiet), base) < 1e-6


def test_a_model_without_adapters_is_told_so(demo: Any, run_node: Callable[..., Any]) -> None:
    with pytest.raises(Exception, match="no LoRA or TriLoRA on this MODEL"):
        run_node("TriLoRAStrength", model=demo.model, strength=0.5, keep=ALL)


def test_apply_equals_saving_and_loading(
    loaders: dict[str, Callable], run_node: Callable[..., Any], demo: Any, adapter: Any
) -> None:
    (applied,) = run_node("TriLoRAApply", model=demo.model, trilora=adapter, strength=0.7)
    assert largest_difference(weights(applied), weights(loaders["ours"](0.7))) < 1e-6


def test_a_patch_is_made_of_u_sigma_and_vh(loaders: dict[str, Callable]) -> None:
    """ComfyUI rebuilds a patch from (loaded_keys, weights) alone."""
    import comfy.weight_adapter

    for patches in loaders["ours"](1.0).patches.values():
        ((_, patch, *_rest),) = patches
        assert isinstance(patch, comfy.weight_adapter.WeightAdapterBase)
        u, sigma, vh = patch.weights
        assert u.shape[1:] == sigma.shape == vh.shape[:1]
        again = type(patch)(patch.loaded_keys, patch.weights)
        assert vars(again).keys() == vars(patch).keys()


def test_the_bypass_equals_the_patched_weight(loaders: dict[str, Callable], demo: Any) -> None:
    model = loaders["ours"](1.0)
    key = next(key for key in model.patches if key.endswith("attn1.to_v.weight"))
    patch = model.patches[key][0][1]
    layer = demo.model.model.get_submodule(key.removesuffix(".weight"))
    x = torch.randn(2, 5, layer.in_features)
    with torch.inference_mode():
        bypassed = patch.bypass_forward(layer, x)
        merged = torch.nn.functional.linear(x, weights(model)[key], layer.bias)
    assert (bypassed - merged).abs().max() < 1e-5 * merged.abs().max()


def test_an_adapter_for_another_model_names_file_and_layer(
    run_node: Callable[..., Any], demo: Any, adapter: Any, comfy_base: Path
) -> None:
    import dataclasses

    name, factors = next(iter(adapter.layers.items()))
    wrong = {
        "unknown": dataclasses.replace(adapter, layers={"lora_unet_nowhere_to_q": factors}),
        "shape": dataclasses.replace(adapter, layers={name: factors._replace(vh=factors.vh[:, :-1])}),
    }
    words = {"unknown": "lora_unet_nowhere_to_q.*does not exist in this MODEL", "shape": f"{name}.*weight is"}
    for kind, broken in wrong.items():
        (file,) = run_node("TriLoRASave", trilora=broken, filename=f"tests/{kind}", precision="float32")
        with pytest.raises(Exception, match=rf"{kind}\.safetensors: .*{words[kind]}.*load that base model"):
            run_node("TriLoRALoad", model=demo.model, file=file, strength=1.0)
        (comfy_base / "models" / "loras" / file).unlink()


def test_two_names_of_one_weight_in_an_adapter_add(run_node: Callable[..., Any], demo: Any, adapter: Any) -> None:
    import dataclasses

    from lora_files import LINEAR, diffusers_names

    inner = diffusers_names(demo.model)[LINEAR[0]]
    names = ["lora_unet_" + LINEAR[0].replace(".", "_"), f"diffusion_model.{inner}"]
    width = demo.model.model.diffusion_model.get_submodule(inner).weight.shape[0]
    factors = type(next(iter(adapter.layers.values())))
    parts = {name: factors(torch.randn(width, 2), torch.tensor([2.0, 1.0]), torch.randn(2, width)) for name in names}
    both = dataclasses.replace(adapter, layers=parts)
    (model,) = run_node("TriLoRAApply", model=demo.model, trilora=both, strength=0.5)
    ((key, got),) = weights(model).items()
    added = sum((u * sigma) @ vh for u, sigma, vh in parts.values())
    torch.testing.assert_close(got, bare(demo.model)[key] + 0.5 * added, rtol=1e-5, atol=1e-5)
