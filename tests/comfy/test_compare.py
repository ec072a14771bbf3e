"""TriLoRA Compare: the right picture in the right cell, progress, and cancel."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch

pytestmark = pytest.mark.comfy

SIDE, STEPS = 128, 2
PROMPT = "a red house on the left in a meadow"


@pytest.fixture(scope="module")
def compare(run_node: Callable[..., Any], demo: Any, adapter: Any) -> Callable[..., torch.Tensor]:
    """Run TriLoRA Compare on the demo model in two steps a picture; any input can be set."""

    def run(**changed: Any) -> torch.Tensor:
        inputs = {
            "adapters": {"trilora_0": adapter},
            "prompts": PROMPT,
            "seeds": "5",
            "compare": {"compare": "strengths", "strengths": "0, 1"},
            "steps": STEPS,
            "cfg": 3.5,
            "width": SIDE,
            "height": SIDE,
            "negative": "",
            "sampler": "euler",
            "scheduler": "normal",
            "cell": 512,
        }
        (grid,) = run_node("TriLoRACompare", **{**demo._asdict(), **inputs, **changed})
        return grid

    return run


@pytest.fixture(scope="module")
def picture(run_node: Callable[..., Any], core_nodes: dict[str, Any], demo: Any, adapter: Any) -> Callable:
    """The picture of a plain graph: Apply TriLoRA, TriLoRA Strength, KSampler."""

    @functools.cache
    @torch.inference_mode()
    def run(strength: float, k: int = 1024, seed: int = 5, prompt: str = PROMPT) -> torch.Tensor:
        (model,) = run_node("TriLoRAApply", model=demo.model, trilora=adapter, strength=strength)
        (model,) = run_node("TriLoRAStrength", model=model, strength=1.0, keep={"keep": "top k", "k": k})
        encode = core_nodes["CLIPTextEncode"]().encode
        (latent,) = core_nodes["EmptyLatentImage"]().generate(SIDE, SIDE)
        words = [encode(demo.clip, text)[0] for text in (prompt, "")]
        (latent,) = core_nodes["KSampler"]().sample(model, seed, STEPS, 3.5, "euler", "normal", *words, latent)
        return core_nodes["VAEDecode"]().decode(demo.vae, latent)[0][0]

    return run


def place(grid: torch.Tensor, wanted: torch.Tensor) -> tuple[int, int]:
    """Row and column of a picture on a grid, in pixels; where it is not, the test fails."""
    sheet, small = ((tensor.clamp(0, 1) * 255).round() for tensor in (grid[0], wanted))
    rows, columns = (size - SIDE + 1 for size in sheet.shape[:2])
    fits = torch.ones(rows, columns, dtype=torch.bool)
    for y, x in ((0, 0), (40, 90), (64, 64), (100, 20), (127, 127)):
        fits &= (sheet[y : y + rows, x : x + columns] - small[y, x]).abs().amax(-1) <= 1
    for y, x in fits.nonzero().tolist():
        if (sheet[y : y + SIDE, x : x + SIDE] - small).abs().max() <= 1:
            return y, x
    pytest.fail("the picture is not on the grid")


def test_prompts_and_seeds_go_down_and_strengths_across(compare: Callable, picture: Callable) -> None:
    other = "a blue cat on the right at night"
    grid = compare(prompts=f"{PROMPT}\n\n  {other}  \n", seeds="5, 6")
    rows = [(PROMPT, 5), (PROMPT, 6), (other, 5), (other, 6)]
    places = [[place(grid, picture(s, seed=seed, prompt=p)) for s in (0.0, 1.0)] for p, seed in rows]
    tops, lefts = [row[0][0] for row in places], [corner[1] for corner in places[0]]
    assert tops == sorted(set(tops))
    assert lefts[0] < lefts[1]
    assert all([corner[1] for corner in row] == lefts for row in places)
    assert all(row[0][0] == row[1][0] for row in places)


def test_top_k_shows_the_base_the_first_values_and_the_whole(compare: Callable, picture: Callable) -> None:
    grid = compare(compare={"compare": "top k", "k": "1, 2"})
    found = [place(grid, picture(*how)) for how in ((0.0,), (1.0, 1), (1.0, 2), (1.0,))]
    assert [x for _, x in found] == sorted(x for _, x in found)
    assert len({y for y, _ in found}) == 1


def test_the_first_band_is_the_top_k_of_its_width(compare: Callable, picture: Callable) -> None:
    grid = compare(compare={"compare": "bands", "count": 2, "edges": "1", "strength": 1.5})
    columns = [place(grid, picture(*how))[1] for how in ((0.0,), (1.5, 1), (1.0,))]
    assert columns == sorted(columns)
    assert columns[2] - columns[1] > 1.5 * (columns[1] - columns[0]), "the second band stands between"


def test_several_adapters_stand_side_by_side_or_below_each_other(
    compare: Callable, picture: Callable, adapter: Any
) -> None:
    half = {name: factors._replace(sigma=factors.sigma / 2) for name, factors in adapter.layers.items()}
    both = {"trilora_0": adapter, "trilora_1": dataclasses.replace(adapter, layers=half)}
    beside = compare(adapters=both, compare={"compare": "adapters", "strength": 1.0})
    columns = [place(beside, picture(strength)) for strength in (0.0, 1.0, 0.5)]
    assert [x for _, x in columns] == sorted(x for _, x in columns)
    below = compare(adapters=both, compare={"compare": "strengths", "strengths": "1"})
    assert place(below, picture(1.0))[0] < place(below, picture(0.5))[0]


def test_layers_of_the_text_encoder_act_too(compare: Callable, adapter: Any) -> None:
    name, factors = "lora_te_text_model_encoder_layers_0_self_attn_v_proj", next(iter(adapter.layers.values()))
    size = 128
    strong = type(factors)(torch.randn(size, 2), torch.ones(2), torch.randn(2, size))
    text = dataclasses.replace(adapter, layers={name: strong})
    grid = compare(adapters={"trilora_0": text})[0]
    half = grid.shape[1] // 2
    assert (grid[-SIDE:, :half] - grid[-SIDE:, -half:]).abs().mean() > 0.01


def test_the_bar_counts_every_step_and_shows_every_picture(compare: Callable, comfy: Any) -> None:
    import comfy.utils

    told: list[tuple[int, int, bool]] = []
    hook = lambda value, total, preview=None, node_id=None: told.append((value, total, preview is not None))  # noqa: E731
    comfy.utils.set_progress_bar_global_hook(hook)
    try:
        compare(seeds="1, 2")
    finally:
        comfy.utils.set_progress_bar_global_hook(None)
    assert [value for value, _, shown in told if shown] == [2, 4, 6, 8]
    assert {total for _, total, _ in told} == {8}
    assert [value for value, _, _ in told] == sorted(value for value, _, _ in told)


def test_cancel_ends_it_within_a_picture_and_leaves_the_model(
    compare: Callable, demo: Any, bar: Callable[[Callable[[int], None]], None]
) -> None:
    from comfy.model_management import InterruptProcessingException

    def cancel(step: int) -> None:
        seen.append(step)
        if step >= 3:
            raise InterruptProcessingException

    seen: list[int] = []
    before, patches = demo.model.patches_uuid, dict(demo.model.patches)
    bar(cancel)
    with pytest.raises(InterruptProcessingException):
        compare(seeds="1, 2, 3")
    assert max(seen) <= 4
    assert demo.model.patches == patches
    assert demo.model.patches_uuid == before


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"prompts": " \n "}, "no prompt. Write at least one line"),
        ({"seeds": "one"}, "seeds holds 'one'. Write whole numbers"),
        ({"compare": {"compare": "strengths", "strengths": ""}}, "strengths holds ''"),
        ({"compare": {"compare": "bands", "count": 9, "edges": "", "strength": 1.0}}, "no bands of 4 singular values"),
    ],
)
def test_what_cannot_be_drawn_is_told_before_the_first_step(
    compare: Callable, bar: Callable[[Callable[[int], None]], None], changed: dict[str, Any], words: str
) -> None:
    steps: list[int] = []
    bar(steps.append)
    with pytest.raises(Exception, match=words):
        compare(**changed)
    assert not steps
