"""TriLoRA: adapters W = W0 + U Σ Vᵀ for diffusion models, after Feng et al. 2024 (arXiv 2405.11236)."""

from .attach import attached
from .errors import TriLoRAError
from .factors import Factors
from .files import Adapter, load, save

__all__ = ["Adapter", "Factors", "TriLoRAError", "attached", "load", "save"]
