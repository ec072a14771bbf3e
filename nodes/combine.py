"""Merge, Extract and Resize: one adapter out of others, or out of two models."""

import re
from collections.abc import Callable, Collection, Iterator, Sequence
from functools import partial

import comfy.model_management
import comfy.utils
import torch
from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io
from server import PromptServer

from ..trilora.combine import merge, resize
from ..trilora.cutting import Report, Rule, at_energy, at_rank, at_size
from ..trilora.errors import TargetError, TriLoRAError
from ..trilora.extract import CHOICES, extract, layers_of
from ..trilora.factors import nearest, nearest_holding
from ..trilora.files import DTYPES, Adapter
from ..trilora.lineage import of_extraction
from ..trilora.metadata import base_named
from .patching import file_of, key_map, path_of, portable_names
from .sockets import CATEGORY, TriLoRA
from .weights import changes, make_room

RANK_TIP = "Singular values kept in each layer, at most: the strongest. Half the rank is half the file."
SHARE_TIP = (
    "Share of its energy (the sum of its squared singular values) that each layer keeps at least, 0 to 1. Layers "
    "with few strong values get a low rank, others a high one. 0.99 means a relative error of at most 0.1."
)


def tracked(names: Collection[str]) -> Iterator[str]:
    """The names, with ComfyUI's bar moving on; a cancel is heard between two layers."""
    bar = comfy.utils.ProgressBar(len(names))
    for name in names:
        comfy.model_management.throw_exception_if_processing_interrupted()
        yield name
        bar.update(1)


def rank_and_more(rank: int) -> list:
    """The ways to say how many singular values an existing adapter keeps."""
    precision = io.Combo.Input(
        "precision", options=list(DTYPES), default="float32",
        tooltip="The precision you will choose in Save TriLoRA; float16 has room for twice the singular values.",
    )  # fmt: skip
    megabytes = io.Float.Input(
        "megabytes", default=50.0, min=0.01, max=100_000.0, step=1.0, round=False,
        tooltip="Largest size of the saved file in MB (a million bytes). The values that hold the most energy per byte "
        "are kept, whichever layer they are in, so layers that matter little get few or none.",
    )  # fmt: skip
    share = io.Float.Input("share", default=0.99, min=0.01, max=1.0, step=0.01, round=False, tooltip=SHARE_TIP)
    return [
        io.DynamicCombo.Option("rank", [io.Int.Input("rank", default=rank, min=1, max=4096, tooltip=RANK_TIP)]),
        io.DynamicCombo.Option("energy", [share]),
        io.DynamicCombo.Option("size", [megabytes, precision]),
    ]


def rule_of(keep: dict) -> Rule:
    """The cut that a `keep` input asks for."""
    if keep["keep"] == "rank":
        return partial(at_rank, rank=keep["rank"])
    if keep["keep"] == "size":
        return partial(at_size, size=int(keep["megabytes"] * 1e6), dtype=DTYPES[keep["precision"]])
    return partial(at_energy, share=keep.get("share", 1.0))


def outputs() -> list:
    return [
        TriLoRA.Output("trilora", tooltip="The adapter, for Save TriLoRA and Apply TriLoRA."),
        io.String.Output("report", tooltip="What was kept and what was lost, in total and layer by layer."),
    ]


def told(node_id: str, adapter: Adapter, report: Report) -> io.NodeOutput:
    """The adapter, the whole report as text, and its summary on the node."""
    PromptServer.instance.send_progress_text(report.summary(), node_id)
    return io.NodeOutput(adapter, report.text(), ui={"text": (report.summary(),)})


