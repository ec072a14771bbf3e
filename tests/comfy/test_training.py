"""Train TriLoRA on the graph's own MODEL: it learns, is repeatable, and leaves the MODEL as it was."""

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from identical import fingerprint, same

pytestmark = pytest.mark.comfy

METHODS = [
    {"method": "trilora", "core": "diagonal", "initialisation": "balanced"},
    {"method": "trilora", "core": "diagonal", "initialisation": "paper"},
    {"method": "trilora", "core": "diagonal", "initialisation": "orthogonal"},
    {"method": "trilora", "core": "full", "initialisation": "balanced"},
    {"method": "lora", "initialisation": "balanced"},
]


def hooks(model: Any) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.model.modules())


@pytest.mark.parametrize("method", METHODS, ids=lambda m: "-".join(m.values()))
def test_the_same_seed_gives_the_same_bits_and_the_model_stays_as_it_was(
    train: Callable[..., Any], demo: Any, method: dict[str, str]
) -> None:
    before = fingerprint(demo.model)
    first, second = train(method=method, steps=3), train(method=method, steps=3)
    assert same(first.trilora, second.trilora)
    assert not same(first.trilora, train(method=method, steps=3, seed=8).trilora)
    assert fingerprint(demo.model) == before
    assert hooks(demo.model) == 0
    assert demo.model.patches == {}


def test_a_cancel_at_step_3_leaves_the_model_as_it_was_and_keeps_what_was_learned(
    train: Callable[..., Any], demo: Any, bar: Callable[..., None], comfy_base: Path, run_node: Callable[..., Any]
) -> None:
    import comfy.model_management as management

    before = fingerprint(demo.model)
    bar(lambda step: step >= 3 and management.interrupt_current_processing())
    with pytest.raises(management.InterruptProcessingException):
        train(steps=50)
    assert fingerprint(demo.model) == before
    assert hooks(demo.model) == 0
    (kept,) = (comfy_base / "models" / "loras" / "unfinished").glob("*.safetensors")
    _, adapter, *_ = run_node("TriLoRALoad", model=demo.model, file=f"unfinished/{kept.name}", strength=1.0)
    assert any(factors.sigma.max() > 0 for factors in adapter.layers.values())
    assert json.loads(adapter.metadata["trilora.settings"])["seed"] == 7


def test_an_error_at_step_3_leaves_the_model_as_it_was(
    train: Callable[..., Any], demo: Any, bar: Callable[..., None]
) -> None:
    def fail(step: int) -> None:
        if step >= 3:
            raise OSError("the lights went out")

    before = fingerprint(demo.model)
    bar(fail)
    with pytest.raises(OSError, match="lights"):
        train(steps=50)
    assert fingerprint(demo.model) == before
    assert hooks(demo.model) == 0


def test_a_rank_too_large_names_the_layer(train: Callable[..., Any]) -> None:
    with pytest.raises(Exception, match=r"Rank 512 .*attn1\.to_q.* holds ranks 1 to"):
        train(rank=512)


def test_targets_choose_the_layers(train: Callable[..., Any]) -> None:
    cross = train(steps=1, targets={"targets": "cross-attention"}).trilora.layers
    assert cross
    assert all("_attn2_" in name for name in cross)
    values = train(steps=1, targets={"targets": "pattern", "pattern": "*.attn1.to_v"}).trilora.layers
    assert values
    assert all(name.endswith("_attn1_to_v") for name in values)


def test_every_attention_layer_learns_by_default(train: Callable[..., Any], demo: Any) -> None:
    layers = train(steps=2).trilora.layers
    attention = [n for n, m in demo.model.model.diffusion_model.named_modules() if n.endswith((".attn1", ".attn2"))]
    assert len(layers) == 4 * len(attention)
    assert all(factors.sigma[0] > 0 for factors in layers.values())


def test_the_loss_is_the_models_own_at_the_first_step(train: Callable[..., Any]) -> None:
    """At step 1 nothing is learned yet: every method starts from the base's own eps loss."""
    losses = [float(train(steps=1, method=method).loss_map["loss"][0]) for method in METHODS]
    assert max(losses) - min(losses) < 1e-6
    assert 0.001 < losses[0] < 1.5


def test_each_caption_stays_with_its_picture(
    train: Callable[..., Any], run_node: Callable[..., Any], dataset: Any
) -> None:
    pixels = [picture.pixels((128, 128)) for picture in dataset.pictures[:2]]

    def loss(captions: list[str]) -> float:
        (data,) = run_node(
            "TriLoRADataset", folder=["unused"], trigger=[""], resolution=[128], bucket_step=[0],
            images=[torch.stack(pixels)], captions=captions,
        )  # fmt: skip
        return float(train(dataset=data, steps=1, batch=2).loss_map["loss"][0])

    captions = [picture.caption for picture in dataset.pictures[:2]]
    assert captions[0] != captions[1]
    assert loss(captions) != loss(captions[::-1])


def test_preservation_shows_both_losses_and_needs_a_trigger(
    train: Callable[..., Any], run_node: Callable[..., Any], dataset: Any
) -> None:
    plain, kept = train(steps=3), train(steps=3, preserve=0.3)
    assert not same(plain.trilora, kept.trilora)
    assert plain.loss_map["loss"][0] == kept.loss_map["loss"][0]
    (untriggered,) = run_node(
        "TriLoRADataset", folder=["demo: stained_glass"], trigger=[""], resolution=[128], bucket_step=[0]
    )
    off = train(steps=3, dataset=untriggered, preserve=0.0)
    assert same(off.trilora, train(steps=3, dataset=untriggered, preserve=0.3).trilora)


def test_training_copies_no_base(train: Callable[..., Any], demo: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A MODEL padded with 600 MB of ballast, which a copy of it would have to carry, is trained in far less."""
    ballast = torch.ones(150_000_000)
    network = demo.model.model.diffusion_model
    network.register_parameter("ballast", torch.nn.Parameter(ballast, requires_grad=False))
    try:
        with Peak() as peak:
            train(steps=2)
    finally:
        del network.ballast
    assert peak.grown < 450e6


class Peak:
    """The most memory that this process held within the block, above what it held before."""

    def __enter__(self) -> "Peak":
        self.process = psutil.Process()
        self.before, self.most, self.running = self.process.memory_info().rss, 0, True
        self.watcher = threading.Thread(target=self.watch, daemon=True)
        self.watcher.start()
        return self

    def watch(self) -> None:
        while self.running:
            self.most = max(self.most, self.process.memory_info().rss)
            time.sleep(0.005)

    def __exit__(self, *_: object) -> None:
        self.running = False
        self.watcher.join()
        self.grown = self.most - self.before
