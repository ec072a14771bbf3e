"""Training that goes on with an adapter, whatever tool wrote its file: it begins where the adapter is."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from identical import same

pytestmark = pytest.mark.comfy

NAMINGS = {  # what ComfyUI's map of layers calls them -> suffixes of up, down and alpha
    "lora_unet_": (".lora_up.weight", ".lora_down.weight", ".alpha"),
    "unet.": (".lora_B.weight", ".lora_A.weight", None),
}
RANK = 3


@pytest.fixture(params=NAMINGS, ids=["kohya", "peft"])
def lora_file(request: pytest.FixtureRequest, demo: Any, comfy_base: Path) -> Iterator[str]:
    """An ordinary LoRA on every linear layer of attention and every convolution, strong enough to matter."""
    import comfy.lora

    up, down, alpha = NAMINGS[request.param]
    weights, draw, tensors, done = demo.model.model.state_dict(), torch.Generator().manual_seed(0), {}, set()
    for name, key in comfy.lora.model_lora_keys_unet(demo.model.model, {}).items():
        shape = weights[key].shape if key in weights else ()  # the map names layers that only some bases have
        chosen = len(shape) == 4 or (len(shape) == 2 and "attn" in key)
        if not chosen or not name.startswith(request.param) or key in done:  # it has several names for most layers
            continue
        done.add(key)
        size = weights[key].float().std() / 3
        tensors[name + up] = torch.randn(shape[0], RANK, *[1] * (len(shape) - 2), generator=draw) * size
        tensors[name + down] = torch.randn(RANK, *shape[1:], generator=draw) / RANK**0.5
        if alpha:
            tensors[name + alpha] = torch.tensor(RANK / 2)
    path = comfy_base / "models" / "loras" / "ordinary.safetensors"
    path.parent.mkdir(exist_ok=True)
    safetensors.torch.save_file(tensors, path)
    yield path.name
    path.unlink()


def test_the_first_loss_is_that_of_the_loaded_adapter(
    lora_file: str, run_node: Callable[..., Any], train: Callable[..., Any], demo: Any
) -> None:
    """Convolutions included: they act while the others learn, and learn themselves."""
    loaded, adapter, _ = run_node("TriLoRALoad", model=demo.model, file=lora_file, strength=1.0)
    bare, want = (float(train(model=model, steps=1).loss_map["loss"][0]) for model in (demo.model, loaded))
    assert abs(want - bare) > 0.02 * bare
    for method in ("trilora", "lora"):
        went_on = train(start_from=adapter, method={"method": method, "initialisation": "balanced"}, steps=2)
        assert float(went_on.loss_map["loss"][0]) == pytest.approx(want, rel=1e-3)
        assert len(went_on.trilora.layers) == len(adapter.layers)
        for before, after in zip(adapter.layers.values(), went_on.trilora.layers.values(), strict=True):
            assert after.vh.shape == before.vh.shape
            assert not torch.allclose(after.sigma, before.sigma, rtol=1e-6)


def test_a_lora_from_a_bypass_loader_is_refused_in_words(
    lora_file: str, core_nodes: dict[str, Any], train: Callable[..., Any], demo: Any
) -> None:
    with torch.inference_mode():
        (model,) = core_nodes["LoraLoaderBypassModelOnly"]().load_lora_model_only(demo.model, lora_file, 1.0)
    with pytest.raises(Exception, match="bypass loader.*Load it with Load TriLoRA or Load LoRA"):
        train(model=model, steps=1)


def test_sigma_alone_learns_a_few_hundred_numbers_and_keeps_the_directions(
    lora_file: str, run_node: Callable[..., Any], train: Callable[..., Any], demo: Any
) -> None:
    _, adapter, _ = run_node("TriLoRALoad", model=demo.model, file=lora_file, strength=1.0)
    method = {"method": "trilora", "core": "diagonal", "initialisation": "balanced", "learn": "sigma"}
    learned = train(start_from=adapter, method=method, steps=2, preserve=0.3)
    assert f"Σ alone, on {len(adapter.layers)} layers: {RANK * len(adapter.layers)} parameters" in learned.summary
    for before, factors in zip(adapter.layers.values(), learned.trilora.layers.values(), strict=True):
        assert not torch.allclose(factors.sigma, before.sigma, rtol=1e-6)
        inner = before.u.T @ factors.u, before.vh.flatten(1) @ factors.vh.flatten(1).T
        assert all(torch.allclose(product.abs(), torch.eye(RANK), atol=1e-3) for product in inner)


def test_the_adapters_own_rank_is_said_in_the_summary_and_in_the_file(train: Callable[..., Any], adapter: Any) -> None:
    """It learns as it does at any other rank of the widget with the same gain."""
    went_on, same_gain = train(start_from=adapter, rank=16, alpha=16.0, steps=1), train(start_from=adapter, steps=1)
    assert adapter.rank == 4
    assert went_on.summary.startswith("trilora, rank 4, on 56 layers: 46,816 parameters")
    assert went_on.summary.split()[-1] == "46,816"
    for key in ("ss_network_dim", "ss_network_alpha", "trilora.rank"):
        assert went_on.trilora.metadata[key] == "4"
    assert same(went_on.trilora, same_gain.trilora)


def test_sigma_alone_without_an_adapter_is_refused_in_words(train: Callable[..., Any]) -> None:
    method = {"method": "trilora", "core": "diagonal", "initialisation": "balanced", "learn": "sigma"}
    with pytest.raises(Exception, match="no adapter whose U and V it belongs to. Connect one to start_from"):
        train(method=method)


def test_an_adapter_of_another_size_is_refused_by_layer_and_shape(train: Callable[..., Any], adapter: Any) -> None:
    name, factors = next(iter(adapter.layers.items()))
    wrong = type(adapter)({name: factors._replace(vh=factors.vh[:, :-1])}, adapter.metadata)
    with pytest.raises(Exception, match=f"The layer {name} of the adapter is .* but the MODEL's weight is"):
        train(start_from=wrong)
