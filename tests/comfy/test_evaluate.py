"""TriLoRA Evaluate in a real ComfyUI: numbers that move the right way, and words where they can't be had."""

import asyncio
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy
import pytest
import torch

from demo.draw import draw
from demo.workflow import node
from demo.world import SceneSpec, all_triples, caption, specs_over
from trilora.metrics import extractors
from trilora.metrics.frechet import Moments, frechet

pytestmark = pytest.mark.comfy
ROOT = Path(__file__).parents[2]
DEMO = {"extractor": ["demo"]}
COUNT = 8


class Measured(NamedTuple):
    """What TriLoRA Evaluate gives."""

    nfid: float
    fid: float
    clip_score: float
    report: str


@pytest.fixture(scope="module")
def specs() -> list[SceneSpec]:
    return specs_over(all_triples(), 2 * COUNT, seed=23)


@pytest.fixture(scope="module")
def plain(specs: list[SceneSpec]) -> torch.Tensor:
    return pictures(specs[:COUNT], None)


@pytest.fixture(scope="module")
def styled(specs: list[SceneSpec]) -> torch.Tensor:
    return pictures(specs[:COUNT], "paper_print")


@pytest.fixture(scope="module")
def real(specs: list[SceneSpec]) -> torch.Tensor:
    return pictures(specs[COUNT:], "paper_print")


@pytest.fixture
def measure(run_node: Callable[..., Any], real: torch.Tensor) -> Callable[..., Measured]:
    """TriLoRA Evaluate against the print's own pictures; every input comes as a list, as ComfyUI gives it."""

    def run(**inputs: Any) -> Measured:
        return Measured(*run_node("TriLoRAEvaluate", **{"real": [real], "extractor": DEMO, "prompts": [""], **inputs}))

    return run


def pictures(specs: list[SceneSpec], style: str | None) -> torch.Tensor:
    return torch.from_numpy(numpy.stack([numpy.asarray(draw(spec, style)) for spec in specs])).float() / 255


def test_the_numbers_are_the_cores_own(
    measure: Callable[..., Measured], plain: torch.Tensor, styled: torch.Tensor, real: torch.Tensor
) -> None:
    found = measure(generated=[styled], base=[plain])
    eye = extractors.demo(ROOT / "demo" / "judge")
    sets = []
    for each in (styled, plain, real):
        sets.append(Moments())
        sets[-1].add(eye.pictures(each))
    fid, base = frechet(sets[0], sets[2]), frechet(sets[1], sets[2])
    assert found.fid == pytest.approx(fid, rel=1e-4)
    assert found.nfid == pytest.approx(fid / base, rel=1e-4)
    assert found.nfid < 0.7
    assert math.isnan(found.clip_score)
    assert "8 pictures are few for 128 features" in found.report


def test_a_batch_and_a_list_of_pictures_are_the_same(measure: Callable[..., Measured], styled: torch.Tensor) -> None:
    one, other = measure(generated=[styled]), measure(generated=[styled[:3], *styled[3:].split(1)])
    assert one.fid == pytest.approx(other.fid, rel=1e-4)
    assert math.isnan(one.nfid)


def test_right_prompts_score_higher_than_wrong_ones(
    measure: Callable[..., Measured], styled: torch.Tensor, specs: list[SceneSpec]
) -> None:
    captions = [caption(spec) for spec in specs[:COUNT]]
    right, wrong = ("\n".join(lines) for lines in (captions, [*captions[1:], captions[0]]))
    assert (
        measure(generated=[styled], prompts=[right]).clip_score
        > measure(generated=[styled], prompts=[wrong]).clip_score
    )
    as_list = measure(generated=[styled], prompts=captions).clip_score
    assert as_list == pytest.approx(measure(generated=[styled], prompts=[right]).clip_score)
    assert measure(generated=[styled], prompts=["a red cat"]).clip_score >= 0


def test_sets_that_can_not_be_compared_are_told(measure: Callable[..., Measured], styled: torch.Tensor) -> None:
    with pytest.raises(Exception, match="3 prompts came with 8 pictures"):
        measure(generated=[styled], prompts=["a red cat\na red house\n\na blue boat"])
    with pytest.raises(Exception, match="0 generated pictures can't be compared"):
        measure(generated=[styled[:0]])
    with pytest.raises(Exception, match="1 base picture can't be compared"):
        measure(generated=[styled], base=[styled[:1]])
    assert "8 generated but 4 base pictures" in measure(generated=[styled], base=[styled[:4] * 0.5]).report


