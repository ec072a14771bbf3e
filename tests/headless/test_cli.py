"""The command line: help, exit codes, messages, and every verb on the demo base."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from identical import same
from PIL import Image
from shipped import BASE, STYLE, few_pictures
from strategies import randn

from devkit import ROOT
from trilora import files
from trilora.factors import Factors, delta
from trilora.files import Adapter
from trilora.headless.cli import known
from trilora.headless.paths import dotted


def test_the_program_names_its_verbs(trilora: Callable) -> None:
    said = trilora("--help")
    assert said.code == 0
    for verb in ("train", "sample", "info", "resize", "merge", "extract", "convert"):
        assert f"\n  {verb} " in said.out
    assert trilora().code == 2
    assert "'fly' is none of: train" in trilora("fly").err


@pytest.mark.parametrize("verb", known())
def test_every_verb_has_a_help_page_with_examples(verb: str, trilora: Callable, capfd: Any) -> None:
    with pytest.raises(SystemExit) as stopped:
        trilora(verb, "--help")
    assert stopped.value.code == 0
    assert capfd.readouterr().out.count(f"python -m trilora {verb} ") > 1, "in its usage, and in an example"


def test_help_says_what_each_setting_means(trilora: Callable, capfd: Any) -> None:
    with pytest.raises(SystemExit):
        trilora("train", "--help")
    page = " ".join(capfd.readouterr().out.split())
    assert "--rank INT number of singular values a layer. [16]" in page
    assert "--preview-every INT steps between previews; 0 for none. [250]" in page
    assert "--mirror, --no-mirror whether each picture is shown mirrored too. [False]" in page


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (["train"], 1, "No base was given: use --base"),
        (["train", "--base", "nowhere", "--pictures", "nowhere"], 1, "nowhere is neither a folder"),
        (["train", "--base", BASE, "--pictures", "p", "--rank", "0"], 1, "rank is 0, but has to be at least 1"),
        (
            ["train", "--base", BASE, "--pictures", "p", "--score-every", "0"],
            1,
            "watch.score_every is 0, but has to be",
        ),
        (
            ["train", "--base", BASE, "--pictures", "p", "--checkpoints", "0"],
            1,
            "watch.checkpoints is 0, but has to be",
        ),
        (["train", "--base", BASE, "--pictures", "p", "--resolution", "0"], 1, "data.resolution is 0, but has to be"),
        (["train", "--base", BASE, "--pictures", "p", "--preview-steps", "-1"], 1, "preview.steps is -1, but has to"),
        (["train", "--config", "nowhere.toml"], 1, "nowhere.toml can't be read"),
        (["train", "--base", BASE, "--pictures", "p", "--output-dtype", "fp16"], 1, "output_dtype is 'fp16', but has"),
        (["info", "nowhere.safetensors"], 1, "nowhere.safetensors does not exist"),
        (["resize", "nowhere.safetensors", "--rank", "2", "-o", "x.safetensors"], 1, "does not exist"),
        (["sample", "--base", BASE], 1, "There is nothing to paint"),
        (["sample", "--base", BASE, "--prompt", "a", "--steps", "0"], 1, "0 steps paint nothing"),
        (["resize", "nowhere.safetensors", "--megabytes", "nan", "-o", "x.safetensors"], 1, "nan MB is no size"),
        (["merge", "nowhere.safetensors", "--weights", "inf", "-o", "x.safetensors"], 1, "are not all numbers"),
        (["sample", "--base", BASE, "--prompt", "a", "--device", "gpu"], 1, "The device 'gpu' can't be used"),
        (["train", "--base", BASE, "--pictures", "p", "--device", "cuda:99"], 1, "The device 'cuda:99' can't be used"),
        (["evaluate", STYLE, STYLE, "--demo", "--device", "gpu"], 1, "The device 'gpu' can't be used"),
        (["sample", "--base", BASE, "--prompt", "a", "--adapter", "a", "--strength", "1", "2"], 1, "2 strengths"),
    ],
)
def test_what_can_not_be_done_is_said_without_a_traceback(
    trilora: Callable, words: list[Any], code: int, told: str
) -> None:
    said = trilora(*words)
    assert said.code == code
    assert told in said.err
    assert "Traceback" not in said.err


def test_a_wrong_flag_is_code_2(trilora: Callable) -> None:
    with pytest.raises(SystemExit) as stopped:
        trilora("resize", "a.safetensors", "--rnak", 2)
    assert stopped.value.code == 2


@pytest.mark.parametrize("size", ["4x4", "0x64", "512", "ax64"])
def test_a_size_that_no_picture_has_is_told_with_one_that_is(trilora: Callable, capfd: Any, size: str) -> None:
    with pytest.raises(SystemExit) as stopped:
        trilora("sample", "--base", BASE, "--prompt", "a", "--size", size)
    assert stopped.value.code == 2
    assert f"'{size}' is no width x height of 16 pixels or more, such as 512x768" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("training = 3", "training is 3, but has to be a table"),
        ("[training]\nrnak = 3", "training.rnak does not exist. Did you mean rank?"),
        ("[training]\nrank = 'four'", "training.rank is 'four', but has to be of type int"),
        ("base = ", "is no TOML"),
    ],
)
def test_a_config_that_can_not_be_is_told(trilora: Callable, tmp_path: Path, text: str, told: str) -> None:
    (tmp_path / "a.toml").write_text(text)
    said = trilora("train", "--config", tmp_path / "a.toml")
    assert said.code == 1
    assert told in said.err


def test_text_files_may_begin_with_the_mark_that_windows_puts_there(tmp_path: Path) -> None:
    from trilora.headless import options, running, sample

    file = tmp_path / "said.txt"
    file.write_text("training = 'a red house'\n", encoding="utf-8-sig")
    assert options.read_file(file) == {"training": "a red house"}
    assert sample._lines(str(file)) == running._lines(str(file)) == ["training = 'a red house'"]


def test_info_loads_neither_diffusers_nor_transformers(tmp_path: Path) -> None:
    files.save(made(), tmp_path / "a.safetensors")
    code = (
        "import sys; from trilora.headless.cli import main; main(sys.argv[1:]); "
        "sys.exit(len({'diffusers', 'transformers', 'accelerate'} & set(sys.modules)))"
    )
    command = [sys.executable, "-c", code, "info", str(tmp_path / "a.safetensors")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "rank        3, 2 layers" in done.stdout


def made(seed: int = 0) -> Adapter:
    """A small adapter on two layers of the demo base."""
    place = "down_blocks_0_attentions_0_transformer_blocks_0"
    sigma = torch.tensor([0.9, 0.5, 0.2])
    layers = {
        f"lora_unet_{place}_attn1_to_q": Factors(randn(seed, 64, 3), sigma, randn(seed + 1, 3, 64)),
        f"lora_unet_{place}_attn2_to_k": Factors(randn(seed + 2, 64, 3), sigma, randn(seed + 3, 3, 128)),
    }
    return Adapter(layers, {"ss_base_model_version": "sd_v1", "modelspec.trigger_phrase": "zorvex"})


def test_resize_merge_and_convert_write_what_they_say(trilora: Callable, tmp_path: Path) -> None:
    a, b, out = (tmp_path / f"{name}.safetensors" for name in ("a", "b", "out"))
    files.save(made(0), a)
    files.save(made(10), b)
    assert "rank 2" in trilora("resize", a, "--rank", 2, "-o", out).out
    assert files.load(out).rank == 2
    assert trilora("convert", b, "--to", "diffusers", "-o", b).code == 0
    assert trilora("merge", a, b, "--weights", 1, -0.5, "-o", out).code == 0, "two namings of the same layers"
    merged = files.load(out)
    assert set(merged.layers) == set(made().layers)
    for name, factors in merged.layers.items():
        want = delta(made(0).layers[name]) - 0.5 * delta(made(10).layers[name])
        torch.testing.assert_close(delta(factors), want, rtol=1e-4, atol=1e-4)
    assert trilora("convert", a, "--to", "comfyui", "--depth", 1, "-o", out).code == 0
    assert "diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_q" in files.load(out).layers
    assert trilora("convert", out, "--depth", 1, "-o", out).code == 0
    assert set(files.load(out).layers) == set(made().layers)


def test_extract_finds_what_was_added(trilora: Callable, tmp_path: Path, own_pipe: Any) -> None:
    added = files.load(saved(made(), tmp_path / "added.safetensors"))
    with torch.no_grad():
        for name, factors in added.layers.items():
            own_pipe.unet.get_submodule(dotted(name.removeprefix("lora_unet_"))).weight += delta(factors)
    own_pipe.save_pretrained(tmp_path / "tuned")
    out = tmp_path / "out.safetensors"
    said = trilora("extract", "--base", BASE, "--tuned", tmp_path / "tuned", "--rank", 3, "-o", out)
    assert said.code == 0, said.err
    found = files.load(out)
    assert set(found.layers) == set(added.layers)
    for name, factors in added.layers.items():
        torch.testing.assert_close(delta(found.layers[name]), delta(factors), rtol=1e-3, atol=1e-3)


def saved(adapter: Adapter, path: Path) -> Path:
    files.save(adapter, path)
    return path


def test_sample_paints_each_prompt_at_each_seed_and_an_adapter_acts(trilora: Callable, tmp_path: Path) -> None:
    saved(made(), tmp_path / "a.safetensors")
    (tmp_path / "prompts.txt").write_text("a red house\na cat at night\n")
    words = ["sample", "--base", BASE, "--prompts", tmp_path / "prompts.txt", "--seed", 1, 2, "--steps", 2]
    words += ["--size", "64x32", "--device", "cpu", "--guidance", 3]
    assert trilora(*words, "--output", tmp_path / "bare").code == 0
    adapted = [*words, "--adapter", tmp_path / "a.safetensors", "--output", tmp_path / "adapted"]
    assert trilora(*adapted).code == 0
    assert trilora(*adapted, "--strength", 0, "--output", tmp_path / "zero").code == 0
    pictures = {name: sorted((tmp_path / name).glob("*.png")) for name in ("bare", "adapted", "zero")}
    assert [path.name for path in pictures["bare"]] == [f"00{i}_seed{s}.png" for i in (0, 1) for s in (1, 2)]
    bytes_of = {name: [path.read_bytes() for path in paths] for name, paths in pictures.items()}
    assert Image.open(pictures["bare"][0]).size == (64, 32)
    assert len(set(bytes_of["bare"])) == 4
    assert bytes_of["zero"] == bytes_of["bare"]
    assert not set(bytes_of["adapted"]) & set(bytes_of["bare"])


@pytest.mark.parametrize("count", [1, 1000, 1001])
def test_any_number_of_prompts_lie_in_their_order_by_the_names_of_their_pictures(count: int) -> None:
    from trilora.headless.sample import _named

    names = [_named(number, 30, count) for number in range(count)]
    assert names == sorted(names)
    assert names[0] == ("000_seed30.png" if count < 1001 else "0000_seed30.png")


@pytest.mark.slow
def test_the_toml_in_a_file_makes_the_same_bits_again(trilora: Callable, train_words: Callable, tmp_path: Path) -> None:
    """With a log, previews and held-out pictures; flags won over a first TOML; a run is gone on with from its state."""
    few_pictures(tmp_path / "pictures", 11)
    lines = ["[data]", "mirror = true", "[training]", "rank = 9", "min_snr = 5", 'schedule = "cosine"']
    (tmp_path / "first.toml").write_text("\n".join(lines))
    words = train_words(
        config=tmp_path / "first.toml", pictures=tmp_path / "pictures", held_out_share=None, preview_every=3,
        preview_steps=2, score_every=2, log_dir=tmp_path / "log", steps=6, resolution=32,
    )  # fmt: skip
    said = trilora(*words)
    assert said.code == 0, said.err
    assert "1 pictures held out" in said.out
    first = files.load(tmp_path / "out.safetensors")
    settings = json.loads(first.metadata["trilora.settings"])
    assert (settings["rank"], settings["min_snr"], settings["preserve"]) == (4, 5.0, 0.3)
    assert (tmp_path / "out.safetensors").exists()
    (run,) = (path.parent for path in (tmp_path / "runs").glob("*/run.json"))
    assert {path.name for path in run.glob("preview-*")} == {f"preview-{n:07}.png" for n in (0, 3, 6)}
    assert list((tmp_path / "log").glob("*/events*"))

    (tmp_path / "again.toml").write_text(trilora("info", tmp_path / "out.safetensors", "--toml").out)
    other = tmp_path / "b.safetensors"
    assert trilora("train", "--config", tmp_path / "again.toml", "--runs", tmp_path / "b", "--output", other).code == 0
    again = files.load(other)
    assert same(first, again)
    assert again.metadata["sshs_model_hash"] == first.metadata["sshs_model_hash"]


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
def test_a_run_that_is_interrupted_keeps_its_work_and_goes_on_to_the_same_bits(
    trilora: Callable, train_words: Callable, tmp_path: Path
) -> None:
    """Ctrl-C in a process of its own; the same command then goes on, and ends as a run that was never touched."""
    few_pictures(tmp_path / "pictures", 4)
    same_words = {"pictures": tmp_path / "pictures", "resolution": 32, "steps": 16, "checkpoint_every": 1}
    words = train_words(**same_words)
    command = [sys.executable, "-m", "trilora", *words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    heard = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # what runs in the background may be deaf to Ctrl-C
    running = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, env=environment, preexec_fn=heard)
    deadline = time.monotonic() + 300
    while not list((tmp_path / "runs").glob("*/step-*.safetensors")):
        assert running.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    running.send_signal(signal.SIGINT)
    _, told = running.communicate(timeout=120)
    assert running.returncode == 130, told
    assert "what was learned is in" in told
    assert "Traceback" not in told
    assert len(list((tmp_path / "runs").glob("*/unfinished-step-*.safetensors"))) == 1
    assert not (tmp_path / "out.safetensors").exists()
    said = trilora(*words)
    assert "going on from step" in said.out
    assert trilora(*train_words(**same_words, runs=tmp_path / "whole", output=tmp_path / "whole.safetensors")).code == 0
    assert same(files.load(tmp_path / "out.safetensors"), files.load(tmp_path / "whole.safetensors"))


@pytest.mark.parametrize("wrong", [{"start_from": "nowhere.safetensors"}, {"blocks": "99"}, {"preserve_captions": "x"}])
def test_what_can_not_be_trained_is_told_before_pictures_are_encoded(
    trilora: Callable, train_words: Callable, tmp_path: Path, wrong: dict[str, str]
) -> None:
    assert trilora(*train_words(pictures=few_pictures(tmp_path / "pictures", 1), **wrong)).code == 1
    assert not (tmp_path / "runs").exists()


def test_a_run_that_ends_early_ends_with_a_preview(trilora: Callable, train_words: Callable, tmp_path: Path) -> None:
    few_pictures(tmp_path / "pictures", 11)
    words = train_words(
        pictures=tmp_path / "pictures", resolution=32, steps=9, held_out_share=0.2, learning_rate=1e-12, score_every=1,
        patience=2, preview_every=100, preview_steps=1,
    )  # fmt: skip
    said = trilora(*words)
    assert said.code == 0, said.err
    taken = sorted(int(path.stem[-7:]) for path in (tmp_path / "runs").glob("*/preview-0*.png"))
    assert taken[0] == 0
    assert 0 < taken[-1] < 9


def test_a_training_goes_on_from_an_adapter_with_all_its_layers(
    trilora: Callable, train_words: Callable, tmp_path: Path
) -> None:
    few_pictures(tmp_path / "pictures", 2)
    start = ROOT / "demo" / "loras" / "stained_glass.safetensors"
    words = {"pictures": tmp_path / "pictures", "resolution": 32, "steps": 1, "learning_rate": 1e-9, "rank": 3}
    said = trilora(*train_words(**words, start_from=start))
    assert said.code == 0, said.err
    made = files.load(tmp_path / "out.safetensors")
    before, after = files.load(start).layers, made.layers
    assert int(made.metadata["ss_network_dim"]) == files.load(start).rank != 3, "the adapter's own is said"
    assert before.keys() == after.keys()
    for name, factors in before.items():
        torch.testing.assert_close(delta(after[name]), delta(factors), rtol=1e-3, atol=1e-5)
