"""A real ComfyUI with the pack loaded as ComfyUI itself loads it: in this process, and as a server."""

import asyncio
import inspect
import logging
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from devkit import ROOT, DevError, comfyui
from devkit.server import Server
from devkit.server import comfy_server as start


@pytest.fixture(scope="session")
def comfy_path() -> Path:
    """ComfyUI's folder. Fails where there is none: a test that needs it must not pass unseen."""
    try:
        folder = comfyui.find(ROOT)
    except DevError as error:
        pytest.fail(str(error))
    if folder is None:
        pytest.fail("No ComfyUI: run `python dev.py test`, which fetches it, or set COMFYUI_PATH to its folder.")
    return folder


@pytest.fixture(scope="session")
def comfy_server(comfy_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A real server with the pack in it, started once for all tests that ask it or look at its page."""
    with start(sys.executable, comfy_path, tmp_path_factory.mktemp("server")) as server:
        yield server


@pytest.fixture(scope="session")
def comfy(comfy_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """ComfyUI's own `nodes` module, its models, input and output folders in a temporary place."""
    import torch

    sys.path.insert(0, str(comfy_path))
    from comfy.cli_args import args

    args.cpu = not torch.cuda.is_available()
    args.base_directory = str(tmp_path_factory.mktemp("comfyui"))
    for folder in ("models", "input", "output", "custom_nodes"):
        Path(args.base_directory, folder).mkdir()
    import nodes

    if Path(nodes.__file__).parent != comfy_path:
        pytest.fail(f"`import nodes` gave {nodes.__file__}, not ComfyUI's own module.")
    from server import PromptServer

    PromptServer(asyncio.new_event_loop())  # nodes send their progress text through it; nobody listens here
    return nodes


@pytest.fixture(scope="session")
def comfy_base(comfy: Any) -> Path:
    """The base directory of the ComfyUI in this process: models/, input/, output/."""
    import folder_paths

    return Path(folder_paths.base_path)


@pytest.fixture(scope="session")
def core_nodes(comfy: Any) -> dict[str, type]:
    """ComfyUI's nodes by id, those of comfy_extras among them."""
    asyncio.run(comfy.init_extra_nodes(init_custom_nodes=False, init_api_nodes=False))
    return comfy.NODE_CLASS_MAPPINGS


@pytest.fixture(scope="session")
def pack(comfy: Any) -> "Pack":
    """The pack's nodes by id, as ComfyUI loaded them."""
    heard = Heard()
    logging.getLogger().addHandler(heard)
    before = set(comfy.NODE_CLASS_MAPPINGS)
    loaded = asyncio.run(comfy.load_custom_node(str(ROOT)))
    logging.getLogger().removeHandler(heard)
    if not loaded:
        pytest.fail("ComfyUI could not load the pack:\n" + "\n".join(heard.lines))
    return Pack({id: node for id, node in comfy.NODE_CLASS_MAPPINGS.items() if id not in before})


@pytest.fixture(scope="session")
def run_node(pack: "Pack") -> Callable[..., tuple[Any, ...]]:
    """Run a node of the pack by id, as a prompt would: `run_node("TriLoRALoad", model=..., ...)`."""

    def run(node_id: str, **inputs: Any) -> tuple[Any, ...]:
        return execute(pack[node_id], **inputs)

    return run


def execute(node: type, **inputs: Any) -> tuple[Any, ...]:
    """Execute a V3 node class under inference mode, as ComfyUI does, and return its outputs."""
    import torch

    with torch.inference_mode():
        clone = node.PREPARE_CLASS_CLONE({"hidden_inputs": {"UNIQUE_ID": "1"}})
        result = getattr(clone, node.FUNCTION)(**inputs)  # checks and normalises, then calls execute
        output = asyncio.run(result) if inspect.isawaitable(result) else result
    return tuple(output.result or ())


class Pack(dict[str, type]):
    """Nodes by id; an id that is not there fails the test and says which ids there are."""

    def __missing__(self, node_id: str) -> type:
        pytest.fail(f"The pack has no node '{node_id}', but: {', '.join(sorted(self))}")


class Heard(logging.Handler):
    """Keeps what ComfyUI logs, because it tells of a pack that does not load nowhere else."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())
