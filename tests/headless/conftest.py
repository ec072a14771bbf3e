"""The demo base as a diffusers pipeline, and the command line in this process."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from shipped import BASE, STYLE, TRIGGER


@pytest.fixture(scope="session")
def pipe() -> Any:
    """The demo base in float32 on the CPU. Tests leave it as it is."""
    from trilora.headless.pipelines import load_pipeline

    return load_pipeline(BASE, device="cpu")


@pytest.fixture
def own_pipe() -> Any:
    """A demo base of the test's own."""
    from trilora.headless.pipelines import load_pipeline

    return load_pipeline(BASE, device="cpu")


class Said(NamedTuple):
    """How a command ended, and what it said."""

    code: int
    out: str
    err: str


@pytest.fixture
def trilora(capfd: pytest.CaptureFixture[str]) -> Callable[..., Said]:
    """`python -m trilora ...` in this process."""
    from trilora.headless.cli import main

    def run(*words: Any) -> Said:
        capfd.readouterr()
        code = main([str(word) for word in words])
        return Said(code, *capfd.readouterr())

    return run


@pytest.fixture
def train_words(tmp_path: Path) -> Callable[..., list[str]]:
    """The words of a short training on a few small pictures; flags can be changed, None leaves one out."""

    def words(**changed: Any) -> list[str]:
        flags = {
            "base": BASE, "pictures": STYLE, "trigger": TRIGGER, "resolution": 64, "bucket_step": 0, "rank": 4,
            "steps": 4, "learning_rate": 2e-3, "batch": 2, "held_out_share": 0.0, "preview_every": 0, "device": "cpu",
            "output": tmp_path / "out.safetensors", **changed,
        }  # fmt: skip
        return ["train", *(str(w) for k, v in flags.items() if v is not None for w in ("--" + k.replace("_", "-"), v))]

    return words
