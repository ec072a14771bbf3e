"""Save, Load and Apply: adapters between files, wires and MODELs."""

import logging
import os
from functools import lru_cache
from pathlib import Path

import folder_paths
from comfy.lora_convert import convert_lora
from comfy_api.latest import io
from server import PromptServer

from ..trilora import files
from . import lora_files, patching
from .sockets import CATEGORY, TriLoRA

STRENGTH = "1 is as trained, 0 is the bare base, above 1 exaggerates; pictures usually break above 1.5."


@lru_cache(maxsize=1)
def read(path: Path, _modified: int, _size: int) -> files.Adapter:
    """The adapter in a file, kept until another is read: its Σ is found once while its strength is played with."""
    return files.load(path, convert_lora)


class SaveTriLoRA(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TriLoRASave",
            display_name="Save TriLoRA",
            category=CATEGORY,
            description="Writes an adapter to models/loras as a standard LoRA file that any tool loads.",
            is_output_node=True,
            inputs=[
                TriLoRA.Input("trilora", tooltip="The adapter to save."),
                io.String.Input(
                    "filename", default="my_style",
                    tooltip="Name under models/loras, folders allowed ('styles/ink'). A file of that name is replaced.",
                ),
                io.Combo.Input(
                    "precision", options=list(files.DTYPES), default="float32", advanced=True,
                    tooltip="Of the numbers in the file. float16 halves its size at a relative error of about 0.0003.",
                ),
            ],
            outputs=[io.Combo.Output("file", tooltip="The saved file's name, for the file input of a loader.")],
        )  # fmt: skip

    @classmethod
    def execute(cls, trilora, filename, precision) -> io.NodeOutput:
        folder = Path(folder_paths.get_folder_paths("loras")[0])
        path = files.inside(folder, filename)
        files.save(trilora, path, files.DTYPES[precision])
        logging.info("TriLoRA saved to %s", path)
        name = os.path.relpath(path, folder)
        return io.NodeOutput(name, ui={"text": (f"saved {name}, {path.stat().st_size / 1e6:.1f} MB",)})


class LoadTriLoRA(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TriLoRALoad",
            display_name="Load TriLoRA",
            category=CATEGORY,
            description="Puts U Σ Vᵀ of a TriLoRA or LoRA file on the model's weights.",
            inputs=[
                io.Model.Input("model", tooltip="The base model that the file was trained on."),
                io.Combo.Input(
                    "file", options=lora_files.names(),
                    tooltip="A .safetensors file of models/loras. Those that begin with 'demo:' come with the pack and "
                    "are for TriLoRA Demo Model.",
                ),
                io.Float.Input("strength", default=1.0, min=-10.0, max=10.0, step=0.05, tooltip=STRENGTH),
                io.Float.Input(
                    "strength_clip", default=1.0, min=-10.0, max=10.0, step=0.05, optional=True, advanced=True,
                    tooltip="Strength of the file's text encoder layers, if it has any and clip is connected.",
                ),
                io.Clip.Input(
                    "clip", optional=True,
                    tooltip="The text encoder. Only files that were trained on it as well need it.",
                ),
            ],
            outputs=[
                io.Model.Output("model", tooltip="The model with the adapter on it."),
                TriLoRA.Output("trilora", tooltip="The adapter itself, for nodes that take one."),
                io.Clip.Output("clip", tooltip="The text encoder with the adapter on it; empty where none came in."),
            ],
            hidden=[io.Hidden.unique_id],
        )  # fmt: skip

    @classmethod
    def fingerprint_inputs(cls, file=None, **_others):
        if file is None:  # linked: the node before it tells whether anything changed
            return 0
        status = lora_files.path_of(file).stat()
        return (status.st_mtime_ns, status.st_size)

    @classmethod
    def execute(cls, model, file, strength, strength_clip=1.0, clip=None) -> io.NodeOutput:
        path = lora_files.path_of(file)
        adapter = read(path, *cls.fingerprint_inputs(file))
        with patching.named(path.name):
            model = patching.apply(model, adapter, strength, path.name)
            if clip is not None:
                clip = patching.apply_to_clip(clip, adapter, strength_clip, path.name)
        if clip is None:
            tell_skipped(adapter, cls.hidden.unique_id, "connect clip to use them")
        return io.NodeOutput(model, adapter, clip)


class ApplyTriLoRA(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TriLoRAApply",
            display_name="Apply TriLoRA",
            category=CATEGORY,
            description="Puts an adapter that was just trained, loaded or merged on a model.",
            inputs=[
                io.Model.Input("model", tooltip="The base model that the adapter was trained on."),
                TriLoRA.Input("trilora", tooltip="The adapter."),
                io.Float.Input("strength", default=1.0, min=-10.0, max=10.0, step=0.05, tooltip=STRENGTH),
            ],
            outputs=[io.Model.Output("model", tooltip="The model with the adapter on it.")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, model, trilora, strength) -> io.NodeOutput:
        tell_skipped(trilora, cls.hidden.unique_id, "Load TriLoRA with its clip connected applies them")
        return io.NodeOutput(patching.apply(model, trilora, strength))


def tell_skipped(adapter, node_id: str, remedy: str) -> None:
    """Says on the node that text encoder layers are left out, where the adapter has any."""
    if skipped := len(patching.text_layers(adapter)):
        PromptServer.instance.send_progress_text(f"{skipped} text encoder layers are left out: {remedy}", node_id)
