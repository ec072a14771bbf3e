"""What is trained or sampled in diffusers is what ComfyUI trains and samples, and files go both ways."""

from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from shipped import TRIGGER
from strategies import randn

from trilora import files
from trilora.factors import Factors, delta
from trilora.files import Adapter
from trilora.headless import painting
from trilora.headless.denoiser import DiffusersDenoiser
from trilora.headless.paths import kohya
from trilora.headless.wearing import placed, worn

pytestmark = [
    pytest.mark.comfy,
    pytest.mark.skipif(torch.cuda.is_available(), reason="a statement on float32, which ComfyUI uses on the CPU"),
]

PROMPT = "zorvex, a red house on the left in a meadow"
TIMES = [951, 751, 551, 351, 151]


@pytest.fixture(scope="module")
def demo(run_node: Callable[..., Any]) -> Any:
    return run_node("TriLoRADemoModel")


@pytest.fixture(scope="module")
def adapter(pipe: Any) -> Adapter:
    """Noise on every attention layer, strong enough to be seen."""
    paths = [path for path, _ in pipe.unet.named_modules() if path.endswith(("to_q", "to_k", "to_v", "to_out.0"))]
    layers = {}
    for i, path in enumerate(paths):
        out, into = pipe.unet.get_submodule(path).weight.shape
        layers[kohya(path)] = Factors(randn(i, out, 3), torch.tensor([0.02, 0.01, 0.005]), randn(i + 999, 3, into))
    return Adapter(layers, {"ss_base_model_version": "sd_v1"})


@pytest.fixture(scope="module")
def file(adapter: Adapter, comfy_base: Path, core_nodes: Any) -> str:
    files.save(adapter, comfy_base / "models" / "loras" / "headless.safetensors")
    return "headless.safetensors"


@contextmanager
def predicting(pipe: Any, prediction: str):
    """The pipeline as a base of another prediction."""
    from diffusers import DDIMScheduler

    before = pipe.scheduler
    pipe.scheduler = DDIMScheduler.from_config(before.config, prediction_type=prediction)
    try:
        yield DiffusersDenoiser(pipe)
    finally:
        pipe.scheduler = before


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_both_denoisers_are_one(pipe: Any, demo: Any, core_nodes: Any, pack: Any, prediction: str) -> None:
    """Noise levels, noised latents, estimates and output scales, over the whole schedule."""
    import importlib

    room = pack["TriLoRATrain"].__module__.rsplit(".", 1)[0]
    comfy_denoiser, lending = (importlib.import_module(f"{room}.{name}") for name in ("denoiser", "lending"))
    model, clip, _ = demo
    with torch.inference_mode():
        kind = {"epsilon": "eps"}.get(prediction, prediction)
        (model,) = core_nodes["ModelSamplingDiscrete"]().patch(model, kind, False)
        conditioning = clip.encode_from_tokens_scheduled(clip.tokenize(PROMPT))
    quantiles = torch.tensor([0.0, 0.1, 0.35, 0.5, 0.77, 0.9, 0.9995])
    latents, noise = randn(1, 7, 4, 8, 8), randn(2, 7, 4, 8, 8)
    with torch.no_grad(), lending.lent(model) as patcher, predicting(pipe, prediction) as ours:
        theirs = comfy_denoiser.ComfyDenoiser(patcher)
        told = theirs.encode(conditioning, latents[0])
        levels = theirs.levels(quantiles)
        torch.testing.assert_close(ours.levels(quantiles), levels, rtol=1e-4, atol=0)
        torch.testing.assert_close(ours.sigmas, theirs.sigmas.float(), rtol=1e-4, atol=0)
        torch.testing.assert_close(ours.output_scale(levels), theirs.output_scale(levels), rtol=1e-5, atol=1e-6)
        noisy = ours.noised(latents, noise, levels)
        torch.testing.assert_close(noisy, theirs.noised(latents, noise, levels))
        estimate = ours.denoised(noisy, levels, [ours.encode(PROMPT, (64, 64))] * 7)
        torch.testing.assert_close(estimate, theirs.denoised(noisy, levels, [told] * 7), rtol=1e-3, atol=1e-3)


