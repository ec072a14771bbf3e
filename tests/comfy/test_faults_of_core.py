"""The faults of ComfyUI's own trainer (v0.30.0), each named, shown there where that is cheap, and absent here."""

import itertools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
from PIL import ImageColor
from safetensors import safe_open
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from trilora.plot import COLOURS, SIZE, loss_chart

pytestmark = pytest.mark.comfy

SIDE, STEPS = 64, 4
LORA = {"method": {"method": "lora", "initialisation": "balanced"}, "learning_rate": 1e-4, "batch": 1}
CORE = {
    "batch_size": 1, "grad_accumulation_steps": 1, "steps": 1, "learning_rate": 1e-4, "rank": 4, "optimizer": "AdamW",
    "loss_function": "MSE", "seed": 0, "training_dtype": "bf16", "lora_dtype": "bf16", "quantized_backward": False,
    "algorithm": "LoRA", "gradient_checkpointing": False, "checkpoint_depth": 1, "offloading": False,
    "existing_lora": "[None]", "bucket_mode": False, "bypass_mode": False,
}  # fmt: skip


class Learned(NamedTuple):
    """An optimizer's parameters before its first and after its last step."""

    first: list[torch.Tensor]
    last: list[torch.Tensor]


Calls = list[torch.Tensor]  # what the UNet was shown, call by call


@pytest.fixture(scope="module")
def few(run_node: Callable[..., Any], dataset: Any) -> Callable[..., Any]:
    """A dataset of the style's first pictures: `few(captions)`, one for each; cut to `shapes` (height, width)."""

    def make(captions: list[str], shapes: list[tuple[int, int]] | None = None, side: int = SIDE) -> Any:
        shapes = shapes or [(side, side)] * len(captions)
        pixels = [p.pixels((w, h)) for p, (h, w) in zip(dataset.pictures, shapes, strict=False)]
        (data,) = run_node(
            "TriLoRADataset", folder=["unused"], trigger=[""], resolution=[side], bucket_step=[32],
            images=[picture[None] for picture in pixels], captions=captions,
        )  # fmt: skip
        return data

    return make


@pytest.fixture(scope="module")
def captions(dataset: Any) -> list[str]:
    return [picture.caption for picture in dataset.pictures[:3]]


@pytest.fixture(scope="module")
def core(core_nodes: dict[str, Any], demo: Any) -> Callable[..., Any]:
    """Run core's own trainer on a dataset of ours: `core(data, steps=...)` gives (lora, loss_map, steps)."""

    @torch.inference_mode()
    def run(data: Any, **changed: Any) -> Any:
        latents, positive = [], []
        for picture in data.pictures:
            latents.append({"samples": demo.vae.encode(picture.pixels(data.size_of(picture))[None])})
            positive.append(demo.clip.encode_from_tokens_scheduled(demo.clip.tokenize(picture.caption)))
        inputs = {name: [value] for name, value in (CORE | changed).items()}
        node = core_nodes["TrainLoraNode"]
        return node.execute(model=[demo.model], latents=latents, positive=positive, **inputs).result

    return run


