"""Stable Diffusion pipelines of diffusers, from a folder or a single file on this machine; nothing is downloaded."""

import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from diffusers.loaders.single_file_utils import fetch_diffusers_config, load_single_file_checkpoint
from huggingface_hub import snapshot_download

from ..errors import FileError
from ..files import DTYPES
from . import device as devices

INDEX = "model_index.json"
KINDS = ("StableDiffusionPipeline", "StableDiffusionXLPipeline")
UNCHECKED = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
CONFIGS = ["**/*.json", "*.json", "*.txt", "**/*.txt"]  # of a pipeline: everything but its weights


def load_pipeline(
    path: Path | str, dtype: str = "float32", device: Any = None, config: Path | str | None = None
) -> Any:
    """A StableDiffusion(XL)Pipeline, its weights frozen, ready to predict.

    Args:
        path: a folder in diffusers' layout, or a single .safetensors file.
        dtype: of the weights, one of `files.DTYPES`.
        device: where they go; None for the GPU where there is one.
        config: for a single file, a folder in diffusers' layout of the same kind of model, whose configuration and
            tokenizer are read; None for the one that Hugging Face's cache on this machine has.

    Raises:
        FileError: neither of the two, damaged, of another kind, or without its configuration.
        TriLoRAError: a device that is not there.
    """
    path, place = Path(path), devices.chosen(device)
    with _quietly():
        pipe = _loaded(path, dtype, Path(config) if config else None)
    for name in ("unet", "vae", "text_encoder", "text_encoder_2"):
        if module := getattr(pipe, name, None):
            module.requires_grad_(False).eval()
    return pipe.to(place)


def _loaded(path: Path, dtype: str, config: Path | None) -> Any:
    if dtype not in DTYPES:
        raise FileError(f"The type {dtype!r} is unknown. Choose one of: {', '.join(DTYPES)}.")
    if path.is_dir():
        return _from_folder(path, DTYPES[dtype])
    if path.suffix == ".safetensors" and path.is_file():
        return _from_file(path, DTYPES[dtype], config or _cached_config(path))
    raise FileError(
        f"{path} is neither a folder with a {INDEX} nor a .safetensors file. Give the path of a Stable Diffusion "
        "1.x, 2.x or XL model that is on this machine; nothing is downloaded."
    )


@contextmanager
def _quietly() -> Iterator[None]:
    """No bars and no deprecations of diffusers and transformers within the block."""
    levels = [(library, library.get_verbosity()) for library in (diffusers.logging, transformers.logging)]
    try:
        for library, _ in levels:
            library.set_verbosity_error()
            library.disable_progress_bar()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        for library, level in levels:
            library.set_verbosity(level)
            library.enable_progress_bar()


def _from_folder(folder: Path, dtype: torch.dtype) -> Any:
    kind = _kind(folder)
    more = UNCHECKED if kind is diffusers.StableDiffusionPipeline else {}
    files = [file.name for file in (folder / "unet").glob("*.safetensors")]
    variant = "fp16" if files and all(".fp16." in name for name in files) else None
    try:
        return kind.from_pretrained(
            folder, torch_dtype=dtype, variant=variant, use_safetensors=True, local_files_only=True, **more
        )
    except (OSError, ValueError, KeyError, RuntimeError, TypeError) as error:
        raise FileError(f"{folder} is not a whole pipeline ({error}). Copy or download it again.") from error


def _from_file(file: Path, dtype: torch.dtype, config: Path) -> Any:
    try:
        return _kind(config).from_single_file(
            str(file), config=str(config), torch_dtype=dtype, local_files_only=True, safety_checker=None
        )
    except (OSError, ValueError, KeyError, RuntimeError, TypeError) as error:
        raise FileError(f"{file.name} can't be loaded with the configuration in {config} ({error}).") from error


def _kind(folder: Path) -> Any:
    """The pipeline's class, of those that can be trained here."""
    try:
        name = json.loads((folder / INDEX).read_text(encoding="utf-8"))["_class_name"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise FileError(
            f"{folder} has no {INDEX} that can be read ({error}). Give a folder in diffusers' layout."
        ) from error
    if name not in KINDS:
        raise FileError(f"{folder} holds a {name}, but only {' and '.join(KINDS)} can be used. Give another base.")
    return getattr(diffusers, name)


def _cached_config(file: Path) -> Path:
    """Configuration and tokenizer of the model's kind, where Hugging Face's cache holds them already."""
    try:
        source = fetch_diffusers_config(load_single_file_checkpoint(str(file)))["pretrained_model_name_or_path"]
    except Exception as error:  # whatever safetensors or diffusers say of bytes that are no model
        raise FileError(f"{file} is no checkpoint that diffusers knows ({error}). Give another file.") from error
    try:
        return Path(snapshot_download(source, local_files_only=True, allow_patterns=CONFIGS))
    except (OSError, ValueError) as error:
        raise FileError(
            f"{file.name} holds weights alone, and the configuration and tokenizer of its kind ({source}) are not on "
            "this machine. Give a folder in diffusers' layout of the same kind as base_config (without its weights it "
            "is 3 MB), or use a folder as the base."
        ) from error