class MergeTriLoRA(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        adapter = TriLoRA.Input("trilora", tooltip="An adapter, from Load TriLoRA or Train TriLoRA.")
        return io.Schema(
            node_id="TriLoRAMerge",
            display_name="Merge TriLoRA",
            category=CATEGORY,
            description="Makes one adapter of several, each with its weight: the same as loading them in a row.",
            search_aliases=["merge lora", "combine lora"],
            inputs=[
                io.Autogrow.Input(
                    "adapters", template=io.Autogrow.TemplatePrefix(adapter, prefix="trilora", min=2, max=50),
                    tooltip="Adapters of the same base model, TriLoRA or LoRA. A layer that only one has is kept.",
                ),
                io.String.Input(
                    "weights", default="1",
                    tooltip="Strength of each adapter in the order of the inputs, such as '1, 0.5'. A single number "
                    "counts for all. 1 is as trained, 0 leaves one out, below 0 takes it away.",
                ),
                io.DynamicCombo.Input(
                    "keep", options=[io.DynamicCombo.Option("all", []), *rank_and_more(32)],
                    tooltip="How much of the merge is kept. 'all' loses nothing, and the ranks add up; the others make "
                    "a smaller file and report what that lost.",
                ),
                io.Model.Input(
                    "model", optional=True,
                    tooltip="The base model. With it, layers that the adapters name differently (lora_unet_..., "
                    "diffusion_model....) are recognised as the same; without it they are matched by name.",
                ),
            ],
            outputs=outputs(),
            hidden=[io.Hidden.unique_id],
        )  # fmt: skip

    @classmethod
    def execute(cls, adapters, weights, keep, model=None) -> io.NodeOutput:
        several = list(adapters.values())
        name_of = names_in(model, several) if model else None
        return told(
            cls.hidden.unique_id, *merge(several, numbers(weights, len(several)), rule_of(keep), name_of, tracked)
        )


class ResizeTriLoRA(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TriLoRAResize",
            display_name="Resize TriLoRA",
            category=CATEGORY,
            description="Makes an adapter smaller with the least loss: by rank, by energy or by size of the file.",
            search_aliases=["resize lora", "lora rank", "shrink lora"],
            inputs=[
                TriLoRA.Input("trilora", tooltip="The adapter; a LoRA file from Load TriLoRA as well."),
                io.DynamicCombo.Input(
                    "keep", options=rank_and_more(8),
                    tooltip="By 'rank' each layer keeps as many singular values, by 'energy' each layer the same share "
                    "of its change, by 'size' whatever fits a file of that size best.",
                ),
            ],
            outputs=outputs(),
            hidden=[io.Hidden.unique_id],
        )  # fmt: skip

    @classmethod
    def execute(cls, trilora, keep) -> io.NodeOutput:
        return told(cls.hidden.unique_id, *resize(trilora, rule_of(keep), tracked))


class ExtractTriLoRA(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        share = io.Float.Input("share", default=0.9, min=0.01, max=1.0, step=0.01, round=False, tooltip=SHARE_TIP)
        largest = io.Int.Input(
            "largest_rank", default=128, min=1, max=4096,
            tooltip="No layer gets more singular values than this, even if it then keeps less energy.",
        )  # fmt: skip
        return io.Schema(
            node_id="TriLoRAExtract",
            display_name="Extract TriLoRA",
            category=CATEGORY,
            description="The best adapter of a given rank for the difference of two models: base + adapter comes as "
            "close to the tuned model as its rank allows.",
            search_aliases=["extract lora", "model difference", "svd"],
            inputs=[
                io.Model.Input("base", tooltip="The model that the adapter will be loaded on."),
                io.Model.Input(
                    "tuned",
                    tooltip="The model to come close to, of the same architecture: a fine-tune, a merge of models, or "
                    "the base with LoRAs on it. What is on either model's weights counts.",
                ),
                io.DynamicCombo.Input(
                    "keep",
                    options=[
                        io.DynamicCombo.Option(
                            "rank", [io.Int.Input("rank", default=32, min=1, max=4096, tooltip=RANK_TIP)]
                        ),
                        io.DynamicCombo.Option("energy", [share, largest]),
                    ],
                    tooltip="How many singular values of each layer's difference are kept. A LoRA comes back whole at "
                    "its own rank; a full fine-tune has no low rank, and the report says how much of it is held.",
                ),
                io.Combo.Input(
                    "layers", options=list(CHOICES), default="all linear",
                    tooltip="Which layers are compared; the others stay as in base. Attention holds most of a style. "
                    "Convolutions come closer still and make a larger file.",
                ),
            ],
            outputs=outputs(),
            hidden=[io.Hidden.unique_id],
        )  # fmt: skip

    @classmethod
    def execute(cls, base, tuned, keep, layers) -> io.NodeOutput:
        generator = torch.Generator().manual_seed(0)
        find = partial(nearest, rank=keep.get("rank"), generator=generator)
        if keep["keep"] == "energy":
            largest = keep["largest_rank"]
            find = partial(nearest_holding, share=keep["share"], largest=largest, generator=generator)
        make_room(base)
        differences = changes(base, tuned, layers_of(base.model.diffusion_model, layers))
        metadata = of_extraction(base_named(type(base.model).__name__), file_of(base), file_of(tuned))
        return told(cls.hidden.unique_id, *extract(differences, find, metadata, tracked))


def numbers(text: str, count: int) -> list[float]:
    """The weights in a line such as '1, 0.5'; a single one counts for all adapters."""
    parts = [part for part in re.split(r"[\s,;]+", text) if part]
    try:
        values = [float(part) for part in parts]
    except ValueError:
        raise TriLoRAError(f"weights is {text!r}, which is not a list of numbers. Write '1, 0.5'.") from None
    return values * count if len(values) == 1 else values


def names_in(model: ModelPatcher, adapters: Sequence[Adapter]) -> Callable[[str], str]:
    """Any name of a layer of the MODEL -> the one name that a file gives it; other names stay (text encoders').

    Raises:
        TargetError: an adapter of which the MODEL has no layer.
    """
    known = key_map(model)
    for number, adapter in enumerate(adapters, 1):
        if not known.keys() & adapter.layers.keys():
            raise TargetError(
                f"No layer of adapter {number} (such as {next(iter(adapter.layers))}) exists in this model "
                f"({type(model.model).__name__}). Connect the base model that the adapters were made for."
            )
    paths = {path_of(key): key for key in known.values() if isinstance(key, str)}
    portable = portable_names(model, paths)
    names = {key: portable[path] for path, key in paths.items()}
    return lambda name: names.setdefault(known[name], name) if name in known else name
