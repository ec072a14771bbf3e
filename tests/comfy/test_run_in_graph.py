"""Train TriLoRA as a run: it is watched, lasts through a break, and goes on from what there is."""

import dataclasses
import errno
import json
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from identical import same

pytestmark = pytest.mark.comfy

PREVIEWS = {"previews": "on", "every": 4, "prompt": "", "seed": 30, "steps": 2, "cfg": 1.0}


@pytest.fixture(scope="module")
def others(run_node: Callable[..., Any], dataset: Any) -> Any:
    """Three pictures without a trigger word."""
    pixels = torch.stack([picture.pixels((128, 128)) for picture in dataset.pictures[:3]])
    (data,) = run_node(
        "TriLoRADataset", folder=["unused"], trigger=[""], resolution=[128], bucket_step=[0], images=[pixels],
        captions=["a house", "a boat", "a tree"],
    )  # fmt: skip
    return data


@pytest.fixture
def runs(comfy_base: Path) -> Path:
    return comfy_base / "output" / "TriLoRA" / "runs"


def test_a_run_that_was_cancelled_goes_on_to_the_same_bits(
    train: Callable[..., Any], watching: Callable[..., Any], bar: Callable[..., None], comfy_base: Path
) -> None:
    import comfy.model_management as management

    settings = {"steps": 9, "seed": 101, "preserve": 0.3}
    watch = watching(held_out_share=0.1, resume=True, checkpoint_every=2)
    bar(lambda step: step >= 5 and management.interrupt_current_processing())
    with pytest.raises(management.InterruptProcessingException):
        train(watch=watch, **settings)
    bar(lambda step: None)
    resumed = train(watch=watch, **settings)
    want = train(watch=watching(held_out_share=0.1), **settings)
    assert "going on from step 5" in resumed.summary
    assert same(resumed.trilora, want.trilora)
    assert resumed.loss_map["loss"] == want.loss_map["loss"]


def test_changed_settings_begin_a_new_run_and_say_which(
    train: Callable[..., Any], watching: Callable[..., Any], bar: Callable[..., None]
) -> None:
    import comfy.model_management as management

    watch = watching(resume=True)
    bar(lambda step: step >= 2 and management.interrupt_current_processing())
    with pytest.raises(management.InterruptProcessingException):
        train(watch=watch, steps=20, seed=102)
    bar(lambda step: None)
    changed = train(watch=watch, steps=3, seed=102, rank=3)
    assert "settings changed" in changed.summary
    assert "rank 4 -> 3" in changed.summary


def test_previews_come_as_they_are_taken_and_make_a_strip(
    train: Callable[..., Any], watching: Callable[..., Any], runs: Path, comfy: Any
) -> None:
    import comfy.utils

    shown = []
    comfy.utils.set_progress_bar_global_hook(lambda v, t, preview=None, node_id=None: preview and shown.append(v))
    try:
        watched = train(watch=watching(previews=PREVIEWS), steps=8, seed=103, learning_rate=2e-2)
    finally:
        comfy.utils.set_progress_bar_global_hook(None)
    assert shown == [0, 4, 8]
    assert watched.previews.shape == (3, 128, 128, 3)
    assert not torch.equal(watched.previews[0], watched.previews[2])
    (strip,) = runs.glob("*/previews.png")
    assert strip.stat().st_size > 1000
    assert same(watched.trilora, train(steps=8, seed=103, learning_rate=2e-2).trilora)


def test_a_run_that_ends_early_has_a_preview_of_its_end(
    train: Callable[..., Any], watching: Callable[..., Any], room: Callable[[str], Any], bar: Callable[..., None]
) -> None:
    def stop(step: int) -> None:
        for live in room("nodes.live").runs() if step else ():
            if live.run:
                live.run.stop()

    bar(stop)
    ended = train(watch=watching(previews=PREVIEWS), steps=12, seed=110, learning_rate=2e-2)
    assert "1 of 12 steps" in ended.summary
    assert len(ended.previews) == 2
    assert not torch.equal(*ended.previews)


def test_no_text_is_read_while_the_model_is_lent(
    train: Callable[..., Any], watching: Callable[..., Any], demo: Any
) -> None:
    """Where room is short, loading CLIP unloads the MODEL, patches and all, and a resumed run would go on without."""
    import comfy.model_management as management

    lent = []

    class Clip:
        def __getattr__(self, name: str) -> Any:
            return getattr(demo.clip, name)

        def encode_from_tokens_scheduled(self, tokens: Any) -> Any:
            lent.append(management.in_training)
            return demo.clip.encode_from_tokens_scheduled(tokens)

    assert len(train(clip=Clip(), steps=1, seed=111, watch=watching(previews=PREVIEWS)).previews) == 2
    assert lent
    assert not any(lent)


