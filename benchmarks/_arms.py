"""What steps are timed of: the floor, our training, core's trainer, and diffusers with peft, on the same weights."""

import contextlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks._comfyui import ComfyUI
from benchmarks._measure import Clock
from devkit import ROOT

RANK, ALPHA, RATE = 16, 8.0, 1e-4
STEPS = 3  # in a turn; the first warms up what the arm before it left cold, and is not counted
TARGETS = ["to_q", "to_k", "to_v", "to_out.0"]
CORE = {
    "grad_accumulation_steps": 1, "learning_rate": RATE, "rank": RANK, "optimizer": "AdamW", "loss_function": "MSE",
    "seed": 0, "training_dtype": "fp32", "lora_dtype": "fp32", "quantized_backward": False, "algorithm": "LoRA",
    "gradient_checkpointing": True, "checkpoint_depth": 1, "offloading": False, "existing_lora": "[None]",
    "bucket_mode": False, "bypass_mode": False,
}  # fmt: skip
"""Core's own defaults, but for the rank and for float32 in bfloat16's place, which most processors only emulate."""

DEMO = json.loads((ROOT / "demo" / "base" / "unet" / "config.json").read_text())


@dataclass
class Bed:
    """A MODEL and random pictures to train it on: what every arm shares.

    Attributes:
        ui: ComfyUI.
        model: the graph's MODEL.
        side: of the latents.
        batch: pictures a step.
        diffusers: arguments of the `UNet2DConditionModel` with the same weights.
    """

    ui: ComfyUI
    model: Any
    side: int
    batch: int
    clock: Clock
    diffusers: dict[str, Any]
    latents: Tensor = field(init=False)  # (batch, 4, side, side)
    texts: Tensor = field(init=False)  # (batch, 77, width)
    pooled: Tensor | None = field(init=False, default=None)  # (batch, 1280), where the network wants it

    def __post_init__(self) -> None:
        draw = torch.Generator().manual_seed(0)
        about = self.model.model.model_config.unet_config
        width = about["context_dim"]
        self.latents = torch.randn(self.batch, 4, self.side, self.side, generator=draw)
        self.texts = torch.randn(self.batch, 77, width, generator=draw)
        if about.get("adm_in_channels"):
            self.pooled = torch.randn(self.batch, 1280, generator=draw)
        ordinary(self.model.model)

    def timed(self, step: Callable[[], object]) -> list[float]:
        """Seconds of every step of a turn but the first."""
        return [self.clock(step) for _ in range(STEPS)][1:]

    @property
    def conditioning(self) -> list[list]:
        """Each picture's caption as a graph hands it on."""
        beside = [{}] * self.batch if self.pooled is None else [{"pooled_output": row[None]} for row in self.pooled]
        return [[[text[None], about]] for text, about in zip(self.texts, beside, strict=True)]

    @property
    def dtype(self) -> torch.dtype:
        return self.model.model.get_dtype_inference()

    @property
    def network(self) -> nn.Module:
        return self.model.model.diffusion_model

    @property
    def device(self) -> torch.device:
        return self.model.load_device


def ordinary(root: nn.Module) -> None:
    """Weights that a loader made under inference mode, as ordinary ones over the same memory."""
    for module in root.modules():
        for name, weight in module._parameters.items():
            if weight is not None:
                view = torch.empty(0, dtype=weight.dtype, device=weight.device)
                view.set_(weight.untyped_storage(), weight.storage_offset(), weight.shape, weight.stride())
                module._parameters[name] = nn.Parameter(view, False)


class Floor:
    """The frozen network forward, and backward to its input: what no training of its layers can do without."""

    def __init__(self, bed: Bed) -> None:
        self.bed = bed
        attention = bed.ui.module("nodes.denoiser")._attention
        self.options = {"optimized_attention_override": attention}

    def turn(self) -> list[float]:
        import comfy.model_management

        bed = self.bed
        comfy.model_management.load_models_gpu([bed.model])
        noisy = bed.latents.to(bed.device, bed.dtype, copy=True).requires_grad_()
        times = torch.full((bed.batch,), 500.0, device=bed.device)
        texts = bed.texts.to(bed.device, bed.dtype)
        vector = None if bed.pooled is None else torch.zeros(bed.batch, 2816, device=bed.device, dtype=bed.dtype)

        def step() -> None:
            estimate = bed.network(noisy, times, context=texts, y=vector, transformer_options=self.options)
            estimate.square().mean().backward()

        return bed.timed(step)


class DiffusersFloor:
    """The same of diffusers' UNet over the same weights."""

    def __init__(self, bed: Bed) -> None:
        self.bed, self.unet = bed, diffusers_unet(bed)

    def turn(self) -> list[float]:
        bed = self.bed
        noisy = bed.latents.to(bed.device, bed.dtype, copy=True).requires_grad_()
        texts = bed.texts.to(bed.device, bed.dtype)
        return bed.timed(lambda: self.unet(noisy, 500, encoder_hidden_states=texts).sample.square().mean().backward())


