"""The pack in a ComfyUI in this process: ComfyUI's own loader takes it, and every id is ours."""

from pathlib import Path
from typing import Any

import pytest

from devkit import ROOT

pytestmark = pytest.mark.comfy


def test_comfyui_loads_the_pack(pack: dict[str, Any]) -> None:
    assert pack
    assert all(node_id.startswith("TriLoRA") for node_id in pack)


def test_the_web_folder_is_registered_once(comfy: Any, pack: dict[str, Any]) -> None:
    assert [Path(folder) for folder in comfy.EXTENSION_WEB_DIRS.values()] == [ROOT / "web"]
