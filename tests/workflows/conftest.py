"""A real ComfyUI server with the pack in it, started once for all workflow tests."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from devkit.server import Server
from devkit.server import comfy_server as start


@pytest.fixture(scope="session")
def comfy_server(comfy_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The running server: `run(prompt)` gives a history entry or raises, `images(entry)` gives picture files."""
    with start(sys.executable, comfy_path, tmp_path_factory.mktemp("server")) as server:
        yield server
