"""Σ over the sampling steps, as hooks on the demo model."""

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch

pytestmark = pytest.mark.comfy

FLAT, NEVER = [[0, 1], [1, 1]], [[0, 0], [1, 0]]
EARLY, LATE = [[0, 1], [0.5, 1], [0.5, 0], [1, 0]], [[0, 0], [0.5, 0], [0.5, 1], [1, 1]]


def curve(points: list[list[float]]) -> dict[str, Any]:
    """As ComfyUI's page sends it."""
    return {"points": points, "interpolation": "linear"}


def banded(**curves: list[list[float]]) -> dict[str, Any]:
    kind = {1: "one curve", 2: "2 bands", 3: "3 bands"}[len(curves)]
    edges = {} if len(curves) == 1 else {"edges": ""}
    return {"bands": kind, **{name: curve(points) for name, points in curves.items()}, **edges}


@pytest.fixture(scope="module")
def strong(adapter: Any) -> Any:
    """The small trained adapter with every singular value as large as the first, so that each band shows."""
    layers = {
        name: factors._replace(sigma=factors.sigma[:1].expand(factors.rank) * 3)
        for name, factors in adapter.layers.items()
    }
    return dataclasses.replace(adapter, layers=layers)


@pytest.fixture(scope="module")
def draw(core_nodes: dict[str, Any], demo: Any) -> Callable[..., torch.Tensor]:
    """The latent that KSampler gives for a MODEL, with hooks on both prompts."""

    @torch.inference_mode()
    def sampled(model: Any = demo.model, hooks: Any = None, sampler: str = "euler") -> torch.Tensor:
        encode = core_nodes["CLIPTextEncode"]().encode
        words = [encode(demo.clip, text)[0] for text in ("zorvex, a red house on the left in a meadow", "")]
        if hooks is not None:
            words = core_nodes["PairConditioningSetProperties"]().set_properties(*words, 1.0, "default", hooks=hooks)
        (latent,) = core_nodes["EmptyLatentImage"]().generate(128, 128)
        return core_nodes["KSampler"]().sample(model, 5, 6, 3.5, sampler, "normal", *words, latent)[0]["samples"]

    return sampled


@pytest.fixture(scope="module")
def scheduled(run_node: Callable[..., Any], draw: Callable[..., torch.Tensor], strong: Any) -> Callable:
    """The latent with the adapter under curves."""

    def run(strength: float = 1.0, sampler: str = "euler", **curves: list[list[float]]) -> torch.Tensor:
        (hooks,) = run_node("TriLoRASchedule", trilora=strong, strength=strength, bands=banded(**curves))
        return draw(hooks=hooks, sampler=sampler)

    return run


@pytest.fixture(scope="module")
def plain(run_node: Callable[..., Any], draw: Callable[..., torch.Tensor], demo: Any, strong: Any) -> Callable:
    """The latent with the adapter simply applied."""

    def run(strength: float, **how: Any) -> torch.Tensor:
        return draw(run_node("TriLoRAApply", model=demo.model, trilora=strong, strength=strength)[0], **how)

    return run


@pytest.fixture(scope="module")
def base(draw: Callable[..., torch.Tensor]) -> torch.Tensor:
    return draw()


def apart(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).abs().mean() / b.std())


def test_curves_flat_at_1_are_the_plain_adapter(scheduled: Callable, plain: Callable, base: torch.Tensor) -> None:
    expected = plain(1.0)
    assert apart(expected, base) > 0.1
    for curves in ({"curve": FLAT}, {"coarse": FLAT, "fine": FLAT}, {"coarse": FLAT, "middle": FLAT, "fine": FLAT}):
        assert apart(scheduled(**curves), expected) < 1e-4, curves


def test_a_flat_curve_has_the_strength_that_it_stands_for(scheduled: Callable, plain: Callable) -> None:
    assert apart(scheduled(strength=1.2, curve=[[0, 0.5], [1, 0.5]], sampler="heun"), plain(0.6, sampler="heun")) < 1e-4