@pytest.fixture
def calls(comfy: Any, monkeypatch: pytest.MonkeyPatch) -> Calls:
    """Listen to the UNet, whichever copy of it is used."""
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

    heard, forward = [], UNetModel._forward

    def listening(self: Any, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        heard.append(x.detach())
        return forward(self, x, *args, **kwargs)

    monkeypatch.setattr(UNetModel, "_forward", listening)
    return heard


@pytest.fixture
def saying_nothing(comfy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The UNet answers 0, so that its error in eps is the noise itself, of mean square 1."""
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

    forward = UNetModel._forward
    monkeypatch.setattr(UNetModel, "_forward", lambda *args, **kwargs: 0 * forward(*args, **kwargs))


@pytest.fixture
def watched() -> Iterator[Callable[..., Learned]]:
    """Run something and see what its optimizer did: `watched(train, steps=3)`."""
    seen: dict[str, list[torch.Tensor]] = {}

    def copy(optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
        return [p.detach().clone() for group in optimizer.param_groups for p in group["params"]]

    def before(optimizer: torch.optim.Optimizer, *_: object) -> None:
        seen.setdefault("first", copy(optimizer))

    def after(optimizer: torch.optim.Optimizer, *_: object) -> None:
        seen["last"] = copy(optimizer)

    handles = [register_optimizer_step_pre_hook(before), register_optimizer_step_post_hook(after)]

    def run(training: Callable[..., Any], *args: Any, **inputs: Any) -> Learned:
        seen.clear()
        training(*args, **inputs)
        return Learned(seen["first"], seen["last"])

    yield run
    for handle in handles:
        handle.remove()


def most_held(work: Callable[[], Any]) -> int:
    """Bytes of tensors, at the worst moment, above those that were there before."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        work()
    changes = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    changes.sort(key=lambda event: event.start_ns())
    return max(itertools.accumulate(event.nbytes() for event in changes))


def same(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def delta(factors: Any) -> torch.Tensor:
    return factors.u * factors.sigma @ factors.vh


def test_fault_1_latents_of_bucket_mode_are_not_scaled(
    train: Callable[..., Any], core: Callable[..., Any], few: Callable[..., Any], captions: list[str], calls: Calls
) -> None:
    """What reaches the network has spread 1 at every noise level where latents are scaled, and five times that else."""
    data = few(captions, [(64, 64), (96, 32), (32, 96)])
    train(dataset=data, steps=STEPS, **LORA)
    assert len({shown.shape for shown in calls}) > 1
    assert max(shown.std() for shown in calls) < 1.5
    calls.clear()
    core(few(captions[:1]), steps=STEPS, bucket_mode=True)
    assert max(shown.std() for shown in calls) > 3


def test_fault_2_a_batch_of_b_costs_b_times_b(
    train: Callable[..., Any], core: Callable[..., Any], few: Callable[..., Any], captions: list[str], calls: Calls
) -> None:
    """Pictures that pass through the network, of a batch of 3 over a batch of 1."""

    def rows(run: Callable[..., Any], *args: Any, **inputs: Any) -> int:
        calls.clear()
        run(*args, **inputs)
        return sum(len(shown) for shown in calls)

    ours = [rows(train, dataset=few(captions), steps=1, **LORA | {"batch": batch}) for batch in (1, 3)]
    assert ours[1] == 3 * ours[0]
    assert [rows(core, few(captions), batch_size=batch) for batch in (1, 3)] == [1, 9]


def test_fault_2_captions_of_a_batch_are_blended(
    train: Callable[..., Any], core: Callable[..., Any], few: Callable[..., Any], captions: list[str]
) -> None:
    """How much the loss of a batch of two changes when their captions are swapped."""

    def change(run: Callable[[Any], Any]) -> float:
        losses = []
        for order in (captions[:2], captions[1::-1]):
            with torch.random.fork_rng():
                torch.manual_seed(1)
                losses.append(float(run(few(order))[1]["loss"][0]))
        return abs(losses[1] / losses[0] - 1)

    assert change(lambda data: train(dataset=data, steps=1, **LORA | {"batch": 2})) > 1e-3
    assert change(lambda data: core(data, batch_size=2)) < 1e-4


def test_fault_3_gradient_checkpointing_saves_nothing(
    train: Callable[..., Any], core: Callable[..., Any], few: Callable[..., Any], captions: list[str],
    options: Callable[..., Any],
) -> None:  # fmt: skip
    """The most memory held at once, by a step on two pictures large enough to outweigh their encoding."""
    data = few(captions[:2], [(128, 128)] * 2, side=128)

    def ours(on: bool) -> int:
        wire = options(checkpointing=on)
        return most_held(lambda: train(dataset=data, steps=1, options=wire, **LORA | {"batch": 2}))

    def cores(on: bool) -> int:
        return most_held(lambda: core(data, batch_size=2, gradient_checkpointing=on))

    assert ours(True) < 0.6 * ours(False)
    assert cores(True) > 0.95 * cores(False)


def test_fault_4_the_loss_is_weighted_by_sigma_squared(
    train: Callable[..., Any], core: Callable[..., Any], few: Callable[..., Any], captions: list[str],
    saying_nothing: None,
) -> None:  # fmt: skip
    """Of a network that says 0: in its own space (eps) the error is the noise, at every noise level."""
    ours = torch.stack(train(dataset=few(captions), steps=STEPS, **LORA).loss_map["loss"])
    assert (ours - 1).abs().max() < 0.3
    with torch.random.fork_rng():
        torch.manual_seed(0)
        (_, losses, _) = core(few(captions), steps=STEPS)
    assert max(losses["loss"]) / min(losses["loss"]) > 100


def test_fault_4_alpha_is_fixed_at_1_and_trained_by_accident(
    train: Callable[..., Any], core: Callable[..., Any], few: Callable[..., Any], captions: list[str]
) -> None:
    """Adam's first step is as long whatever the gradient's size, so it is alpha that decides what it changes."""
    once, twice = (train(dataset=few(captions), steps=1, alpha=a, **LORA).trilora.layers for a in (4.0, 8.0))
    for name in once:
        assert (delta(twice[name]) - 2 * delta(once[name])).norm() < 0.1 * delta(twice[name]).norm()
    (lora, _, _) = core(few(captions), steps=STEPS, lora_dtype="fp32", learning_rate=1e-2)
    alphas = [float(value) for key, value in lora.items() if key.endswith(".alpha")]
    assert max(abs(alpha - 1) for alpha in alphas) > 1e-3


def test_fault_5_resume_wants_a_file_name_of_one_kind_and_starts_others_afresh(
    train: Callable[..., Any], core: Callable[..., Any], few: Callable[..., Any], captions: list[str],
    run_node: Callable[..., Any], comfy_base: Path, demo: Any,
) -> None:  # fmt: skip
    """A LoRA with kohya's keys, under a name of the user's own: going on begins with the loss that it ended with."""
    data = few(captions)

    def first_loss(**inputs: Any) -> float:
        return float(train(dataset=data, steps=1, **LORA | inputs).loss_map["loss"][0])

    learned = train(dataset=data, steps=4, **LORA | {"learning_rate": 1e-2}).trilora
    for name in ("mine", "mine_4_steps_00001_"):
        run_node("TriLoRASave", trilora=learned, filename=name, precision="float32")
    applied, loaded, *_ = run_node("TriLoRALoad", model=demo.model, file="mine.safetensors", strength=1.0)
    fresh, goes_on = first_loss(), first_loss(start_from=loaded)
    assert abs(goes_on / fresh - 1) > 1e-2
    assert abs(goes_on / first_loss(model=applied) - 1) < 1e-4

    with pytest.raises(ValueError, match="invalid literal"):
        core(data, existing_lora="mine.safetensors")
    begun = []
    for name in ("[None]", "mine_4_steps_00001_.safetensors"):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            begun.append(core(data, existing_lora=name)[1]["loss"][0])
    assert begun[0] == begun[1]
    for name in ("mine", "mine_4_steps_00001_"):
        (comfy_base / "models" / "loras" / f"{name}.safetensors").unlink()


def test_faults_5_and_6_a_cancel_loses_everything_the_optimizer_included(
    train: Callable[..., Any], core: Callable[..., Any], few: Callable[..., Any], captions: list[str],
    bar: Callable[..., None], comfy_base: Path, watching: Callable[..., Any], run_node: Callable[..., Any], demo: Any,
) -> None:  # fmt: skip
    """Cancelled early, a run can be used as it is, and goes on to the very bits of one that was not cancelled."""
    import comfy.model_management as management

    def cancel(step: int) -> None:
        if step >= 3:
            management.interrupt_current_processing()
            management.throw_exception_if_processing_interrupted()

    def files() -> set[Path]:
        return {path for folder in ("models", "output") for path in (comfy_base / folder).rglob("*.safetensors")}

    many = 4 * STEPS  # ComfyUI's bar does not tell of every step
    run, before = {"dataset": few(captions), "seed": 23, **LORA}, files()
    bar(cancel)
    with pytest.raises(management.InterruptProcessingException):
        core(run["dataset"], steps=50)
    assert files() == before
    with pytest.raises(management.InterruptProcessingException):
        train(steps=many, watch=watching(resume=True), **run)
    bar(lambda step: None)
    (kept,) = (path for path in files() - before if path.parent.name == "unfinished")
    _, usable, *_ = run_node("TriLoRALoad", model=demo.model, file=f"unfinished/{kept.name}", strength=1.0)
    step = int(kept.stem.rpartition("-")[2])
    resumed = train(steps=many, watch=watching(resume=True), **run)
    unbroken, early = train(steps=many, **run), train(steps=step, **run)
    assert resumed.loss_map == unbroken.loss_map
    assert f"from step {step} of" in resumed.summary
    for name, factors in unbroken.trilora.layers.items():
        assert same(list(resumed.trilora.layers[name]), list(factors))
        torch.testing.assert_close(delta(usable.layers[name]), delta(early.trilora.layers[name]), rtol=1e-4, atol=1e-8)
    kept.unlink()


def test_fault_7_adapters_in_bf16_hardly_move(
    train: Callable[..., Any], core: Callable[..., Any], few: Callable[..., Any], captions: list[str],
    watched: Callable[..., Learned],
) -> None:  # fmt: skip
    """Share of the adapter's entries, of those that do not start at 0, that a run at rate 1e-4 has changed."""

    def moved(learned: Learned) -> float:
        pairs = [(a.flatten(), b.flatten()) for a, b in zip(*learned, strict=True) if a.ndim > 1 and a.any()]
        start, end = (torch.cat(side) for side in zip(*pairs, strict=True))
        return float((start != end)[start != 0].float().mean())

    ours = watched(train, dataset=few(captions), steps=STEPS, **LORA)
    assert {tensor.dtype for tensor in ours.last} == {torch.float32}
    assert moved(ours) > 0.999
    assert moved(watched(core, few(captions), steps=STEPS)) < 0.5


def test_fault_8_every_weight_norm_and_bias_is_trained(
    train: Callable[..., Any], core: Callable[..., Any], few: Callable[..., Any], captions: list[str],
    watched: Callable[..., Learned], demo: Any,
) -> None:  # fmt: skip
    values = {"targets": "pattern", "pattern": "*.attn2.to_v"}
    network = demo.model.model.diffusion_model
    chosen = [module for name, module in network.named_modules() if name.endswith(".attn2.to_v")]
    ours = watched(train, dataset=few(captions), steps=1, targets=values, **LORA)
    assert len(ours.last) == 2 * len(chosen)
    assert sum(p.numel() for p in ours.last) == sum(4 * (m.in_features + m.out_features) for m in chosen)
    (lora, _, _) = core(few(captions))
    assert [key for key in lora if "norm" in key]
    assert [key for key in lora if key.endswith("diff_b")]


def test_fault_9_the_seed_does_not_seed_the_adapter(
    train: Callable[..., Any], core: Callable[..., Any], few: Callable[..., Any], captions: list[str],
    watched: Callable[..., Learned],
) -> None:  # fmt: skip
    """Whatever was drawn before, which here is a different state of torch's own generator."""
    data = few(captions)

    def run(state: int, training: Callable[..., Any], *args: Any, **inputs: Any) -> Learned:
        with torch.random.fork_rng():
            torch.manual_seed(state)
            return watched(training, *args, **inputs)

    ours = [run(state, train, dataset=data, steps=2, seed=seed, **LORA) for state, seed in ((1, 5), (2, 5), (1, 6))]
    assert same(ours[0].first, ours[1].first)
    assert same(ours[0].last, ours[1].last)
    assert not same(ours[0].first, ours[2].first)
    assert not same(run(1, core, data, seed=5).first, run(2, core, data, seed=5).first)


def test_fault_10_a_constant_loss_breaks_the_plot(
    train: Callable[..., Any], core_nodes: dict[str, Any], few: Callable[..., Any], captions: list[str]
) -> None:
    result = train(dataset=few(captions), steps=1, **LORA)
    assert result.report.std() > 0.01
    with pytest.raises(ZeroDivisionError):
        core_nodes["LossGraphNode"].execute({"loss": [0.5, 0.5]}, "constant")
    line = ImageColor.getrgb(COLOURS[0])
    assert sum(count for count, colour in loss_chart([0.5] * 9).getcolors(1 << 16) if colour == line) > SIZE[0]


def test_fault_11_no_metadata_is_saved(
    train: Callable[..., Any], core: Callable[..., Any], core_nodes: dict[str, Any], few: Callable[..., Any],
    captions: list[str], run_node: Callable[..., Any], comfy_base: Path,
) -> None:  # fmt: skip
    def metadata(path: Path) -> dict[str, str]:
        with safe_open(path, framework="pt") as file:
            return file.metadata() or {}

    adapter = train(dataset=few(captions), steps=1, **LORA).trilora
    (name,) = run_node("TriLoRASave", trilora=adapter, filename="with_metadata", precision="float16")
    ours = metadata(comfy_base / "models" / "loras" / name)
    for key in ("ss_network_dim", "ss_network_alpha", "ss_base_model_version", "sshs_model_hash", "modelspec.date"):
        assert ours[key]
    assert json.loads(ours["trilora.settings"])["learning_rate"] == 1e-4
    (lora, _, steps) = core(few(captions))
    core_nodes["SaveLoRA"].execute(lora, "loras/bare", steps)
    (saved,) = (comfy_base / "output" / "loras").glob("bare*.safetensors")
    assert not metadata(saved).keys() - {"format"}


def test_fault_12_attention_depends_on_the_memory_that_is_free(
    train: Callable[..., Any], core: Callable[..., Any], few: Callable[..., Any], captions: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """With the attention that ComfyUI takes where there is none better: the same run with much memory and with none."""
    from comfy.ldm.modules import attention

    monkeypatch.setattr(attention, "optimized_attention", attention.attention_sub_quad)
    known, losses, data = vars(attention.model_management), [], few(captions)
    for free in (1 << 40, 1):
        with_memory = SimpleNamespace(**known | {"get_free_memory": lambda *_, free=free: (free, free)})
        monkeypatch.setattr(attention, "model_management", with_memory)
        losses.append(train(dataset=data, steps=2, **LORA).loss_map["loss"])
    assert losses[0] == losses[1]
    with pytest.raises(RuntimeError, match="differentiation"):
        core(data)


def test_fault_12_process_wide_flags_stay_set(
    train: Callable[..., Any], core: Callable[..., Any], few: Callable[..., Any], captions: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    import comfy.model_management as management

    def flags() -> dict[str, Any]:
        return {
            "in_training": management.in_training,
            "training_fp8_bwd": management.training_fp8_bwd,
            "grad": torch.is_grad_enabled(),
            "inference": torch.is_inference_mode_enabled(),
            "default dtype": torch.get_default_dtype(),
            "deterministic": torch.are_deterministic_algorithms_enabled(),
            "benchmark": torch.backends.cudnn.benchmark,
            "tf32": (torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32),
            "threads": torch.get_num_threads(),
            "random": torch.get_rng_state().tolist(),
        }

    monkeypatch.setattr(management, "training_fp8_bwd", False)  # and back to what it was, after core has set it
    before = flags()
    train(dataset=few(captions), steps=2, **LORA)
    assert flags() == before
    core(few(captions), quantized_backward=True)
    assert management.training_fp8_bwd
