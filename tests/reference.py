"""What a training run has to come to, written with diffusers, transformers and peft alone: nothing of ours is used."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from diffusers import AutoencoderTiny, DDPMScheduler, FlowMatchEulerDiscreteScheduler, UNet2DConditionModel
from diffusers.optimization import get_scheduler
from diffusers.training_utils import compute_snr
from peft import LoraConfig
from torch import Tensor
from torch.nn.functional import mse_loss
from transformers import CLIPTextModel, CLIPTokenizer

TARGETS = ["to_q", "to_k", "to_v", "to_out.0"]
SHIFT = 3.0  # of flow's noise levels, as for SD3


class Draw(NamedTuple):
    """What chance decided for one step: which pictures, their noise (B, C, H, W), their noise levels (B,) in [0, 1)."""

    picked: list[int]
    noise: Tensor
    quantiles: Tensor


class Recipe(NamedTuple):
    """What a user decides."""

    prediction: str  # epsilon, v_prediction or flow
    rank: int
    alpha: float
    learning_rate: float
    weight_decay: float
    clip: float
    preserve: float = 0.0  # λ of the distance to the frozen base
    preserve_every: int = 1  # taken at every how many-th picture of a batch
    min_snr: float = 0.0
    schedule: str = "constant"


class Outcome(NamedTuple):
    """Losses of every step, norms of every gradient before clipping, and layer path -> (up, down) at the end."""

    losses: list[float]
    norms: list[float]
    factors: dict[str, tuple[Tensor, Tensor]]


class Pictures(NamedTuple):
    """Encoded pictures: latents (N, C, h, w) as the UNet wants them, and (N, 77, width) of each kind of caption."""

    latents: Tensor
    prompts: Tensor
    plain: Tensor  # without the trigger word: where the base is to be preserved


def encode(base: Path, pixels: Tensor, prompts: Sequence[str], plain: Sequence[str]) -> Pictures:
    """Pictures (N, H, W, 3) in 0..1 and their captions."""
    vae = AutoencoderTiny.from_pretrained(base / "vae").float()
    tokenizer = CLIPTokenizer.from_pretrained(base / "tokenizer")
    encoder = CLIPTextModel.from_pretrained(base / "text_encoder").float()

    def read(texts: Sequence[str]) -> Tensor:
        ids = tokenizer(list(texts), padding="max_length", max_length=77, return_tensors="pt").input_ids
        return encoder(ids).last_hidden_state

    with torch.no_grad():
        return Pictures(vae.encode(pixels.movedim(-1, 1) * 2 - 1).latents, read(prompts), read(plain))


class Process:
    """The noise process of diffusers' schedulers: what the UNet is shown, and what it should say."""

    def __init__(self, base: Path, prediction: str) -> None:
        self.prediction = prediction
        self.ddpm = DDPMScheduler.from_pretrained(base / "scheduler", prediction_type=prediction)
        self.flow = FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=SHIFT)

    def times(self, quantiles: Tensor) -> Tensor:
        index = (quantiles * 1000).long()
        return self.flow.timesteps.flip(0)[index] if self.prediction == "flow" else index

    def sigmas(self, times: Tensor) -> Tensor:
        """Noise over signal; of flow, the noise's share."""
        if self.prediction == "flow":
            return times / 1000
        kept = self.ddpm.alphas_cumprod[times]
        return ((1 - kept) / kept).sqrt()

    def noisy(self, latents: Tensor, noise: Tensor, times: Tensor) -> Tensor:
        if self.prediction == "flow":
            return self.flow.scale_noise(latents, times, noise)
        return self.ddpm.add_noise(latents, noise, times)

    def target(self, latents: Tensor, noise: Tensor, times: Tensor) -> Tensor:
        if self.prediction == "flow":
            return noise - latents
        return noise if self.prediction == "epsilon" else self.ddpm.get_velocity(latents, noise, times)

    def weights(self, times: Tensor, gamma: float) -> Tensor:
        """min-SNR-γ, as diffusers' training scripts weigh the error of a prediction; 1 without a γ."""
        if not gamma:
            return torch.ones(len(times))
        snr = compute_snr(self.ddpm, times)
        return snr.clamp(max=gamma) / (snr + 1 if self.prediction == "v_prediction" else snr)


def adapted_unet(base: Path, recipe: Recipe, start: Mapping[str, Tensor]) -> tuple[Any, dict[str, Any]]:
    """The UNet with peft's LoRA on its attention, `down` as given and `up` zero; and its LoRA layers by path."""
    unet = UNet2DConditionModel.from_pretrained(base / "unet").float().requires_grad_(False)
    unet.add_adapter(LoraConfig(r=recipe.rank, lora_alpha=recipe.alpha, target_modules=TARGETS))
    layers = {path: module for path, module in unet.named_modules() if hasattr(module, "lora_A")}
    assert layers.keys() == start.keys()
    for path, layer in layers.items():
        layer.lora_A["default"].weight.data.copy_(start[path])
        layer.lora_B["default"].weight.data.zero_()
    return unet, layers


def train(
    base: Path,
    recipe: Recipe,
    start: Mapping[str, Tensor],
    draws: Sequence[Draw],
    pictures: Pictures,
) -> Outcome:
    """One AdamW step a draw."""
    unet, layers = adapted_unet(base, recipe, start)
    process = Process(base, recipe.prediction)
    parameters = [parameter for parameter in unet.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=recipe.learning_rate, weight_decay=recipe.weight_decay)
    schedule = get_scheduler(recipe.schedule, optimizer, num_warmup_steps=0, num_training_steps=len(draws))
    losses, norms = [], []
    for picked, noise, quantiles in draws:
        latents, prompts, plain = (part[picked] for part in pictures)
        times = process.times(quantiles)
        noisy = process.noisy(latents, noise, times)
        said = unet(noisy, times, encoder_hidden_states=prompts).sample
        errors = mse_loss(said, process.target(latents, noise, times), reduction="none").mean((1, 2, 3))
        loss = total = (process.weights(times, recipe.min_snr) * errors).mean()
        if recipe.preserve:
            asked = {"sample": noisy, "timestep": times, "encoder_hidden_states": plain}
            some = {name: value[:: recipe.preserve_every] for name, value in asked.items()}
            with torch.no_grad():
                unet.disable_adapters()
                frozen = unet(**some).sample
                unet.enable_adapters()
            total = loss + recipe.preserve * mse_loss(unet(**some).sample, frozen)
        optimizer.zero_grad()
        total.backward()
        norms.append(float(torch.nn.utils.clip_grad_norm_(parameters, recipe.clip)))
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    factors = {
        path: (layer.lora_B["default"].weight.detach(), layer.lora_A["default"].weight.detach())
        for path, layer in layers.items()
    }
    return Outcome(losses, norms, factors)