class Ours:
    """A step of our training, in the very pieces that the node puts together."""

    def __init__(self, bed: Bed, method: str = "trilora", checkpointing: bool = False, **changed: Any) -> None:
        self.bed, self.checkpointing = bed, checkpointing
        self.lending, self.attach = bed.ui.module("nodes.lending"), bed.ui.module("trilora.attach")
        denoising, learning = bed.ui.module("nodes.denoiser"), bed.ui.module("trilora.training")
        example = bed.ui.module("trilora.objective").Example
        about = {"rank": RANK, "alpha": ALPHA, "learning_rate": RATE, "steps": 10**6} | changed
        settings = bed.ui.module("trilora.settings").Settings(method=method, batch=bed.batch, **about)
        modules = bed.ui.module("trilora.targets").select(bed.network, settings.targets)
        with self.lending.lent(bed.model) as patcher:
            denoiser = denoising.ComfyDenoiser(patcher, settings.precision)
            pictures = [
                (example(latent.to(bed.device), denoiser.encode(conditioning, latent)),)
                for latent, conditioning in zip(bed.latents, bed.conditioning, strict=True)
            ]
            layers = learning.create_layers(modules, settings, device=bed.device)
            self.training = learning.Training(denoiser, layers, self.attach.Switch(), pictures, settings)

    def turn(self) -> list[float]:
        bed, training = self.bed, self.training
        with (
            self.lending.lent(bed.model, checkpointing=self.checkpointing),
            self.attach.attached(bed.network, training.layers) as training.switch,
        ):
            return bed.timed(training.step)


class Core:
    """Core's TrainLoraNode, run whole each turn; its steps are told apart by its optimizer's."""

    def __init__(self, bed: Bed, **changed: Any) -> None:
        self.bed, self.changed = bed, changed

    def turn(self) -> list[float]:
        return self.run(STEPS)

    def run(self, steps: int) -> list[float]:
        """Seconds of every step but the first."""
        bed, marks = self.bed, []
        inputs = {"model": bed.model, "steps": steps, "batch_size": bed.batch, **CORE, **self.changed}
        latents = [{"samples": latent[None]} for latent in bed.latents]
        with after_each_step(lambda: marks.append(bed.clock.now())), quiet_bar(), torch.inference_mode():
            bed.ui.nodes["TrainLoraNode"].execute(
                **{name: [value] for name, value in inputs.items()}, latents=latents, positive=bed.conditioning
            )
        return [b - a for a, b in zip(marks, marks[1:], strict=False)]


class Peft:
    """diffusers' UNet over the same weights with peft's LoRA on the same layers, trained as its scripts do."""

    def __init__(self, bed: Bed, compiled: bool = False) -> None:
        from peft import LoraConfig

        self.bed, self.unet = bed, diffusers_unet(bed)
        self.unet.add_adapter(LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=TARGETS))
        self.learning = [p for p in self.unet.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(self.learning, lr=RATE)
        self.run = torch.compile(self.unet) if compiled else self.unet

    def turn(self) -> list[float]:
        return self.bed.timed(self.step)

    def step(self) -> None:
        bed = self.bed
        latents, texts = bed.latents.to(bed.device), bed.texts.to(bed.device)
        noise, times = torch.randn_like(latents), torch.randint(0, 1000, (bed.batch,), device=bed.device)
        about = {}
        if bed.pooled is not None:
            sizes = torch.zeros(bed.batch, 6, device=bed.device)
            about["added_cond_kwargs"] = {"text_embeds": bed.pooled.to(bed.device), "time_ids": sizes}
        with torch.autocast(bed.device.type, bed.dtype, enabled=bed.dtype != torch.float32):
            said = self.run(latents + noise, times, encoder_hidden_states=texts, **about).sample
        loss = (said.float() - noise).square().mean()
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.learning, 1.0)
        self.optimizer.step()
        loss.item()


def diffusers_unet(bed: Bed) -> Any:
    """diffusers' UNet whose weights are ComfyUI's own, in the same memory."""
    import comfy.utils
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        unet = UNet2DConditionModel(**bed.diffusers)
    weights = bed.network.state_dict()
    names = comfy.utils.unet_to_diffusers(bed.model.model.model_config.unet_config)
    meant = unet.state_dict()
    shaped = {outer: weights[inner] for outer, inner in names.items() if inner in weights and outer in meant}
    unet.load_state_dict({k: w.reshape(meant[k].shape) for k, w in shaped.items()}, assign=True)
    return unet.to(bed.device).requires_grad_(False).train()


@contextlib.contextmanager
def after_each_step(tell: Callable[[], None]) -> Any:
    """Within the block, `tell` is called when any optimizer has made a step."""
    from torch.optim.optimizer import register_optimizer_step_post_hook

    handle = register_optimizer_step_post_hook(lambda *_: tell())
    try:
        yield
    finally:
        handle.remove()


@contextlib.contextmanager
def quiet_bar() -> Any:
    import comfy.utils

    before, comfy.utils.PROGRESS_BAR_ENABLED = comfy.utils.PROGRESS_BAR_ENABLED, False
    try:
        yield
    finally:
        comfy.utils.PROGRESS_BAR_ENABLED = before