def test_a_network_that_is_not_there_is_told(measure: Callable[..., Measured], styled: torch.Tensor) -> None:
    with pytest.raises(Exception, match="models/clip_vision, press R"):
        measure(generated=[styled], extractor={"extractor": ["clip"], "folder": ["none found"]})
    with pytest.raises(Exception, match="inception_v3_google-0cc3c7bd.pth into models/clip_vision"):
        measure(generated=[styled], extractor={"extractor": ["inception"], "file": ["none found"]})


def test_a_clip_folder_among_the_models_is_offered_and_used(
    measure: Callable[..., Measured], pack: Any, comfy_base: Path, styled: torch.Tensor
) -> None:
    from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

    torch.manual_seed(0)
    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4}
    tokenizer = CLIPTokenizer.from_pretrained(ROOT / "demo" / "base" / "tokenizer")
    words = {"vocab_size": len(tokenizer), "eos_token_id": tokenizer.eos_token_id}
    vision = {**small, "image_size": 64, "patch_size": 32}
    folder = comfy_base / "models" / "clip_vision" / "small-clip"
    CLIPModel(CLIPConfig(text_config={**small, **words}, vision_config=vision, projection_dim=16)).save_pretrained(
        folder
    )
    tokenizer.save_pretrained(folder)
    combo = next(each for each in pack["TriLoRAEvaluate"].define_schema().inputs if each.id == "extractor")
    assert combo.options[1].inputs[0].options == ["small-clip"]
    chosen = {"extractor": ["clip"], "folder": ["small-clip"]}
    found = measure(generated=[styled], prompts=["a red cat"], extractor=chosen)
    assert found.fid > 0
    assert 0 <= found.clip_score <= 100
    assert "clip small-clip" in found.report


def test_core_clip_vision_looks_at_pictures(measure: Callable[..., Measured], styled: torch.Tensor) -> None:
    """ComfyUI's own class with random weights; it can't read, and the report says so."""
    import comfy.clip_vision

    torch.manual_seed(0)
    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = {
        **small,
        "image_size": 64,
        "patch_size": 16,
        "num_channels": 3,
        "projection_dim": 24,
        "hidden_act": "gelu",
    }
    vision = comfy.clip_vision.ClipVisionModel({**config, "model_type": "clip_vision_model", "layer_norm_eps": 1e-5})
    weights = {key: torch.randn_like(value, dtype=torch.float32) * 0.1 for key, value in vision.get_sd().items()}
    vision.load_sd(weights)
    chosen = {"extractor": ["clip vision"], "clip_vision": [vision]}
    found = measure(generated=[styled], prompts=["a red cat"], extractor=chosen)
    assert found.fid > 0
    assert math.isnan(found.clip_score)
    assert "CLIP_VISION can't read" in found.report


def test_it_runs_in_a_graph_with_pictures_in_a_list(core_nodes: Any, pack: Any, comfy_base: Path) -> None:
    """Through ComfyUI's own validation and executor; the FLOAT goes on to another node."""
    from execution import PromptExecutor, validate_prompt
    from server import PromptServer

    for name, style in (("plain", None), ("styled", "paper_print")):
        draw(SceneSpec("cat", "red", "left", "snow"), style).save(comfy_base / "input" / f"{name}.png")
    prompt = {
        "plain": node("LoadImage", image="plain.png"),
        "styled": node("LoadImage", image="styled.png"),
        "both": node("ImageBatch", image1=["plain", 0], image2=["styled", 0]),
        "list": node("RebatchImages", images=["both", 0], batch_size=1),
        "evaluate": node(
            "TriLoRAEvaluate", generated=["list", 0], real=["both", 0], prompts="a red cat", extractor="demo"
        ),
        "shown": node("PreviewAny", source=["evaluate", 1]),
    }
    valid, error, outputs, node_errors = asyncio.run(validate_prompt("evaluate", prompt, None))
    assert valid, (error, node_errors)
    executor = PromptExecutor(PromptServer.instance, cache_args={"lru": 0, "ram": 0, "ram_inactive": 0})
    executor.execute(prompt, "evaluate", {}, outputs)
    assert executor.success, executor.status_messages
    shown = executor.history_result["outputs"]
    assert float(shown["shown"]["text"][0]) == pytest.approx(0, abs=1e-6)
    assert "2 generated, 2 real, 0 base pictures, seen by demo" in shown["evaluate"]["text"][0]


def test_a_prompt_of_a_list_may_have_several_lines(
    measure: Callable[..., Measured], styled: torch.Tensor, specs: list[SceneSpec]
) -> None:
    prompts = [caption(spec) for spec in specs[:2]]
    broken = [prompt.replace(" ", "\n", 1) for prompt in prompts]
    scores = [measure(generated=[styled[:2]], prompts=each).clip_score for each in (prompts, broken)]
    assert scores[0] == scores[1]
