"""Every model family learns: two steps on a shrunken network of ComfyUI's own class, as its loaders leave it."""

import importlib
import logging
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path
from types import FrameType, SimpleNamespace
from typing import Any

import pytest
import shrunken
import torch

pytestmark = pytest.mark.comfy

CALLED_OTHERWISE = r"single_blocks\.\d+\.linear[12]|blocks\.\d+\.([qkv]|attn_out)"  # Flux's fused layers, CogVideoX


@pytest.fixture(scope="module")
def parts(pack: Any) -> SimpleNamespace:
    """The modules of the pack, as ComfyUI loaded them."""
    package = pack["TriLoRATrain"].__module__.rsplit(".", 2)[0]
    names = {
        "nodes": ("denoiser", "lending", "patching"),
        "trilora": ("attach", "families", "files", "objective", "targets", "training"),
    }
    return SimpleNamespace(
        **{name: importlib.import_module(f"{package}.{room}.{name}") for room in names for name in names[room]}
    )


@pytest.fixture(scope="module", params=shrunken.NETWORKS)
def run(request: pytest.FixtureRequest, parts: SimpleNamespace) -> "Run":
    """One family after two steps of training."""
    return Run(shrunken.NETWORKS[request.param], parts)


class Run:
    """Two steps of training, and what was seen before, during and after."""

    def __init__(self, network: shrunken.Shrunken, parts: SimpleNamespace) -> None:
        self.network, self.parts = network, parts
        self.model = shrunken.model(network)
        self.root = self.model.model.diffusion_model
        self.before = weights(self.root)
        self.chosen = parts.targets.select(self.root, "attention + mlp")
        settings = parts.training.Settings(rank=2, steps=2, batch=2, preserve=0.3, learning_rate=1e-2, seed=3)
        with parts.lending.lent(self.model) as patcher:
            self.denoiser = parts.denoiser.ComfyDenoiser(patcher)
            self.examples = [self.example(seed) for seed in range(2)]
            with attention_functions() as self.attention:
                self.predicted = self.prediction().detach()
            pictures = [(example,) for example in self.examples]
            self.layers = parts.training.create_layers(self.chosen, settings)
            with parts.attach.attached(self.root, self.layers) as switch:
                steps = parts.training.train(self.denoiser, self.layers, switch, pictures, settings)
                self.steps = list(steps)
                self.slopes = self.slope()
        self.after = weights(self.root)

    def example(self, seed: int) -> Any:
        latent = torch.randn(self.network.latent, generator=torch.Generator().manual_seed(seed))
        caption, plain = (shrunken.conditioning(self.network, seed + other) for other in (0, 100))
        encode = self.denoiser.encode
        return self.parts.objective.Example(latent, encode(caption, latent), encode(plain, latent))

    def noisy(self) -> tuple[Any, ...]:
        """Two noisy latents, their noise levels and conditions."""
        latents = torch.stack([example.latent for example in self.examples])
        noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(9))
        levels = self.denoiser.levels(torch.tensor([0.3, 0.7]))
        conditions = [example.condition for example in self.examples]
        return self.denoiser.noised(latents, noise, levels), levels, conditions, latents

    def prediction(self) -> torch.Tensor:
        """What training sees of the network."""
        noisy, levels, conditions, _ = self.noisy()
        return self.denoiser.denoised(noisy, levels, conditions)

    def slope(self) -> tuple[float, float]:
        """How fast the loss falls along its gradient: as autograd has it, and measured."""
        parameters = [p for layer in self.layers.values() for p in layer.parameters()]

        def loss() -> torch.Tensor:
            return self.parts.objective.distances(self.denoiser, *self.noisy()).mean()

        gradient = torch.autograd.grad(loss(), parameters, allow_unused=True)
        moved = [(p, g) for p, g in zip(parameters, gradient, strict=True) if g is not None]
        norm = float(sum(g.square().sum() for _, g in moved)) ** 0.5
        step = 2e-3 / norm
        with torch.no_grad():
            losses = []
            for amount in (step, -2 * step, step):  # there, to the other side, and back
                for p, g in moved:
                    p += amount * g
                losses.append(float(loss()))
        return norm, (losses[0] - losses[1]) / (2 * step * norm)

    def adapter(self) -> Any:
        names = self.parts.patching.portable_names(self.model, self.layers)
        factors = self.parts.training.learned(self.layers)
        return self.parts.files.Adapter({names[path]: value for path, value in factors.items()}, {})