def test_the_first_preview_is_the_base(
    train: Callable[..., Any], watching: Callable[..., Any], demo: Any, core_nodes: dict[str, Any]
) -> None:
    """Step 0 paints what KSampler paints with the MODEL as it is: same seed, steps and guidance."""
    preview = {**PREVIEWS, "prompt": "a red house", "every": 50, "steps": 3, "cfg": 2.0}
    watched = train(watch=watching(previews=preview), steps=1, seed=104)
    (positive,), (negative,) = (core_nodes["CLIPTextEncode"]().encode(demo.clip, t) for t in ("a red house", ""))
    latent = {"samples": torch.zeros(1, 4, 16, 16)}
    with torch.inference_mode():
        (painted,) = core_nodes["KSampler"]().sample(
            demo.model, 30, 3, 2.0, "euler", "normal", positive, negative, latent
        )
        (pixels,) = core_nodes["VAEDecode"]().decode(demo.vae, painted)
    assert (watched.previews[0] - pixels[0].clamp(0, 1)).abs().max() <= 1 / 255


def test_held_out_pictures_are_scored_and_said(train: Callable[..., Any], watching: Callable[..., Any]) -> None:
    told = train(watch=watching(held_out_share=0.1), steps=10, seed=105, preserve=0.3).summary
    assert "3 pictures held out, scored every 5 steps" in told
    assert "held-out loss" in told
    assert "prompts without the trigger word moved" in told
    assert "93,632 parameters" not in told
    assert "parameters" in told
    assert "epochs of 29" in told


def test_what_is_known_before_the_first_step_is_said(train: Callable[..., Any]) -> None:
    told = train(steps=20, batch=1, targets={"targets": "cross-attention"}, seed=109).summary
    before = told.split("20 of 20 steps")[0]
    for known in ("parameters", "epochs of 32", "GB of memory", "Buckets: 128 x 128: 32", "to go, after a trial step"):
        assert known in before
    assert "total" in told, "the table of layers"


def test_a_dataset_of_its_own_can_be_held_out(
    train: Callable[..., Any], watching: Callable[..., Any], others: Any
) -> None:
    told = train(watch=watching(), held_out=others, steps=2, seed=106).summary
    assert "3 pictures held out" in told
    assert "epochs of 32" in told


def test_a_training_goes_on_from_an_adapter(train: Callable[..., Any], adapter: Any, dataset: Any) -> None:
    """Its first loss is the one that the adapter ends with, not the base's."""
    fresh, resumed = (float(train(steps=1, seed=5, start_from=a).loss_map["loss"][0]) for a in (None, adapter))
    assert fresh != resumed
    sigma = {"method": "trilora", "core": "diagonal", "initialisation": "balanced", "learn": "sigma"}
    alone = train(steps=2, seed=5, start_from=adapter, method=sigma)
    assert float(alone.loss_map["loss"][0]) == pytest.approx(resumed, rel=1e-5)
    assert f"Σ alone, on {len(adapter.layers)} layers: {4 * len(adapter.layers):,} parameters" in alone.summary


def test_sigma_alone_needs_an_adapter_to_start_from(train: Callable[..., Any]) -> None:
    sigma = {"method": "trilora", "core": "diagonal", "initialisation": "balanced", "learn": "sigma"}
    with pytest.raises(Exception, match="start_from"):
        train(method=sigma)


def test_out_of_memory_says_what_to_lower_and_keeps_the_state(
    train: Callable[..., Any], watching: Callable[..., Any], bar: Callable[..., None], runs: Path, comfy_base: Path
) -> None:
    def exhaust(step: int) -> None:
        if step >= 3:
            raise torch.OutOfMemoryError("no room")

    bar(exhaust)
    with pytest.raises(Exception, match=r"a batch of 4\. Lower batch to 2 and raise accumulate to 2.*on disk"):
        train(watch=watching(), steps=9, batch=4, seed=107)
    states = [p for p in runs.glob("*/step-0000003.safetensors") if json_of(p)["settings"]["seed"] == 107]
    assert len(states) == 1


def test_out_of_memory_on_latents_names_no_resolution_that_does_not_act(
    train: Callable[..., Any], options: Callable[..., Any], bar: Callable[..., None], run_node: Callable[..., Any],
    demo: Any,
) -> None:  # fmt: skip
    conditioning = demo.clip.encode_from_tokens_scheduled(demo.clip.tokenize("a house"))
    (data,) = run_node(
        "TriLoRADataset", folder=["unused"], trigger=[""], resolution=[128], bucket_step=[0],
        latents=[{"samples": torch.randn(2, 4, 8, 8)}], conditioning=[conditioning],
    )  # fmt: skip

    def exhaust(step: int) -> None:
        raise torch.OutOfMemoryError("no room")

    bar(exhaust)
    with pytest.raises(Exception, match="Connect latents of smaller pictures"):
        train(dataset=data, batch=1, options=options(checkpointing=True))


def json_of(state: Path) -> Any:
    return json.loads((state.parent / "run.json").read_text())


