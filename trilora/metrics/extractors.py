"""Networks that turn pictures and prompts into the features that FID and CLIP score compare. Nothing is downloaded."""

import pickle
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

from ..errors import DataError, FileError
from . import judge

BATCH = 32
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


class Extractor(Protocol):
    """Features of pictures, and of prompts in the same space where `texts` is not None.

    Attributes:
        name: what reports call it.
        dimensions: D, the features of a picture.
        texts: N prompts -> (N, D), or None where the network cannot read.
    """

    name: str
    dimensions: int
    texts: Callable[[Sequence[str]], Tensor] | None

    def pictures(self, images: Tensor) -> Tensor:
        """(N, H, W, 3) in 0..1 -> (N, D), float32 on the CPU; the same picture gives the same row in any batch."""
        ...


class Network:
    """An `Extractor` of a function on pixels (N, 3, H, W) in 0..1, with or without one on prompts."""

    def __init__(
        self,
        name: str,
        dimensions: int,
        see: Callable[[Tensor], Tensor],
        read: Callable[[list[str]], Tensor] | None = None,
        device: str | torch.device = "cpu",
    ) -> None:
        self.name, self.dimensions, self._see, self._device = name, dimensions, see, device
        self.texts = None if read is None else lambda prompts: self._read(read, prompts)

    @torch.no_grad()
    def pictures(self, images: Tensor) -> Tensor:
        if images.ndim != 4 or images.shape[-1] < 3 or not len(images):
            raise DataError(
                f"Pictures of shape {tuple(images.shape)} can't be looked at. Give some, as (N, height, width, 3)."
            )
        parts = torch.split(images[..., :3].movedim(-1, 1), BATCH)
        return torch.cat([self._see(part.to(self._device, torch.float32).clamp(0, 1)).cpu().float() for part in parts])

    @torch.no_grad()
    def _read(self, read: Callable[[list[str]], Tensor], prompts: Sequence[str]) -> Tensor:
        parts = [list(prompts[at : at + BATCH]) for at in range(0, len(prompts), BATCH)]
        return torch.cat([read(part).cpu().float() for part in parts]) if parts else torch.zeros(0, self.dimensions)


def demo(folder: Path, device: str | torch.device = "cpu") -> Network:
    """The drawn world's own extractor: 128 features of `Judge`; it reads the words of that world alone.

    Raises:
        FileError: the folder does not hold it.
    """
    network = judge.load(folder)
    words = judge.WordSide(network)
    network.to(device)
    return Network("demo", 128, lambda x: network.features(_fitted(x, 128) * 2 - 1), words, device)


def clip(folder: Path, device: str | torch.device = "cpu") -> Network:
    """A transformers CLIP in a local folder, such as a copy of openai/clip-vit-large-patch14.

    Its features are the projected embeddings of pictures and prompts; a prompt is cut after 77 tokens.

    Raises:
        FileError: transformers is missing, or the folder holds no whole CLIP.
    """
    transformers = _package("transformers")
    try:
        model = transformers.CLIPModel.from_pretrained(folder, local_files_only=True)
        tokens = transformers.CLIPTokenizerFast.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise FileError(
            f"{folder} holds no whole CLIP ({error}). It needs config.json, model.safetensors and the tokenizer's "
            "files: copy the whole folder of openai/clip-vit-base-patch32 or another CLIP there."
        ) from error
    model.to(device, torch.float32).eval().requires_grad_(False)
    side, limit = model.config.vision_config.image_size, model.config.text_config.max_position_embeddings

    def see(x: Tensor) -> Tensor:
        pixels = _normalised(_fitted(x, side, "bicubic").clamp(0, 1), CLIP_MEAN, CLIP_STD)
        features: Tensor = model.visual_projection(model.vision_model(pixel_values=pixels).pooler_output)
        return features

    def read(prompts: list[str]) -> Tensor:
        words = tokens(prompts, padding=True, truncation=True, max_length=limit, return_tensors="pt").to(device)
        features: Tensor = model.text_projection(model.text_model(**words).pooler_output)
        return features

    return Network(f"clip {folder.name}", model.config.projection_dim, see, read, device)


def inception(file: Path, device: str | torch.device = "cpu") -> Network:
    """torchvision's Inception v3 from its weight file: the 2048 pooled features. It has no text side.

    These are not the weights that published FIDs use, so compare its numbers among themselves.

    Raises:
        FileError: torchvision is missing, or the file is not its Inception v3.
    """
    models = _package("torchvision.models")
    network = models.inception_v3(weights=None, aux_logits=False, init_weights=False)
    network.fc = torch.nn.Identity()
    weights = {k: v for k, v in _state(file).items() if not k.startswith(("AuxLogits.", "fc."))}
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        raise FileError(
            f"{file} is not torchvision's Inception v3 ({str(error)[:200]}). Take inception_v3_google-0cc3c7bd.pth, "
            "the file that torchvision offers as IMAGENET1K_V1."
        ) from error
    network.to(device).eval().requires_grad_(False)
    return Network("inception", 2048, lambda x: network(_resized(x, (299, 299)) * 2 - 1), device=device)


def _fitted(x: Tensor, side: int, mode: str = "bilinear") -> Tensor:
    """The shorter side becomes `side`, the middle is cut out: (N, 3, side, side)."""
    height, width = x.shape[-2:]
    scale = side / min(height, width)
    x = _resized(x, (max(side, int(height * scale)), max(side, int(width * scale))), mode)
    top, left = (x.shape[-2] - side) // 2, (x.shape[-1] - side) // 2
    return x[..., top : top + side, left : left + side]


def _resized(x: Tensor, size: tuple[int, int], mode: str = "bilinear") -> Tensor:
    return x if tuple(x.shape[-2:]) == size else F.interpolate(x, size, mode=mode, antialias=True)


def _normalised(x: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    return (x - x.new_tensor(mean).view(3, 1, 1)) / x.new_tensor(std).view(3, 1, 1)


def _state(file: Path) -> dict[str, Tensor]:
    """Tensors by name, of .safetensors or of a .pth that holds tensors alone."""
    try:
        if file.suffix == ".safetensors":
            return load_file(file)
        return dict(torch.load(file, map_location="cpu", weights_only=True))
    except (OSError, ValueError, TypeError, RuntimeError, EOFError, pickle.UnpicklingError, SafetensorError) as error:
        raise FileError(f"{file} can't be read as weights ({str(error)[:200]}). Fetch the file again.") from error


def _package(name: str) -> Any:
    """A package that only metrics need, imported when they do."""
    import importlib

    try:
        return importlib.import_module(name)
    except ImportError as error:
        package = name.partition(".")[0]
        raise FileError(f"This extractor needs {package}: `pip install {package}`, or choose another one.") from error