@contextmanager
def attention_functions() -> Iterator[set[str]]:
    """Names of ComfyUI's attention functions that are called within the block."""
    called: set[str] = set()

    def watch(frame: FrameType, event: str, _argument: Any) -> None:
        code = frame.f_code
        if event == "call" and code.co_name.startswith("attention_") and code.co_filename.endswith("attention.py"):
            called.add(code.co_name)

    sys.setprofile(watch)
    try:
        yield called
    finally:
        sys.setprofile(None)


def weights(root: torch.nn.Module) -> dict[str, tuple[torch.nn.Parameter, torch.Tensor]]:
    """Every parameter: the object itself, and a copy of its bits."""
    return {name: (p, p.detach().clone()) for name, p in root.named_parameters()}


def test_attention_is_every_layer_of_a_block_that_is_called_so(run: Run) -> None:
    targets, family = run.parts.targets, run.parts.families.family_of(run.parts.targets.linear_layers(run.root))
    chosen = set(targets.select(run.root, "attention"))
    within = {p for p in targets.linear_layers(run.root) if p.split(".")[0] in family.blocks}
    called = {path for path in within if re.search("att", path) and "modulation" not in path}
    assert called
    assert called - chosen == set()
    assert [path for path in chosen & within - called if not re.fullmatch(CALLED_OTHERWISE, path)] == []


def test_two_steps_are_made_and_leave_the_models_bits(run: Run) -> None:
    losses = [step.loss for step in run.steps] + [step.preservation for step in run.steps]
    assert len(losses) == 4
    assert all(loss == loss and abs(loss) < 100 for loss in losses)
    assert run.steps[1].preservation > 0
    assert all(
        now is parameter and now.is_inference() and torch.equal(bits, copy)
        for (parameter, copy), (now, bits) in zip(run.before.values(), run.after.values(), strict=True)
    )


def test_every_chosen_layer_learns_but_those_whose_output_goes_nowhere(run: Run) -> None:
    learned = run.parts.training.learned(run.layers)
    unmoved = {path for path, factors in learned.items() if not factors.sigma.max() > 0}
    silent = {path for path in learned if any(fnmatchcase(path, pattern) for pattern in run.network.silent)}
    assert unmoved == silent


def test_training_sees_the_network_that_samples(run: Run) -> None:
    from comfy.samplers import cond_cat

    with torch.inference_mode():
        noisy, levels, conditions, _ = run.noisy()
        inputs = cond_cat(conditions)
        options = {"cond_or_uncond": [0], "sigmas": levels}
        sampled = run.model.model.apply_model(noisy, levels, transformer_options=options, **inputs)
    torch.testing.assert_close(run.predicted, sampled.clone(), rtol=1e-3, atol=1e-4)


def test_attention_is_torchs_own(run: Run) -> None:
    """Others may have no backward, or depend on how much memory is free."""
    assert run.attention == {"attention_pytorch"}


def test_the_gradient_is_the_slope_of_the_loss(run: Run) -> None:
    """In-place sums and fused kernels could make it silently wrong."""
    computed, measured = run.slopes
    assert measured == pytest.approx(computed, rel=0.01)


def test_the_file_loads_in_core_and_gives_the_same_weights(
    run: Run, comfy: Any, comfy_base: Path, run_node: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    from comfy.lora import calculate_weight

    (name,) = run_node("TriLoRASave", trilora=run.adapter(), filename="shrunken", precision="float32")
    with caplog.at_level(logging.WARNING), torch.inference_mode():
        (theirs,) = comfy.NODE_CLASS_MAPPINGS["LoraLoaderModelOnly"]().load_lora_model_only(run.model, name, 1.0)
    assert caplog.messages == []
    ours, *_ = run_node("TriLoRALoad", model=run.model, file=name, strength=1.0)
    (comfy_base / "models" / "loras" / name).unlink()
    assert len(ours.patches) == len(run.chosen)
    assert ours.patches.keys() == theirs.patches.keys()
    for key in ours.patches:
        weight = run.model.model.state_dict()[key]
        mine, core = (calculate_weight(m.patches[key], weight.clone(), key) for m in (ours, theirs))
        torch.testing.assert_close(mine, core, rtol=1e-4, atol=1e-6)
