"""A training on a real server that is stopped by hand, or killed: what it had learned stays."""

import sys
import time
import urllib.error
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from demo.workflow import TRIGGER, node
from devkit.server import Server
from devkit.server import comfy_server as start

pytestmark = [pytest.mark.server, pytest.mark.slow]


def training(name: str, steps: int, **watch: Any) -> dict[str, Any]:
    """Demo model -> dataset -> train, watched -> save."""
    wires = {"model": ["base", 0], "clip": ["base", 1], "vae": ["base", 2], "dataset": ["data", 0]}
    settings = {
        "steps": steps, "learning_rate": 2e-3, "rank": 4, "batch": 1, "seed": 1, "targets": "cross-attention",
        "alpha": 4.0, "preserve": 0.3, "shrink": 0.0, "clip_norm": 1.0,
        "method": "trilora", "method.core": "diagonal", "method.initialisation": "balanced",
    }  # fmt: skip
    given = {
        "held_out_share": 0.1, "score_every": 10, "patience": 0, "keep_best": False, "previews": "off",
        "checkpoint_every": 3, "checkpoints": 2, "resume": True,
    }  # fmt: skip
    return {
        "base": node("TriLoRADemoModel"),
        "data": node(
            "TriLoRADataset", folder="demo: paper_print", trigger=TRIGGER, resolution=128, bucket_step=0
        ),
        "watch": node("TriLoRATrainWatch", **(given | watch)),
        "train": node("TriLoRATrain", **wires, **settings, watch=["watch", 0]),
        "save": node("TriLoRASave", trilora=["train", 0], filename=name, precision="float32"),
    }  # fmt: skip


def until(found: Callable[[], Any], seconds: float = 120) -> Any:
    """Wait for something to be there."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if result := found():
            return result
        time.sleep(0.05)
    pytest.fail("what was waited for did not come")


def states(base: Path, since: int = 0) -> list[str]:
    """The states on disk of the run that was written to last, not before `since` (ns)."""
    found = list((base / "output" / "TriLoRA" / "runs").glob("*/step-*.safetensors"))
    found = [path for path in found if path.stat().st_mtime_ns >= since]
    newest = max(found, key=lambda path: path.stat().st_mtime_ns, default=None)
    return sorted(path.name for path in found if path.parent == newest.parent)


def test_stop_and_keep_ends_the_run_and_hands_the_adapter_on(comfy_server: Server) -> None:
    before = time.time_ns()
    prompt = comfy_server.queue(training("stopped", steps=3_000))
    until(lambda: [name for name in states(comfy_server.base, before) if "step-0000003" <= name < "step-0000100"])
    try:
        assert comfy_server.post("/trilora/stop", {"node_id": "train"}) == {"stopped": ["train"]}
        entry = comfy_server.wait(prompt, 120)
    finally:
        comfy_server.post("/interrupt", {})  # whatever went wrong, the next test finds the server idle
    (summary,) = entry["outputs"]["train"]["text"]
    assert "stopped by hand" in summary
    learned = load_file(comfy_server.base / "models" / "loras" / "stopped.safetensors")
    assert any(tensor.abs().max() > 0 for key, tensor in learned.items() if "lora_up" in key)


def test_stopping_what_does_not_run_says_so(comfy_server: Server) -> None:
    with pytest.raises(urllib.error.HTTPError) as refused:
        comfy_server.post("/trilora/stop", {})
    assert refused.value.code == 404


def test_a_server_killed_while_it_trains_goes_on_to_the_same_bits(
    comfy_server: Server, comfy_path: Path, tmp_path: Path
) -> None:
    """kill -9 of ComfyUI itself; the next one, given the same workflow, ends with the file of one never killed."""
    prompt = training("adapter", steps=20)
    with start(sys.executable, comfy_path, tmp_path) as first:
        first.queue(prompt)
        until(lambda: [name for name in states(tmp_path) if name >= "step-0000006"])
        first.process.kill()
        first.process.wait()
    assert not (tmp_path / "models" / "loras" / "adapter.safetensors").exists()
    assert states(tmp_path)[-1] < "step-0000020"
    with start(sys.executable, comfy_path, tmp_path) as second:
        (summary,) = second.run(prompt)["outputs"]["train"]["text"]
    assert "going on from step" in summary
    comfy_server.run(prompt)
    files = [base / "models" / "loras" / "adapter.safetensors" for base in (tmp_path, comfy_server.base)]
    killed, whole = (load_file(path) for path in files)
    assert killed.keys() == whole.keys()
    assert all(torch.equal(killed[key], whole[key]) for key in whole)
