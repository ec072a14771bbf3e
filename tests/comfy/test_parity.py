"""Our training is that of diffusers and peft: from the same start, the same losses and the same factors."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import reference
import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

from devkit import ROOT
from trilora.dataset import Batches, generator

pytestmark = [
    pytest.mark.comfy,
    pytest.mark.skipif(torch.cuda.is_available(), reason="a statement on float32, which ComfyUI uses on the CPU"),
]

BASE = ROOT / "demo" / "base"
STEPS, BATCH, SEED, SIDE, SHRINK, RATE = 20, 2, 11, 64, 0.2, 2e-3
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
def small(run_node: Callable[..., Any]) -> Any:
    """The shipped style at half its size, which is enough to compare numbers."""
    (data,) = run_node(
        "TriLoRADataset", folder=["demo: stained_glass"], trigger=["zorvex"], resolution=[SIDE], bucket_step=[0]
    )
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
        draw = generator(SEED, "noise", step + 1)
        noise = torch.randn(BATCH, *latents.shape[1:], generator=draw)
        made.append(reference.Draw(order.at(step), noise, torch.rand(BATCH, generator=draw)))
    return made


def off(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """Relative distance."""
    return float((ours - theirs).norm() / theirs.norm())


@pytest.mark.parametrize(
    ("prediction", "preserve"), [("epsilon", 0.0), ("epsilon", 0.3), ("v_prediction", 0.0), ("flow", 0.0)]
)
def test_every_loss_and_every_factor_is_that_of_diffusers_and_peft(
    train: Callable[..., Any], models: dict[str, Any], demo: Any, small: Any, pictures: reference.Pictures,
    learned: list[torch.Tensor], prediction: str, preserve: float,
) -> None:  # fmt: skip
    ours = train(
        model=models[prediction], dataset=small, method={"method": "lora", "initialisation": "balanced"}, seed=SEED,
        steps=STEPS, batch=BATCH, rank=RECIPE.rank, alpha=RECIPE.alpha, learning_rate=RATE, shrink=SHRINK,
        clip_norm=RECIPE.clip, preserve=preserve,
    )  # fmt: skip
    raw = [parameter.detach().clone() for parameter in learned]
    recipe = RECIPE._replace(prediction=prediction, preserve=preserve)
    theirs = reference.train(BASE, recipe, start(demo), draws(pictures.latents), pictures)

    expected = torch.tensor(theirs.losses)
    assert ((torch.stack(ours.loss_map["loss"]) - expected).abs() / expected).max() < NEAR
    assert 2 * len(theirs.factors) == len(raw)
    for path, up, down in zip(start(demo), raw[::2], raw[1::2], strict=True):
        assert off(up, theirs.factors[path][0]) < NEAR, path
        assert off(down, theirs.factors[path][1]) < NEAR, path
    for path, (up, down) in theirs.factors.items():
        u, sigma, vh = ours.trilora.layers["lora_unet_" + path.replace(".", "_")]
        assert off(u * sigma @ vh, RECIPE.alpha / RECIPE.rank * up @ down) < NEAR, path
    assert min(theirs.norms) < RECIPE.clip < max(theirs.norms)  # clipping acted, and not always


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
