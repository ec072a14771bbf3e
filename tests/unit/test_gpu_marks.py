"""Tests that need a GPU are told of where there is none; none of them passes there."""

import subprocess
import sys

import pytest
import torch

from devkit import ROOT


@pytest.mark.skipif(torch.cuda.is_available(), reason="they run here")
def test_without_cuda_they_are_deselected_and_counted() -> None:
    command = [
        sys.executable,
        "-m",
        "pytest",
        "--collect-only",
        "-q",
        "-p",
        "no:cacheprovider",
        "tests/comfy/test_gpu.py",
    ]
    said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout
    assert "no tests collected (6 deselected)" in said
    assert "::" not in said
