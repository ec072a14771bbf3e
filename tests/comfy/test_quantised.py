"""Bases whose linear layers are ComfyUI's own for quantised weights: chosen, trained, extracted."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import shrunken
import torch

pytestmark = pytest.mark.comfy

FLUX = shrunken.NETWORKS["Flux"]
QUANTISED = "*_blocks.*"


@pytest.fixture(scope="module", params=["float8_e4m3fn", "nvfp4", "int8_tensorwise"])
def model(request: pytest.FixtureRequest, comfy: Any) -> Any:
    return shrunken.quantised(FLUX, request.param, QUANTISED)


def test_the_layers_are_none_of_torchs_own(model: Any) -> None:
    from comfy.quant_ops import QuantizedTensor

    layer = model.model.diffusion_model.double_blocks[0].img_attn.qkv
    assert isinstance(layer.weight, QuantizedTensor)
    assert not isinstance(layer, torch.nn.Linear)


def test_the_same_layers_are_chosen_as_of_a_plain_base(room: Any, model: Any) -> None:
    targets, plain = room("trilora.targets"), shrunken.model(FLUX).model.diffusion_model
    for choice in ("attention", "attention + mlp", "all linear"):
        chosen, expected = (targets.select(root, choice) for root in (model.model.diffusion_model, plain))
        assert list(chosen) == list(expected)
        assert targets.table(chosen) == targets.table(expected)
        assert targets.table(chosen, 2) == targets.table(expected, 2)


def test_two_steps_are_made_and_every_layer_learns(room: Any, model: Any) -> None:
    training, lending, objective = room("trilora.training"), room("nodes.lending"), room("trilora.objective")
    settings = room("trilora.settings").Settings(rank=2, steps=2, batch=2, preserve=0.3, learning_rate=1e-2)
    before = bits(model)
    with lending.lent(model) as patcher:
        network, denoiser = patcher.model.diffusion_model, room("nodes.denoiser").ComfyDenoiser(patcher)
        chosen = room("trilora.targets").select(network, "attention + mlp")
        device = patcher.load_device
        layers = training.create_layers(chosen, settings, None, partial(lending.weight_of, device=device), device)
        with room("trilora.attach").attached(network, layers) as switch:
            pictures = [(example(denoiser, objective.Example, seed),) for seed in range(2)]
            steps = list(training.train(denoiser, layers, switch, pictures, settings))
    assert all(abs(step.loss) < 100 for step in steps)
    assert steps[1].preservation > 0
    assert [path for path, factors in training.learned(layers).items() if not factors.sigma.max() > 0] == []
    assert bits(model) == before


def example(denoiser: Any, kind: type, seed: int) -> Any:
    latent = torch.randn(FLUX.latent, generator=torch.Generator().manual_seed(seed))
    captions = (shrunken.conditioning(FLUX, seed + other) for other in (0, 100))
    return kind(latent, *(denoiser.encode(caption, latent) for caption in captions))


def bits(model: Any) -> dict[str, bytes]:
    """Every tensor of the network's file."""
    state = model.model.diffusion_model.state_dict()
    return {name: tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes() for name, tensor in state.items()}


PATH = "double_blocks.1.img_attn.proj"


@pytest.fixture(scope="module")
def change() -> tuple[torch.Tensor, torch.Tensor]:
    """u (32, 2) and vh (2, 32) of a change of rank 2."""
    generator = torch.Generator().manual_seed(1)
    return torch.randn(32, 2, generator=generator), torch.randn(2, 32, generator=generator)


def test_a_change_of_low_rank_is_extracted(
    run_node: Callable[..., Any], model: Any, change: tuple[torch.Tensor, torch.Tensor]
) -> None:
    u, vh = change
    tuned = model.clone()
    tuned.add_patches({f"diffusion_model.{PATH}.weight": ("diff", (u @ vh,))})
    keep = {"keep": "rank", "rank": 2}
    adapter, _ = run_node("TriLoRAExtract", base=model, tuned=tuned, keep=keep, layers="all linear")
    ((name, factors),) = adapter.layers.items()
    assert name == f"diffusion_model.{PATH}"
    torch.testing.assert_close((factors.u * factors.sigma) @ factors.vh, u @ vh, rtol=1e-4, atol=1e-4)


def test_an_adapter_is_gone_on_with(room: Any, model: Any, change: tuple[torch.Tensor, torch.Tensor]) -> None:
    u, vh = change
    factors = room("trilora.factors").Factors(u, torch.ones(2), vh)
    adapter = room("trilora.files").Adapter({f"diffusion_model.{PATH}": factors})
    start, carried = room("nodes.starting").start_factors(model, adapter)
    assert list(start) == [PATH]
    assert not carried


def test_a_run_is_named_by_the_weights_as_they_were_whatever_is_loaded(
    room: Any, run_node: Callable[..., Any], model: Any, change: tuple[torch.Tensor, torch.Tensor]
) -> None:
    named, factors = room("nodes.fingerprint").of_weights, room("trilora.factors").Factors
    layer = factors(change[0], torch.ones(2), change[1])
    adapter = room("trilora.files").Adapter({f"diffusion_model.{PATH}": layer})
    (patched,) = run_node("TriLoRAApply", model=model, trilora=adapter, strength=1.0)
    plain, before = named(model), named(patched)
    assert plain != before
    patched.patch_model()  # in the mode that the model was made in, whatever was done with it since
    try:
        assert (named(model), named(patched)) == (plain, before)
    finally:
        patched.unpatch_model()
    assert (named(model), named(patched)) == (plain, before)


def test_the_node_trains(demo: Any, run_node: Callable[..., Any], train: Callable[..., Any]) -> None:
    network = shrunken.Shrunken("SD15", demo.model.model.model_config.unet_config, (4, 8, 8))
    base = shrunken.quantised(network, "float8_e4m3fn", "*attn*")
    (data,) = run_node(
        "TriLoRADataset", folder=["unused"], trigger=["zorvex"], resolution=[64], bucket_step=[0],
        images=[torch.rand(1, 64, 64, 3)], captions=["a fox"],
    )  # fmt: skip
    trained = train(model=base, dataset=data, steps=1, batch=1).trilora
    assert all(factors.sigma.max() > 0 for factors in trained.layers.values())
