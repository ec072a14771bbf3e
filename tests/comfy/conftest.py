"""The demo model and its pictures, loaded as a graph loads them."""

import importlib
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy
import pytest
import torch

from demo.draw import draw
from demo.world import SceneSpec, caption, held_out_triples

STYLE = "demo: stained_glass"
TRIGGER = "zorvex"


class Demo(NamedTuple):
    """The demo model's three wires."""

    model: Any
    clip: Any
    vae: Any


class Training(NamedTuple):
    """What Train TriLoRA gives."""

    trilora: Any
    loss_map: dict[str, list[torch.Tensor]]
    report: torch.Tensor
    previews: torch.Tensor
    summary: str


@pytest.fixture(scope="session")
def room(pack: Any) -> Callable[[str], ModuleType]:
    """A module of the pack, as ComfyUI has loaded it: `room("nodes.lending")`."""
    train = sys.modules[pack["TriLoRATrain"].__module__].__name__
    return lambda name: importlib.import_module(f"{train.rsplit('.nodes.', 1)[0]}.{name}")


@pytest.fixture(scope="session")
def demo(run_node: Callable[..., tuple[Any, ...]]) -> Demo:
    """The demo model. Tests leave it as it is, and one test says so."""
    return Demo(*run_node("TriLoRADemoModel"))


@pytest.fixture(scope="session")
def dataset(run_node: Callable[..., tuple[Any, ...]]) -> Any:
    """A shipped style, with a trigger word."""
    (data,) = run_node("TriLoRADataset", folder=[STYLE], trigger=[TRIGGER], resolution=[128], bucket_step=[0])
    return data


@pytest.fixture(scope="session")
def watching(run_node: Callable[..., tuple[Any, ...]]) -> Callable[..., Any]:
    """TriLoRA Training Watch with everything off; any input can be set."""

    def watch(**changed: Any) -> Any:
        off = {"held_out_share": 0.0, "previews": {"previews": "off"}, "resume": False, "checkpoint_every": 0}
        rest = {"score_every": 5, "patience": 0, "keep_best": True, "checkpoints": 2}
        return run_node("TriLoRATrainWatch", **{**off, **rest, **changed})[0]

    return watch


@pytest.fixture(scope="session")
def options(pack: dict[str, Any], run_node: Callable[..., tuple[Any, ...]]) -> Callable[..., Any]:
    """TriLoRA Training Options at its defaults; any input can be set."""
    inputs = pack["TriLoRATrainOptions"].define_schema().inputs
    defaults = {each.id: each.default for each in inputs if hasattr(each, "default")}
    defaults |= {"noise_levels": {"noise_levels": "uniform"}, "loss": {"loss": "mse"}}
    return lambda **changed: run_node("TriLoRATrainOptions", **defaults | changed)[0]


@pytest.fixture(scope="session")
def train(
    run_node: Callable[..., tuple[Any, ...]], demo: Demo, dataset: Any, watching: Callable[..., Any]
) -> Callable[..., Training]:
    """Run Train TriLoRA for a few steps on the demo model, unwatched; any input can be set."""

    def run(**changed: Any) -> Training:
        inputs = {
            "dataset": dataset,
            "steps": 6,
            "learning_rate": 2e-3,
            "rank": 4,
            "batch": 2,
            "seed": 7,
            "method": {"method": "trilora", "core": "diagonal", "initialisation": "balanced"},
            "targets": {"targets": "attention"},
            "alpha": 4.0,
            "preserve": 0.0,
            "shrink": 0.0,
            "clip_norm": 1.0,
            "watch": watching(),
        }
        return Training(*run_node("TriLoRATrain", **{**demo._asdict(), **inputs, **changed}))

    return run


@pytest.fixture(scope="session")
def adapter(train: Callable[..., Training]) -> Any:
    """A small trained adapter."""
    return train(steps=8, learning_rate=5e-3).trilora


@pytest.fixture(scope="session")
def unseen(run_node: Callable[..., Any]) -> Any:
    """Pictures in the style, of things, colours and places that neither the base nor the style set ever showed."""
    triples = held_out_triples()[::4][:8]
    specs = [SceneSpec(*triple, scene="meadow", seed=i) for i, triple in enumerate(triples)]
    pixels = [torch.from_numpy(numpy.array(draw(spec, "stained_glass"))).float() / 255 for spec in specs]
    (data,) = run_node(
        "TriLoRADataset", folder=["unused"], trigger=[TRIGGER], resolution=[128], bucket_step=[0],
        images=[torch.stack(pixels)], captions=[caption(spec) for spec in specs],
    )  # fmt: skip
    return data


@pytest.fixture(scope="session")
def held_out_loss(train: Callable[..., Training], unseen: Any) -> Callable[[Any], float]:
    """The loss of first steps, before their correction, on pictures that nothing was trained on, at the same noise."""

    def loss(model: Any) -> float:
        first_steps = [train(model=model, dataset=unseen, steps=1, batch=8, seed=s).loss_map["loss"] for s in range(3)]
        return sum(float(losses[0]) for losses in first_steps) / len(first_steps)

    return loss


@pytest.fixture(scope="session")
def drift(demo: Demo) -> Callable[[Any, str], float]:
    """Mean squared difference of what base and adapted model predict for a prompt, over noise levels."""

    @torch.inference_mode()
    def difference(adapted: Any, words: str) -> float:
        import comfy.model_management as management

        text = demo.clip.encode_from_tokens_scheduled(demo.clip.tokenize(words))[0][0]
        noisy = torch.randn(6, 4, 16, 16, generator=torch.Generator().manual_seed(3))
        times = torch.tensor([50.0, 200.0, 400.0, 600.0, 800.0, 950.0])
        outputs = []
        for model in (demo.model, adapted):
            management.load_models_gpu([model])
            outputs.append(model.model.diffusion_model(noisy, times, context=text.expand(6, -1, -1)).clone())
        management.load_models_gpu([demo.model])
        return float((outputs[0] - outputs[1]).square().mean())

    return difference


@pytest.fixture(autouse=True)
def nothing_unfinished(comfy_base: Path) -> Iterator[None]:
    """What a test broke off is not there for the next."""
    yield
    shutil.rmtree(comfy_base / "models" / "loras" / "unfinished", ignore_errors=True)


@pytest.fixture
def bar(
    comfy: Any, room: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[Callable[[int], None]], None]]:
    """Listen to ComfyUI's progress bar, as its server does: `bar(at_step)` calls back with the steps it tells of."""
    import comfy.utils

    monkeypatch.setattr(room("nodes.progress"), "APART", -1.0)

    def listen(at_step: Callable[[int], None]) -> None:
        comfy.utils.set_progress_bar_global_hook(lambda value, total, preview=None, node_id=None: at_step(value))

    yield listen
    comfy.utils.set_progress_bar_global_hook(None)