def test_curves_at_0_are_the_bare_base_bit_for_bit(scheduled: Callable, base: torch.Tensor) -> None:
    assert torch.equal(scheduled(coarse=NEVER, fine=NEVER), base)


def test_time_matters_and_band_matters(scheduled: Callable, plain: Callable, base: torch.Tensor) -> None:
    pictures = {
        "base": base,
        "plain": plain(1.0),
        "all early": scheduled(curve=EARLY),
        "all late": scheduled(curve=LATE),
        "coarse early, fine late": scheduled(coarse=EARLY, fine=LATE),
        "coarse late, fine early": scheduled(coarse=LATE, fine=EARLY),
    }
    near = {
        (a, b): apart(x, y) for a, x in pictures.items() for b, y in pictures.items() if a < b and apart(x, y) < 0.02
    }
    assert not near


def test_an_adapter_that_is_on_in_no_step_but_the_first_differs_from_one_that_is_never_on(
    scheduled: Callable, base: torch.Tensor
) -> None:
    first = scheduled(curve=[[0, 1], [0.01, 1], [0.01, 0], [1, 0]])
    assert apart(first, base) > 1e-3


def test_the_model_is_left_as_it_was(scheduled: Callable, demo: Any, base: torch.Tensor, draw: Callable) -> None:
    before = {key: tensor.clone() for key, tensor in demo.model.model.state_dict().items()}
    mark, patches = demo.model.patches_uuid, dict(demo.model.patches)
    scheduled(coarse=EARLY, fine=LATE)
    assert all(torch.equal(before[key], tensor) for key, tensor in demo.model.model.state_dict().items())
    assert demo.model.patches == patches
    assert not demo.model.hook_patches
    assert torch.equal(draw(), base)
    assert mark is not None


def test_a_curve_that_does_not_move_patches_once(run_node: Callable[..., Any], strong: Any) -> None:
    (hooks,) = run_node("TriLoRASchedule", trilora=strong, strength=1.0, bands=banded(coarse=FLAT, fine=EARLY))
    coarse, fine = hooks.hooks
    assert [(k.start_percent, k.strength) for k in coarse.hook_keyframe.keyframes] == [(0.0, 1.0)]
    assert [(k.start_percent, k.strength) for k in fine.hook_keyframe.keyframes] == [(0.0, 1.0), (0.5, 0.0)]


def test_an_adapter_of_another_model_stops_the_sampling(
    run_node: Callable[..., Any], draw: Callable[..., torch.Tensor], strong: Any
) -> None:
    foreign = dataclasses.replace(strong, layers={"lora_unet_nowhere_to_q": next(iter(strong.layers.values()))})
    (hooks,) = run_node("TriLoRASchedule", trilora=foreign, strength=1.0, bands=banded(curve=FLAT))
    with pytest.raises(Exception, match="lora_unet_nowhere_to_q.*does not exist in this MODEL"):
        draw(hooks=hooks)


def test_layers_of_the_text_encoder_go_with_the_hooks_of_a_clip(
    run_node: Callable[..., Any], core_nodes: dict[str, Any], demo: Any, strong: Any
) -> None:
    factors = next(iter(strong.layers.values()))
    text = type(factors)(torch.randn(128, 2), torch.ones(2), torch.randn(2, 128))
    layers = {**strong.layers, "lora_te_text_model_encoder_layers_0_self_attn_v_proj": text}
    adapter = dataclasses.replace(strong, layers=layers)
    (hooks,) = run_node("TriLoRASchedule", trilora=adapter, strength=1.0, bands=banded(curve=FLAT))
    with torch.inference_mode():
        (hooked,) = core_nodes["SetClipHooks"]().apply_hooks(demo.clip, False, False, hooks=hooks)
        words = [core_nodes["CLIPTextEncode"]().encode(clip, "a house")[0][0][0] for clip in (demo.clip, hooked)]
    assert apart(words[1], words[0]) > 0.01
