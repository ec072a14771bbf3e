"""Benchmarks run at toy size, in the ComfyUI of these tests, and gives a table for each of its arms."""

import argparse
import importlib
import math
from pathlib import Path
from typing import Any

import pytest
import torch

NAMES = ("step", "step_profile", "first_step", "patching", "sampling", "memory", "growth", "convergence", "gpu")

pytestmark = [pytest.mark.comfy, pytest.mark.slow]


@pytest.mark.parametrize("name", NAMES)
def test_a_benchmark_runs_at_toy_size(name: str, pack: Any, core_nodes: Any, tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    bench = importlib.import_module(f"benchmarks.{name}")
    tables = bench.run(argparse.Namespace(quick=True, to=tmp_path, batch=None, arm=None, compile=None))
    torch.set_num_threads(threads)
    assert tables
    for table in tables:
        assert len(table.samples) > 1
        assert all(math.isfinite(value) for values in table.samples.values() for value in values)
        assert table.text().count("\n|") >= 2 + len(table.samples)
        assert not table.picture or (tmp_path / table.picture).stat().st_size


def test_the_packs_loading_is_timed_in_a_comfyui_of_its_own() -> None:
    from benchmarks import startup

    assert 0.01 < startup.in_process_of_its_own() < 5
