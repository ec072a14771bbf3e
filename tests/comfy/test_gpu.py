"""On a CUDA device: cancel, out of memory and after it, offloaded, float8 and streamed bases. `pytest -m gpu`."""

import gc
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from devkit.server import comfy_server

pytestmark = [pytest.mark.comfy, pytest.mark.gpu]

STEPS = 6


def losses(training: Any) -> list[float]:
    return [float(loss) for loss in training.loss_map["loss"]]


def bits(model: Any) -> list[bytes]:
    weights = model.model.state_dict().values()
    return [weight.cpu().contiguous().view(torch.uint8).numpy().tobytes() for weight in weights]


def held() -> int:
    """Bytes on the card."""
    gc.collect()
    torch.cuda.empty_cache()
    return torch.cuda.memory_allocated()


def test_the_base_trains_on_the_card(train: Callable[..., Any], demo: Any) -> None:
    training = train(steps=STEPS)
    assert demo.model.load_device.type == "cuda"
    assert all(math.isfinite(loss) for loss in losses(training))
    assert all(factors.sigma.max() > 0 for factors in training.trilora.layers.values())


def test_cancel_leaves_the_base_its_bits_and_the_card_its_memory(
    train: Callable[..., Any], demo: Any, bar: Callable[..., None]
) -> None:
    import comfy.model_management

    train(steps=1)
    before, free = bits(demo.model), held()

    def cancel(step: int) -> None:
        if step >= 3:
            raise comfy.model_management.InterruptProcessingException

    bar(cancel)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        train(steps=STEPS)
    bar(lambda _step: None)
    assert bits(demo.model) == before
    assert held() <= free + 2**20
    assert len(losses(train(steps=2))) == 2


@pytest.fixture
def small_card() -> Iterator[None]:
    """A limit on what this process may take, a little above what it has."""
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(min(1.0, (held() + 300 * 2**20) / total))
    yield
    torch.cuda.set_per_process_memory_fraction(1.0)


def test_out_of_memory_says_what_to_lower_and_the_next_run_trains(
    train: Callable[..., Any], demo: Any, small_card: None
) -> None:
    before = bits(demo.model)
    with pytest.raises(Exception, match=r"does not suffice for a batch of 64\. Lower batch to 32"):
        train(batch=64, steps=1)
    assert bits(demo.model) == before
    assert len(losses(train(batch=1, steps=1))) == 1


def test_an_offloaded_base_learns_what_a_loaded_one_does(
    train: Callable[..., Any], demo: Any, room: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import comfy.model_management

    loaded = losses(train(steps=STEPS))
    running = room("nodes.running")
    monkeypatch.setattr(running, "_memory", lambda *_: comfy.model_management.get_total_memory() * 2)
    comfy.model_management.unload_all_models()
    offloaded = losses(train(steps=STEPS))
    assert demo.model.loaded_size() < demo.model.model_size()
    assert offloaded == pytest.approx(loaded, rel=1e-2)


def test_a_float8_base_learns(
    train: Callable[..., Any], run_node: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from comfy.cli_args import args

    monkeypatch.setattr(args, "fp8_e4m3fn_unet", True)
    model, *_ = run_node("TriLoRADemoModel")
    assert model.model.diffusion_model.middle_block[1].proj_in.weight.dtype == torch.float8_e4m3fn
    before = bits(model)
    training = train(model=model, steps=STEPS)
    assert losses(training) == pytest.approx(losses(train(steps=STEPS)), rel=0.2)
    assert bits(model) == before


@pytest.mark.slow
def test_dynamic_vram_learns_what_a_whole_model_does(comfy_path: Path, tmp_path: Path) -> None:
    """Two servers, one as it comes and one that loads models whole; the demo's training on each."""
    import sys

    from safetensors.torch import load_file

    from demo.workflow import build

    learned = []
    for name, flags in (("streamed", ()), ("whole", ("--disable-dynamic-vram", "--highvram"))):
        with comfy_server(sys.executable, comfy_path, tmp_path / name, flags) as server:
            server.run(build())
            said = server.log.read_text(errors="replace")
            assert ("DynamicVRAM support detected and enabled" in said) == (name == "streamed")
        files = sorted((tmp_path / name / "models" / "loras").rglob("*.safetensors"))
        learned.append({file.name: load_file(file) for file in files})
    streamed, whole = learned
    assert streamed
    assert streamed.keys() == whole.keys()
    for file, tensors in streamed.items():
        for key, tensor in tensors.items():
            torch.testing.assert_close(tensor, whole[file][key], rtol=0.1, atol=1e-2)
