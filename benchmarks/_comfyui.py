"""A real ComfyUI in this process, with the pack in it, and the models that benchmarks run on."""

import asyncio
import importlib
import inspect
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import torch

from benchmarks import _sd15
from devkit import ROOT, DevError, comfyui

KEPT = ROOT / ".bench"  # the random SD1.5 checkpoint of 2 GB lies here between runs


class Wires(NamedTuple):
    """A loaded checkpoint."""

    model: Any
    clip: Any
    vae: Any


class ComfyUI:
    """The nodes of core and of the pack, and the pack's modules; `base` is its folder of models, input and output."""

    def __init__(self, base: Path) -> None:
        self.base = base
        import nodes

        asyncio.run(nodes.init_extra_nodes(init_custom_nodes=False, init_api_nodes=False))
        if "TriLoRATrain" not in nodes.NODE_CLASS_MAPPINGS:
            asyncio.run(nodes.load_custom_node(str(ROOT)))
        self.nodes = nodes.NODE_CLASS_MAPPINGS

    def run(self, node_id: str, **inputs: Any) -> tuple[Any, ...]:
        """A node's outputs, executed as in a prompt: under inference mode."""
        node = self.nodes[node_id]
        with torch.inference_mode():
            if not hasattr(node, "PREPARE_CLASS_CLONE"):
                return tuple(getattr(node(), node.FUNCTION)(**inputs))
            clone = node.PREPARE_CLASS_CLONE({"hidden_inputs": {"UNIQUE_ID": "1"}})
            result = getattr(clone, node.FUNCTION)(**inputs)
            return tuple((asyncio.run(result) if inspect.isawaitable(result) else result).result or ())

    def module(self, name: str) -> Any:
        """A module of the pack as ComfyUI has loaded it, such as `nodes.lending`."""
        package = self.nodes["TriLoRATrain"].__module__.removesuffix("nodes.train")
        return importlib.import_module(package + name)

    def sd15(self) -> Wires:
        """Stable Diffusion 1.5 with random weights, through core's loader."""
        file = KEPT / "random_sd15.safetensors"
        if not file.is_file():
            _sd15.write(file)
        link = self.base / "models" / "checkpoints" / file.name
        link.parent.mkdir(exist_ok=True)
        if not link.exists():
            link.symlink_to(file)
        return Wires(*self.run("CheckpointLoaderSimple", ckpt_name=file.name))

    def demo(self) -> Wires:
        """The small model that comes with the pack."""
        return Wires(*self.run("TriLoRADemoModel"))


@contextmanager
def comfyui_here() -> Iterator[ComfyUI]:
    """ComfyUI in this process: the one that runs already, or one in a folder of its own that is gone afterwards."""
    if "folder_paths" in sys.modules:
        yield ComfyUI(Path(sys.modules["folder_paths"].base_path))
        return
    with TemporaryDirectory(prefix="trilora-bench-") as folder:
        start(Path(folder))
        yield ComfyUI(Path(folder))


def start(base: Path) -> None:
    """ComfyUI's modules, with their folders below `base`."""
    place = comfyui.find(ROOT)
    if place is None:
        raise DevError("No ComfyUI: run `python dev.py bench`, which fetches it, or set COMFYUI_PATH to its folder.")
    sys.path.insert(0, str(place))
    arguments, sys.argv = sys.argv, sys.argv[:1]
    from comfy.cli_args import args

    args.cpu, args.base_directory = not torch.cuda.is_available(), str(base)
    for folder in ("models/checkpoints", "models/loras", "input", "output", "custom_nodes"):
        (base / folder).mkdir(parents=True)
    logging.getLogger().setLevel(logging.ERROR)
    from server import PromptServer

    sys.argv = arguments
    PromptServer(asyncio.new_event_loop())  # takes the progress texts
