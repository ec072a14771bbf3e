"""What a LoRA file tells before it is loaded: rank, base, trigger words, settings. Its header is read, no tensor."""

import json
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .files import OTHER_KINDS, PAIRS, opened

TAGS = 12  # the most frequent that are told
LETTERS = 300  # of one entry; a comment may be a book
BASES = {  # as kohya's tools call a base -> as people do
    "sd_v1": "SD 1.x",
    "sd_v2": "SD 2.x",
    "sd_v2_v": "SD 2.x (v)",
    "sdxl_base_v0-9": "SDXL 0.9",
    "sdxl_base_v1-0": "SDXL",
    "sd3": "SD 3",
    "flux1": "Flux.1",
    "flux2": "Flux.2",
    "chroma": "Chroma",
    "lumina2": "Lumina 2",
    "qwen_image": "Qwen-Image",
    "wan2.1": "Wan 2.1",
    "wan2.2": "Wan 2.2",
    "hunyuan_video": "HunyuanVideo",
    "hunyuan-image-2.1": "HunyuanImage 2.1",
}
WIDTHS = {768: "SD 1.x", 1024: "SD 2.x", 2048: "SDXL"}  # of the text that a UNet's cross-attention reads -> its base
TEXT = re.compile(r"attn2[._](processor[._])?to_[kv]\b|attn2[._](processor[._])?to_[kv]_lora")
ROWS = (  # what the panel calls it, and where it may stand: the first that is there is told
    ("title", ("modelspec.title", "ss_output_name")),
    ("author", ("modelspec.author",)),
    ("method", ("trilora.method", "ss_network_module")),
    ("start", ("trilora.settings.initialisation",)),
    ("layers chosen", ("trilora.settings.targets",)),
    ("alpha", ("trilora.settings.alpha", "ss_network_alpha")),
    ("steps", ("trilora.steps", "ss_steps", "ss_max_train_steps")),
    ("epochs", ("ss_num_epochs", "ss_epoch")),
    ("batch", ("trilora.settings.batch", "ss_total_batch_size", "ss_batch_size_per_device")),
    ("learning rate", ("trilora.settings.learning_rate", "ss_unet_lr", "ss_learning_rate")),
    ("optimizer", ("trilora.settings.optimizer", "ss_optimizer")),
    ("schedule", ("trilora.settings.schedule", "ss_lr_scheduler")),
    ("preserve", ("trilora.settings.preserve",)),
    ("min-SNR", ("trilora.settings.min_snr", "ss_min_snr_gamma")),
    ("pictures", ("ss_num_train_images",)),
    ("resolution", ("modelspec.resolution", "ss_resolution")),
    ("seed", ("ss_seed",)),
    ("loss", ("trilora.loss",)),
    ("energy kept", ("trilora.energy_kept",)),
    ("base file", ("ss_sd_model_name",)),
    ("made", ("modelspec.date",)),
    ("license", ("modelspec.license",)),
    ("comment", ("modelspec.description", "ss_training_comment")),
)
SHORTER: Mapping[str, Callable[[str], str]] = {  # rows that other tools write at length
    "method": lambda text: {"networks.lora": "LoRA"}.get(text, text),
    "optimizer": lambda text: re.sub(r"^[\w.]*\.(?=\w)", "", text),  # torch.optim.adamw.AdamW(...)
    "resolution": lambda text: text.strip("()").replace(", ", "x"),
    "made": lambda text: text.replace("T", " ").removesuffix("Z"),
}


@dataclass(frozen=True)
class Header:
    """A LoRA file as its header tells of it.

    Attributes:
        size: bytes.
        kind: `LoRA`, or the other kind of adapter that it holds (`LoHa`, ...); "" where none is known.
        layers: how many layers it adapts.
        ranks: the smallest and the largest rank of a layer; empty where there is no LoRA layer.
        base: the base model, as people call it; "" where it can't be told.
        guessed: whether the base was read off the layers, not off the metadata.
        triggers: words that wake it.
        tags: the most frequent parts of its captions with their counts, most frequent first.
        settings: name -> value, of its training.
    """

    size: int
    kind: str
    layers: int
    ranks: tuple[int, ...]
    base: str
    guessed: bool
    triggers: tuple[str, ...]
    tags: tuple[tuple[str, int], ...]
    settings: Mapping[str, str]


