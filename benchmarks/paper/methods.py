"""The methods that are compared: how each one's layers begin. Rank, targets, data, order and noise are the same."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import nn

from trilora.factors import GAUSSIAN_STD, Factors, gaussian, top_singular_values
from trilora.layers import LoRALayer, TriLoRALayer
from trilora.seeds import generator
from trilora.settings import Settings
from trilora.training import create_layers


@dataclass(frozen=True)
class Method:
    """A row: what it is called, what the core is told, and a beginning that the core does not offer, or ""."""

    title: str
    method: str = "trilora"
    core: str = "diagonal"
    initialisation: str = "balanced"
    own: str = ""


METHODS = {
    "lora": Method("LoRA, std 0.02", "lora"),
    "kaiming": Method("LoRA, Kaiming (PEFT)", "lora", own="kaiming"),
    "diffusers": Method("LoRA, std 1/r (diffusers 0.24)", "lora", initialisation="paper"),
    "balanced": Method("TriLoRA balanced"),
    "raw": Method("TriLoRA raw Σ, std 0.02", own="raw"),
    "paper": Method("TriLoRA paper (raw Σ, std 1/r)", initialisation="paper"),
    "full": Method("TriLoRA full core", core="full"),
    "orthogonal": Method("TriLoRA orthogonal", initialisation="orthogonal"),
}


def settings_of(name: str, settings: Settings) -> Settings:
    """The settings with what this method tells the core."""
    method = METHODS[name]
    return replace(settings, method=method.method, core=method.core, initialisation=method.initialisation)


def begin(name: str, modules: Mapping[str, nn.Module], settings: Settings) -> dict[str, nn.Module]:
    """Fresh layers; `settings` are those of `settings_of`."""
    layers = create_layers(modules, settings)
    if not METHODS[name].own:
        return layers
    return {path: _own(METHODS[name].own, module, settings, path) for path, module in modules.items()}


def _own(kind: str, module: nn.Module, settings: Settings, path: str) -> nn.Module:
    """Kaiming: down uniform with bound 1/√in. Raw: the singular values of W0 as they are, not over their RMS."""
    weight, rank, gain = module.weight.detach(), settings.rank, settings.alpha / settings.rank
    out_features, in_features = weight.shape
    draw, up = generator(settings.seed, "adapter", path), torch.zeros(out_features, rank)
    if kind == "kaiming":
        down = (torch.rand(rank, in_features, generator=draw) * 2 - 1) / math.sqrt(in_features)
        return LoRALayer(up, down, gain).to(weight.device)
    sigma = top_singular_values(weight, rank, draw).cpu()
    return TriLoRALayer(Factors(up, sigma, gaussian((rank, in_features), GAUSSIAN_STD, draw)), gain).to(weight.device)