def test_a_full_disk_is_said_and_the_training_ends_well(
    train: Callable[..., Any], watching: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    import os

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    ended = train(watch=watching(checkpoint_every=2, previews=PREVIEWS), steps=4, seed=108)
    assert len(ended.loss_map["loss"]) == 4
    assert "state was not saved" in caplog.text
    assert "a preview was not saved" in caplog.text


def test_options_reach_the_run(train: Callable[..., Any], run_node: Callable[..., Any]) -> None:
    options = {
        "optimizer": "adafactor", "sigma_rate": 2.0, "schedule": "cosine", "warmup": 1, "accumulate": 2,
        "average": 0.5, "rank_dropout": 0.1, "layer_dropout": 0.1, "samples": 8,
        "noise_levels": {"noise_levels": "logit-normal", "mean": 0.5, "std": 1.5}, "min_snr": 5.0,
        "noise_offset": 0.05, "loss": {"loss": "huber", "delta": 0.2}, "preserve_captions": "a red house\na blue cat",
        "preserve_every": 1, "prior": 0.5, "precision": "float32", "checkpointing": True,
    }  # fmt: skip
    (wire,) = run_node("TriLoRATrainOptions", **options)
    trained = train(options=wire, steps=3, preserve=0.2)
    settings = json.loads(trained.trilora.metadata["trilora.settings"])
    assert settings["levels"] == "logit-normal"
    assert (settings["levels_mean"], settings["levels_std"]) == (0.5, 1.5)
    assert (settings["loss"], settings["huber_delta"]) == ("huber", 0.2)
    same_names = {"optimizer", "sigma_rate", "schedule", "accumulate", "average", "samples", "min_snr", "precision"}
    assert {name: settings[name] for name in same_names} == {name: options[name] for name in same_names}
    assert "epochs of 8" in trained.summary


def test_regularisation_pictures_take_part(train: Callable[..., Any], others: Any) -> None:
    assert not same(train(steps=2).trilora, train(steps=2, regularisation=others).trilora)


def test_regularisation_pictures_take_part_where_captions_are_dropped(train: Callable[..., Any], others: Any) -> None:
    """The share of the one data set holds for both."""
    always, never = (dataclasses.replace(others, trigger="zorvex", caption_dropout=share) for share in (1.0, 0.0))
    losses = [float(train(steps=1, dataset=d, regularisation=others).loss_map["loss"][0]) for d in (always, never)]
    assert losses[0] != losses[1]


def test_other_noise_levels_of_the_model_begin_a_new_run(
    train: Callable[..., Any], watching: Callable[..., Any], core_nodes: dict[str, Any], demo: Any
) -> None:
    """As of core's ModelSampling nodes, which leave the weights as they are."""

    def summary(sampling: str, zsnr: bool) -> str:
        (model,) = core_nodes["ModelSamplingDiscrete"]().patch(demo.model, sampling, zsnr)
        return train(watch=watching(resume=True), steps=1, seed=109, model=model).summary

    assert "going on from" not in summary("eps", False)
    assert "going on from step 1" in summary("eps", False)
    assert "going on from" not in summary("eps", True)
    assert "going on from" not in summary("v_prediction", False)


def test_what_broken_runs_had_learned_lies_in_a_file_of_each_whatever_the_trigger_is(
    train: Callable[..., Any], run_node: Callable[..., Any], bar: Callable[..., None], comfy_base: Path
) -> None:
    import comfy.model_management as management

    odd = '<"zorvex": a\\b>' + "字" * 120
    (data,) = run_node(
        "TriLoRADataset", folder=["unused"], trigger=[odd], resolution=[64], bucket_step=[0],
        images=[torch.rand(2, 64, 64, 3)], captions=["a house", "a boat"],
    )  # fmt: skip
    bar(lambda step: step >= 1 and management.interrupt_current_processing())
    for rank in (2, 3):
        with pytest.raises(management.InterruptProcessingException):
            train(dataset=data, rank=rank, steps=9)
    kept = [path.name for path in (comfy_base / "models" / "loras" / "unfinished").iterdir()]
    assert len(kept) == 2
    assert not any(mark in name for name in kept for mark in '<>:"\\')


def test_a_cancel_stays_a_cancel_where_the_adapter_can_not_be_saved(
    train: Callable[..., Any], bar: Callable[..., None], comfy_base: Path, caplog: Any
) -> None:
    import comfy.model_management as management

    place = comfy_base / "models" / "loras" / "unfinished"
    place.parent.mkdir(exist_ok=True)
    place.write_text("a file where the folder should be")
    bar(lambda step: step >= 1 and management.interrupt_current_processing())
    try:
        with pytest.raises(management.InterruptProcessingException):
            train(steps=9)
    finally:
        place.unlink()
    assert "What was learned was not saved" in caplog.text


def test_a_page_can_ask_while_trainings_begin(room: Callable[[str], Any]) -> None:
    live, done, interval = room("nodes.live"), threading.Event(), sys.getswitchinterval()

    def begin() -> None:
        number = 0
        while not done.is_set():
            number += 1
            live.Live(str(number % 40), "w", 3)

    training = threading.Thread(target=begin)
    sys.setswitchinterval(1e-5)  # seconds; so that threads meet within the test
    training.start()
    try:
        for _ in range(100):
            assert all(run.whole()["workflow"] == "w" for run in live.runs() if run.workflow == "w")
    finally:
        done.set()
        training.join()
        sys.setswitchinterval(interval)
        for key in [key for key in live.RUNS if key[0] == "w"]:
            del live.RUNS[key]