def read(path: Path) -> Header:
    """The header of any adapter file, with metadata or without.

    Raises:
        FileError: not there, or not a whole safetensors file.
    """
    with opened(path) as file:
        keys = list(file.keys())
        shapes = {key: tuple(file.get_slice(key).get_shape()) for key in keys if _is_down(key)}
        said = _flat(dict(file.metadata() or {}))
    ranks = [shape[0] for shape in shapes.values()]
    base, guessed = _base(said), False
    if not base:
        base = _likely_base(shapes)
        guessed = bool(base)
    return Header(
        size=path.stat().st_size,
        kind=_kind(keys, bool(ranks)),
        layers=len(ranks),
        ranks=(min(ranks), max(ranks)) if ranks else (),
        base=base,
        guessed=guessed,
        triggers=_triggers(said),
        tags=_tags(said),
        settings={name: SHORTER.get(name, str)(value) for name, keys in ROWS if (value := _first(said, keys))},
    )


def _is_down(key: str) -> bool:
    return any(key.endswith(down) for _, down in PAIRS)


def _kind(keys: Sequence[str], is_lora: bool) -> str:
    others = (kind for key in keys for part, kind in OTHER_KINDS.items() if part in key + ".")
    return next(others, "LoRA" if is_lora else "")


def _flat(metadata: Mapping[str, str]) -> dict[str, str]:
    """The metadata, each entry of `trilora.settings` under a name of its own."""
    settings = _parsed(metadata.get("trilora.settings", ""))
    inner = settings.items() if isinstance(settings, dict) else ()
    return {**metadata, **{f"trilora.settings.{name}": f"{value}" for name, value in inner}}


def _first(said: Mapping[str, str], keys: Sequence[str]) -> str:
    """The first entry that says something, in one line."""
    words = (" ".join(said.get(key, "").split()) for key in keys)
    found = next((word for word in words if word not in ("", "None", "null", "0.0")), "")
    return found if len(found) <= LETTERS else found[: LETTERS - 1] + "…"


def _base(said: Mapping[str, str]) -> str:
    name = _first(said, ("ss_base_model_version", "modelspec.architecture"))
    return BASES.get(name, name.removesuffix("/lora"))


def _likely_base(shapes: Mapping[str, tuple[int, ...]]) -> str:
    """Of a file that says nothing: the UNet whose text is as wide as what its cross-attention reads."""
    widths = Counter(shape[1] for key, shape in shapes.items() if len(shape) > 1 and TEXT.search(key))
    return WIDTHS.get(widths.most_common(1)[0][0], "") if widths else ""


def _triggers(said: Mapping[str, str]) -> tuple[str, ...]:
    """The trigger phrase, else the class tokens of the data sets, in order and once each."""
    phrases = [said.get("modelspec.trigger_phrase", "")]
    if not phrases[0].strip():
        phrases = [str(subset.get("class_tokens") or "") for subset in _subsets(said)]
    words = (word.strip() for phrase in phrases for word in phrase.split(","))
    return tuple(dict.fromkeys(word[:LETTERS] for word in words if word))[:TAGS]


def _subsets(said: Mapping[str, str]) -> list[dict[str, Any]]:
    sets = _parsed(said.get("ss_datasets", ""))
    inner = [each.get("subsets") for each in sets if isinstance(each, dict)] if isinstance(sets, list) else []
    return [subset for subsets in inner if isinstance(subsets, list) for subset in subsets if isinstance(subset, dict)]


def _tags(said: Mapping[str, str]) -> tuple[tuple[str, int], ...]:
    """The most frequent tags of all folders together."""
    folders = _parsed(said.get("ss_tag_frequency", ""))
    counts: Counter[str] = Counter()
    for tags in folders.values() if isinstance(folders, dict) else ():
        for tag, count in tags.items() if isinstance(tags, dict) else ():
            if isinstance(count, int):
                counts[tag.strip()[:LETTERS]] += count
    return tuple((tag, count) for tag, count in counts.most_common(TAGS) if tag)


def _parsed(text: str) -> Any:
    """JSON of somebody else's tool; None where it is none."""
    try:
        return json.loads(text)
    except ValueError:
        return None
