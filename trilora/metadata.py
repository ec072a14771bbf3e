"""What an adapter says of itself, in the words that other tools read (kohya's `ss_`, modelspec 1.0.1)."""

import datetime
import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import NamedTuple

from .dataset import Dataset
from .settings import Settings

FORMAT = "1"  # of the `trilora.` keys


class Base(NamedTuple):
    """How the base model is called by kohya's tools and by modelspec."""

    kohya: str
    modelspec: str


BASES: Mapping[str, Base] = {  # ComfyUI's model class -> names
    "BaseModel": Base("sd_v1", "stable-diffusion-v1/lora"),
    "SD2": Base("sd_v2", "stable-diffusion-v2-512/lora"),  # told apart by the headless host alone
    "SDXL": Base("sdxl_base_v1-0", "stable-diffusion-xl-v1-base/lora"),
    "SD3": Base("sd3", "stable-diffusion-3-medium/lora"),
    "Flux": Base("flux1", "flux-1-dev/lora"),
    "Flux2": Base("flux2", "flux-2/lora"),
    "Chroma": Base("chroma", "chroma/lora"),
    "Lumina2": Base("lumina2", "lumina-2/lora"),
    "QwenImage": Base("qwen_image", "Qwen-Image/lora"),
    "WAN21": Base("wan2.1", "wan2.1/lora"),
    "WAN22": Base("wan2.2", "wan2.2/lora"),
    "HunyuanVideo": Base("hunyuan_video", "hunyuan-video/lora"),
    "HunyuanVideo15": Base("hunyuan_video_1_5", "hunyuan-video-1.5/lora"),
    "HunyuanImage21": Base("hunyuan-image-2.1", "hunyuan-image-2.1/lora"),
    "Kandinsky5": Base("kandinsky5", "kandinsky5/lora"),
    "Krea2": Base("krea2", "krea2/lora"),
    "Anima": Base("anima", "anima/lora"),
}


def base_named(model_class: str) -> Base:
    """Names of a base by its model class; an unknown one is called by its class."""
    return BASES.get(model_class, Base(model_class.lower(), f"{model_class.lower()}/lora"))


def describe(
    settings: Settings, dataset: Dataset, base: Base, base_file: str, losses: Sequence[float]
) -> dict[str, str]:
    """Metadata of a trained adapter, text to text.

    Args:
        settings: of the run.
        dataset: what was trained on.
        base: the base model's names.
        base_file: the base model's file name, or "".
        losses: style loss of every step that was made; fewer than asked for when the run was ended early.
    """
    tail = losses[-50:]
    return {
        "ss_v2": str(base.kohya.startswith("sd_v2")),
        "ss_base_model_version": base.kohya,
        "ss_sd_model_name": base_file,
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(settings.rank),
        "ss_network_alpha": str(settings.rank),
        "ss_network_args": json.dumps({"algo": settings.method, "core": settings.core}),
        "ss_learning_rate": str(settings.learning_rate),
        "ss_steps": str(len(losses)),
        "ss_seed": str(settings.seed),
        **_of_pictures(dataset, len(losses) * settings.pictures),
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": base.modelspec,
        "modelspec.implementation": "https://github.com/Stability-AI/generative-models",
        "modelspec.date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "trilora.version": FORMAT,
        "trilora.method": settings.method,
        "trilora.core": settings.core,
        "trilora.rank": str(settings.rank),
        "trilora.settings": json.dumps(asdict(settings)),
        "trilora.steps": str(len(losses)),
        "trilora.loss": f"{sum(tail) / len(tail):.6f}" if tail else "",
    }


def _of_pictures(dataset: Dataset, shown: int) -> dict[str, str]:
    """What is said of the pictures, of which so many were shown in all; no tags where they came encoded."""
    epoch, frequency = len(dataset.pictures) * dataset.repeats, tags(p.caption for p in dataset.pictures)
    said = {
        "ss_num_train_images": str(epoch),
        "ss_num_epochs": str(math.ceil(shown / epoch)),
        "ss_resolution": f"({dataset.resolution}, {dataset.resolution})",
        "ss_datasets": json.dumps([{"subsets": [{"class_tokens": dataset.trigger}]}]),
        "modelspec.title": dataset.trigger or "TriLoRA adapter",
        "modelspec.resolution": f"{dataset.resolution}x{dataset.resolution}",
        "modelspec.trigger_phrase": dataset.trigger,
    }
    if frequency:
        folder = f"{dataset.repeats}_{dataset.trigger or 'pictures'}"
        said["ss_tag_frequency"] = json.dumps({folder: frequency})
    return said


def tags(captions: Iterable[str]) -> dict[str, int]:
    """How often each comma-separated part of the captions occurs, most frequent first."""
    counts = Counter(tag.strip() for caption in captions for tag in caption.split(",") if tag.strip())
    return dict(counts.most_common())
