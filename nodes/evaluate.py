"""TriLoRA Evaluate: generated pictures against real ones, against the base's, and against their prompts."""

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import comfy.model_management
import comfy.utils
import folder_paths
from comfy_api.latest import io, ui
from torch import Tensor

from ..trilora.captions import one_line
from ..trilora.errors import FileError
from ..trilora.metrics import extractors
from ..trilora.metrics.evaluation import evaluate
from .sockets import CATEGORY

JUDGE = Path(__file__).parent.parent / "demo" / "judge"
FOLDERS = ("clip_vision", "text_encoders")  # where whole CLIP folders may lie
NONE = "none found"
GIGABYTES = 2  # for the largest of these networks and a batch of pictures


def clip_folders() -> dict[str, Path]:
    """Name -> folder of every transformers CLIP under models/."""
    roots = [Path(root) for kind in FOLDERS for root in folder_paths.get_folder_paths(kind)]
    configs = (file for root in roots if root.is_dir() for file in sorted(root.glob("*/config.json")))
    return {file.parent.name: file.parent for file in configs if _is_clip(file)}


def _is_clip(config: Path) -> bool:
    try:
        return "text_config" in json.loads(config.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False


def inception_files() -> list[str]:
    """Weight files under models/clip_vision that are called inception."""
    return [name for name in folder_paths.get_filename_list("clip_vision") if "inception" in name.lower()]


def extractor_of(chosen: Mapping[str, Any]) -> extractors.Network:
    """The network that was chosen, on ComfyUI's device."""
    device = comfy.model_management.get_torch_device()
    if chosen["extractor"] == "clip vision":
        return seen_by(chosen["clip_vision"])
    comfy.model_management.free_memory(GIGABYTES * 1024**3, device)
    if chosen["extractor"] == "demo":
        return extractors.demo(JUDGE, device)
    if chosen["extractor"] == "clip":
        folder = clip_folders().get(chosen["folder"])
        if folder is None:
            raise FileError(
                f"There is no CLIP folder {chosen['folder']!r}. Copy the whole folder of openai/clip-vit-large-patch14 "
                "(config.json, model.safetensors, tokenizer) into models/clip_vision, press R and choose it."
            )
        return extractors.clip(folder, device)
    path = folder_paths.get_full_path("clip_vision", chosen["file"])
    if path is None:
        raise FileError(
            f"There is no Inception file {chosen['file']!r}. Put torchvision's inception_v3_google-0cc3c7bd.pth into "
            "models/clip_vision, press R and choose it."
        )
    return extractors.inception(Path(path), device)


def seen_by(clip_vision: Any) -> extractors.Network:
    """The pictures' side of core's CLIP_VISION; ComfyUI itself loads and moves it."""

    def see(pixels: Tensor) -> Tensor:
        return clip_vision.encode_image(pixels.movedim(1, -1))["image_embeds"].flatten(1)

    size = clip_vision.config.get("projection_dim") or clip_vision.config["hidden_size"]
    return extractors.Network("CLIP_VISION", size, see)


def watched(batches: Iterable[Tensor], bar: comfy.utils.ProgressBar) -> Iterator[Tensor]:
    """Small batches of the pictures, with progress and a way out."""
    for batch in batches:
        for part in batch.split(extractors.BATCH):
            comfy.model_management.throw_exception_if_processing_interrupted()
            yield part
            bar.update(len(part))


class TriLoRAEvaluate(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TriLoRAEvaluate",
            display_name="TriLoRA Evaluate",
            category=CATEGORY,
            description="Numbers for a style: how near generated pictures are to real ones (FID; NFID, beside the "
            "base's) and how well they fit their prompts (CLIP score). docs/metrics.md says what they can tell.",
            search_aliases=["fid", "nfid", "clip score", "metrics"],
            is_input_list=True,
            is_output_node=True,
            inputs=[
                io.Image.Input(
                    "generated",
                    tooltip="Pictures made with the adapter, a batch or a list. At least 2; below some hundreds FID "
                    "is rough and only comparable with as many others.",
                ),
                io.Image.Input(
                    "real",
                    tooltip="Pictures of the style itself, best ones that were not trained on. At least 2.",
                ),
                io.Image.Input(
                    "base", optional=True,
                    tooltip="Pictures of the bare base with the same prompts and seeds, as many as generated ones. "
                    "NFID needs them.",
                ),
                io.String.Input(
                    "prompts", multiline=True, default="",
                    tooltip="One line for each generated picture, in the same order, or one line for them all; "
                    "without the trigger word. CLIP score needs them. A connected list of prompts does as well.",
                ),
                io.DynamicCombo.Input("extractor", options=_options(), tooltip="The network that looks at pictures."),
            ],
            outputs=[
                io.Float.Output(
                    "nfid",
                    tooltip="FID / FID of the base: below 1 is nearer to the real pictures than the base is, lower "
                    "is better. NaN without base pictures.",
                ),
                io.Float.Output(
                    "fid",
                    tooltip="Distance between the two sets of pictures as the extractor sees them, 0 for equal sets, "
                    "lower is better. Its size depends on the extractor and on how many pictures there are.",
                ),
                io.Float.Output(
                    "clip_score",
                    tooltip="100 x cosine between pictures and prompts, 0 to 100, higher is better; a good fit is "
                    "about 30 for CLIP and 60 for the demo's. NaN without prompts, or when the extractor can't read.",
                ),
                io.String.Output("report", tooltip="All numbers as a table, with what they can't tell."),
            ],
        )  # fmt: skip

    @classmethod
    def execute(cls, generated, real, extractor, prompts=(), base=None) -> io.NodeOutput:
        lines = [line.strip() for text in prompts for line in text.splitlines() if line.strip()]
        if len(prompts) == sum(map(len, generated)):  # a list with one for each, which may have several lines
            lines = [one_line(text) for text in prompts if text.strip()]
        bar = comfy.utils.ProgressBar(sum(len(batch) for batch in [*generated, *real, *(base or [])]))
        network = extractor_of({key: value[0] for key, value in extractor.items()})
        plain = watched(base, bar) if base else None
        found = evaluate(network, watched(generated, bar), watched(real, bar), plain, lines)
        numbers = [math.nan if value is None else value for value in (found.nfid, found.fid, found.clip_score)]
        return io.NodeOutput(*numbers, found.words(), ui=ui.PreviewText(found.words()))


def _options() -> list:
    option = io.DynamicCombo.Option
    return [
        option("demo", []),
        option(
            "clip",
            [
                io.Combo.Input(
                    "folder", options=sorted(clip_folders()) or [NONE],
                    tooltip="A whole CLIP as transformers keeps it, such as the folder of openai/clip-vit-large-"
                    "patch14, under models/clip_vision. It reads prompts too; the paper's CLIP score is of this kind.",
                )
            ],
        ),
        option(
            "clip vision",
            [
                io.ClipVision.Input(
                    "clip_vision", tooltip="From core's Load CLIP Vision. It can't read, so there is no CLIP score."
                )
            ],
        ),
        option(
            "inception",
            [
                io.Combo.Input(
                    "file", options=inception_files() or [NONE],
                    tooltip="torchvision's Inception v3, inception_v3_google-0cc3c7bd.pth, under models/clip_vision. "
                    "FID in the usual sense, for photographs; it can't read. 2048 features: use thousands of pictures.",
                )
            ],
        ),
    ]  # fmt: skip