def test_the_same_prompt_and_noise_give_the_same_latents(
    pipe: Any, demo: Any, run_node: Any, core_nodes: Any, adapter: Adapter, file: str
) -> None:
    """Euler over the same noise levels, guidance 7.5, with an adapter that both hosts read from its file."""
    import comfy.sample
    import comfy.samplers

    model, clip, _ = demo
    noise = painting.noise_of(pipe, 30, (128, 128))
    sigmas = torch.cat([DiffusersDenoiser(pipe).sigmas[TIMES], torch.zeros(1)])
    (patched, *_) = run_node("TriLoRALoad", model=model, file=file, strength=1.0)

    def theirs(model: Any) -> torch.Tensor:
        with torch.inference_mode():
            positive, negative = (clip.encode_from_tokens_scheduled(clip.tokenize(t)) for t in (PROMPT, ""))
            sampler = comfy.samplers.sampler_object("euler")
            made = comfy.sample.sample_custom(
                model, noise, 7.5, sampler, sigmas, positive, negative, torch.zeros_like(noise), seed=30,
                disable_pbar=True,
            )  # fmt: skip
            return model.model.process_latent_in(made).clone()

    def ours() -> torch.Tensor:
        return painting.latent(pipe, PROMPT, noise * scale, 5, 7.5, times=TIMES)

    first = float(sigmas[0])
    scale = first / (first**2 + 1) ** 0.5  # below the top of the schedule ComfyUI begins with σ · noise
    bare, adapted = ours(), None
    with worn(pipe, [(adapter, 1.0)]):
        adapted = ours()
    assert (bare - adapted).abs().max() > 0.1, "the adapter acts"
    assert (bare - theirs(model)).abs().max() < 1e-3
    assert (adapted - theirs(patched)).abs().max() < 1e-3


def test_the_same_seed_trains_the_same_adapter(
    run_node: Any, demo: Any, trilora: Any, train_words: Any, tmp_path: Path
) -> None:
    """From pictures to files: loss for loss, layer for layer, to what rounding leaves."""
    words = train_words(steps=6, seed=7, alpha=4.0, log_dir=None)
    assert trilora(*words).code == 0
    ours = files.load(tmp_path / "out.safetensors")
    (data,) = run_node(
        "TriLoRADataset", folder=["demo: stained_glass"], trigger=[TRIGGER], resolution=[64], bucket_step=[0]
    )
    (watch,) = run_node(
        "TriLoRATrainWatch", held_out_share=0.0, previews={"previews": "off"}, resume=False, checkpoint_every=0,
        score_every=5, patience=0, keep_best=True, checkpoints=2,
    )  # fmt: skip
    model, clip, vae = demo
    theirs, losses, *_ = run_node(
        "TriLoRATrain", model=model, clip=clip, vae=vae, dataset=data, steps=6, learning_rate=2e-3, rank=4, batch=2,
        seed=7, method={"method": "trilora", "core": "diagonal", "initialisation": "balanced"},
        targets={"targets": "attention"}, alpha=4.0, preserve=0.3, shrink=0.0, clip_norm=1.0, watch=watch,
    )  # fmt: skip
    assert set(ours.layers) == set(theirs.layers)
    mean = float(torch.stack(losses["loss"]).mean())
    assert float(ours.metadata["trilora.loss"]) == pytest.approx(mean, rel=1e-4)
    for name, factors in theirs.layers.items():
        want = delta(Factors(*factors))
        assert (delta(ours.layers[name]) - want).norm() < 0.05 * want.norm(), name


def test_a_file_of_the_nodes_sits_on_the_pipeline(
    pipe: Any, run_node: Any, adapter: Adapter, comfy_base: Path, file: str
) -> None:
    """Loaded and saved by the nodes, read again headless: the same change of every weight."""
    loaded = Adapter({name: Factors(*f) for name, f in adapter.layers.items()}, adapter.metadata)
    (name,) = run_node("TriLoRASave", trilora=loaded, filename="from_node", precision="float32")
    again = placed(pipe, files.load(comfy_base / "models" / "loras" / name))["unet"]
    assert len(again) == len(adapter.layers)
    for path, factors in again.items():
        torch.testing.assert_close(delta(factors), delta(adapter.layers[kohya(path)]), rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("naming", ["kohya", "diffusers"])
def test_diffusers_and_peft_change_every_layer_as_we_do(
    own_pipe: Any, adapter: Adapter, trilora: Any, tmp_path: Path, naming: str
) -> None:
    files.save(adapter, tmp_path / "ours.safetensors")
    said = trilora("convert", tmp_path / "ours.safetensors", "--to", naming, "-o", tmp_path / "named.safetensors")
    assert said.code == 0, said.err
    before = {
        path: module.weight.clone() for path, module in own_pipe.unet.named_modules() if kohya(path) in adapter.layers
    }
    own_pipe.load_lora_weights(str(tmp_path / "named.safetensors"))
    own_pipe.fuse_lora()
    own_pipe.unload_lora_weights()
    assert len(before) == len(adapter.layers)
    for path, weight in before.items():
        change = own_pipe.unet.get_submodule(path).weight - weight
        torch.testing.assert_close(change, delta(adapter.layers[kohya(path)]), rtol=1e-3, atol=1e-5)
    for path, factors in placed(own_pipe, files.load(tmp_path / "named.safetensors"))["unet"].items():
        torch.testing.assert_close(delta(factors), delta(adapter.layers[kohya(path)]), rtol=1e-4, atol=1e-7)
