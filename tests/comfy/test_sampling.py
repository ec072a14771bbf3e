"""Sampling as ComfyUI samples, also from a MODEL that is being trained."""

import importlib
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch

pytestmark = pytest.mark.comfy

WORDS = "a red house on the left in a meadow"
SETTINGS = {"seed": 3, "steps": 3, "cfg": 3.5, "width": 128, "height": 128}


@pytest.fixture(scope="module")
def inside(pack: dict[str, type]) -> Callable[[str], ModuleType]:
    """A module of the pack as ComfyUI loaded it: `inside("nodes.sampling")`."""
    package = pack["TriLoRATrain"].__module__.rsplit(".", 2)[0]
    return lambda name: importlib.import_module(f"{package}.{name}")


@pytest.fixture(scope="module")
def words(inside: Callable[[str], ModuleType], demo: Any) -> tuple[list, list]:
    encode = inside("nodes.sampling").encode
    return encode(demo.clip, WORDS), encode(demo.clip, "")


@pytest.fixture(scope="module")
def expected(core_nodes: dict[str, Any], demo: Any) -> torch.Tensor:
    """The picture that the nodes of a plain graph give."""
    with torch.inference_mode():
        positive, negative = (core_nodes["CLIPTextEncode"]().encode(demo.clip, text)[0] for text in (WORDS, ""))
        (latent,) = core_nodes["EmptyLatentImage"]().generate(128, 128)
        sampling = core_nodes["KSampler"]().sample
        (latent,) = sampling(demo.model, 3, 3, 3.5, "euler", "normal", positive, negative, latent)
        return core_nodes["VAEDecode"]().decode(demo.vae, latent)[0]


@pytest.mark.parametrize("inference", [True, False])
def test_it_gives_the_picture_of_ksampler_and_vae_decode_bit_for_bit(
    inside: Callable[[str], ModuleType], demo: Any, words: tuple[list, list], expected: torch.Tensor, inference: bool
) -> None:
    seen: list[int] = []
    with torch.inference_mode(inference):
        picture = inside("nodes.sampling").sample(demo.model, *words, demo.vae, **SETTINGS, on_step=seen.append)
    assert picture.is_inference() == inference
    assert seen == [1, 2, 3]
    assert picture.std() > 0.05
    assert torch.equal(picture, expected)


def test_a_model_in_training_is_sampled_with_what_it_has_learned_and_stays_as_it_is(
    inside: Callable[[str], ModuleType], demo: Any, words: tuple[list, list], expected: torch.Tensor
) -> None:
    import comfy.model_management as management

    sample, layers = inside("nodes.sampling").sample, inside("trilora.layers")
    with inside("nodes.lending").lent(demo.model) as patcher:
        network = patcher.model.diffusion_model
        path = "middle_block.1.transformer_blocks.0.attn1.to_v"
        weight = network.get_submodule(path).weight
        layer = layers.create("trilora", weight, rank=2, gain=1.0, generator=torch.Generator())
        factors = layer.factors()
        with torch.no_grad():
            factors.u.normal_()
        before = {key: tensor for key, tensor in patcher.model.named_parameters()}
        loaded = [entry.model for entry in management.current_loaded_models]
        torch.manual_seed(5)
        draw = torch.rand(1)
        with inside("trilora.attach").attached(network, {path: layer}) as switch:
            torch.manual_seed(5)
            learned = sample(patcher, *words, demo.vae, **SETTINGS)
            assert torch.equal(torch.rand(1), draw), "the global random numbers went on as if nothing had happened"
            with switch.off():
                bare = sample(patcher, *words, demo.vae, **SETTINGS)
            assert network.get_submodule(path)(torch.randn(1, 2, weight.shape[1])).requires_grad
        after = dict(patcher.model.named_parameters())
        assert all(after[key] is tensor for key, tensor in before.items())
        assert patcher in loaded
        assert patcher in [entry.model for entry in management.current_loaded_models]
    assert torch.equal(bare, expected)
    assert (learned - expected).abs().mean() > 1e-3
