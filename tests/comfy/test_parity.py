"""Our training is that of diffusers and peft: from the same start, the same losses and the same factors."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import reference
import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

from devkit import ROOT
from trilora.dataset import Batches
from trilora.seeds import generator

pytestmark = [
    pytest.mark.comfy,
    pytest.mark.skipif(torch.cuda.is_available(), reason="a statement on float32, which ComfyUI uses on the CPU"),
]

BASE = ROOT / "demo" / "base"
STEPS, BATCH, SEED, SIDE, SHRINK, RATE = 20, 2, 12, 64, 0.2, 2e-3
NEAR = 1e-4  # relative

RECIPE = reference.Recipe(
    "epsilon",
    rank=4,
    alpha=2.0,
    learning_rate=RATE,
    weight_decay=(1 - (1 - SHRINK) ** (1 / STEPS)) / RATE,
    clip=0.02,
)


@pytest.fixture(scope="module")
def models(demo: Any, core_nodes: dict[str, Any]) -> dict[str, Any]:
    """The demo model as each kind of prediction; core's own nodes tell ComfyUI which."""
    with torch.inference_mode():
        (v_prediction,) = core_nodes["ModelSamplingDiscrete"]().patch(demo.model, "v_prediction", False)
        (flow,) = core_nodes["ModelSamplingSD3"]().patch(demo.model, reference.SHIFT)
    return {"epsilon": demo.model, "v_prediction": v_prediction, "flow": flow}


@pytest.fixture(scope="module")
def small(run_node: Callable[..., Any], dataset: Any) -> Any:
    """A few pictures of the shipped style at half their size, which is enough to compare numbers."""
    few = dataset.pictures[:6]
    (data,) = run_node(
        "TriLoRADataset", folder=["unused"], trigger=["zorvex"], resolution=[SIDE], bucket_step=[0],
        images=[torch.stack([picture.pixels((SIDE, SIDE)) for picture in few])], captions=[p.caption for p in few],
    )  # fmt: skip
    return data


@pytest.fixture(scope="module")
def pictures(small: Any) -> reference.Pictures:
    """The same pictures and captions, read by diffusers and transformers."""
    pixels = torch.stack([picture.pixels((SIDE, SIDE)) for picture in small.pictures])
    prompts = [small.prompt_of(picture) for picture in small.pictures]
    return reference.encode(BASE, pixels, prompts, [picture.caption for picture in small.pictures])


@pytest.fixture
def learned() -> Iterator[list[torch.Tensor]]:
    """The parameters of the optimizer that stepped last."""
    parameters: list[torch.Tensor] = []

    def look(optimizer: torch.optim.Optimizer, *_: object) -> None:
        parameters[:] = [parameter for group in optimizer.param_groups for parameter in group["params"]]

    handle = register_optimizer_step_post_hook(look)
    yield parameters
    handle.remove()


def start(demo: Any) -> dict[str, torch.Tensor]:
    """Where the seed begins: diffusers' path of each attention layer -> the Gaussian factor (rank, in)."""
    import comfy.utils

    names = comfy.utils.unet_to_diffusers(demo.model.model.model_config.unet_config)
    outer = {inner.removesuffix(".weight"): outer.removesuffix(".weight") for outer, inner in names.items()}
    return {
        outer[path]: 0.02 * torch.randn(RECIPE.rank, module.in_features, generator=generator(SEED, "adapter", path))
        for path, module in demo.model.model.diffusion_model.named_modules()
        if path.endswith(tuple(reference.TARGETS))
    }


def draws(latents: torch.Tensor) -> list[reference.Draw]:
    """Batches, noise and noise levels as the seed decides them."""
    order = Batches(tuple(tuple(latent.shape) for latent in latents), BATCH, SEED)
    made = []
    for step in range(STEPS):
        streams = [generator(SEED, "noise", step + 1, place) for place in range(BATCH)]
        noise = torch.stack([torch.randn(latents.shape[1:], generator=stream) for stream in streams])
        quantiles = torch.cat([torch.rand(1, generator=stream) for stream in streams])
        made.append(reference.Draw(order.at(step), noise, quantiles))
    return made


def off(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """Relative distance of all entries but the furthest hundredth.

    Adam divides by the size of the gradient: an entry whose gradient is within rounding of 0 may step either way.
    """
    errors = (ours - theirs).flatten().abs().sort().values
    return float(errors[: -(len(errors) // 100 + 1)].norm() / theirs.norm())


CASES = {  # what is unlike RECIPE, and how many passes of ours make one of the reference's batches
    "eps, the base preserved": ({"preserve": 0.3, "preserve_every": 2}, 1),
    "v, min-SNR, cosine": ({"prediction": "v_prediction", "min_snr": 5.0, "schedule": "cosine", "weight_decay": 0}, 1),
    "flow, accumulated": ({"prediction": "flow"}, 2),
}


@pytest.mark.parametrize("case", CASES)
def test_every_loss_and_every_factor_is_that_of_diffusers_and_peft(
    train: Callable[..., Any], models: dict[str, Any], demo: Any, small: Any, pictures: reference.Pictures,
    learned: list[torch.Tensor], options: Callable[..., Any], case: str,
) -> None:  # fmt: skip
    changed, passes = CASES[case]
    recipe = RECIPE._replace(**changed)
    ours = train(
        model=models[recipe.prediction], dataset=small, method={"method": "lora", "initialisation": "balanced"},
        seed=SEED, steps=STEPS, batch=BATCH // passes, rank=recipe.rank, alpha=recipe.alpha, learning_rate=RATE,
        shrink=SHRINK if recipe.weight_decay else 0.0, clip_norm=recipe.clip, preserve=recipe.preserve,
        options=options(
            accumulate=passes, min_snr=recipe.min_snr, schedule=recipe.schedule, preserve_every=recipe.preserve_every
        ),
    )  # fmt: skip
    raw = [parameter.detach().clone() for parameter in learned]
    theirs = reference.train(BASE, recipe, start(demo), draws(pictures.latents), pictures)

    expected = torch.tensor(theirs.losses)
    assert ((torch.stack(ours.loss_map["loss"]) - expected).abs() / expected).max() < NEAR
    assert 2 * len(theirs.factors) == len(raw)
    for path, up, down in zip(start(demo), raw[::2], raw[1::2], strict=True):
        assert off(up, theirs.factors[path][0]) < NEAR, path
        assert off(down, theirs.factors[path][1]) < NEAR, path
        u, sigma, vh = ours.trilora.layers["lora_unet_" + path.replace(".", "_")]
        torch.testing.assert_close(u * sigma @ vh, recipe.alpha / recipe.rank * up @ down, rtol=NEAR, atol=1e-7)
    assert min(theirs.norms) < recipe.clip < max(theirs.norms)  # clipping acted, and not always


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "flow"])
def test_noise_levels_and_their_times_are_those_of_diffusers(models: dict[str, Any], prediction: str) -> None:
    """Over the whole table: the level of each index, and the time that the network is told."""
    process = reference.Process(BASE, prediction)
    sampling = models[prediction].get_model_object("model_sampling")
    sigmas = sampling.sigmas.float()
    times = process.times((torch.arange(1000) + 0.5) / 1000)
    assert len(sigmas) == 1000
    assert (sigmas / process.sigmas(times) - 1).abs().max() < NEAR
    assert (sampling.timestep(sigmas) - times).abs().max() < 1e-3
