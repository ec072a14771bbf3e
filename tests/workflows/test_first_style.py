"""The whole road on a real server: train, save, load, scale Σ, sample; and what broken files say."""

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from demo.draw import draw
from demo.workflow import TRIGGER, node
from demo.world import SceneSpec
from devkit.server import PromptError, Server

pytestmark = pytest.mark.server

STYLE = "demo: stained_glass"
PROMPTS = ["a white house on the right in a meadow", "a blue cat on the left at night"]
WORDS = [("house", "white", "right", "meadow"), ("cat", "blue", "left", "night")]
SCENES = [SceneSpec(*words, seed) for words in WORDS for seed in range(4)]
TRAINING = {
    "targets": "attention", "alpha": 8.0, "preserve": 0.0, "shrink": 0.0, "clip_norm": 1.0,
    "method": "trilora", "method.core": "diagonal", "method.initialisation": "balanced",
}  # fmt: skip

BASE = {
    "base": node("TriLoRADemoModel"),
    "canvas": node("EmptyLatentImage", width=128, height=128, batch_size=2),
    "nothing": node("CLIPTextEncode", text="", clip=["base", 1]),
}


def road(steps: int) -> dict[str, Any]:
    """Demo model -> dataset -> train -> save."""
    wires = {"model": ["base", 0], "clip": ["base", 1], "vae": ["base", 2], "dataset": ["data", 0]}
    return BASE | {
        "data": node("TriLoRADataset", folder=STYLE, trigger=TRIGGER, resolution=128, bucket_step=0),
        "train": node(
            "TriLoRATrain", **wires, steps=steps, learning_rate=3e-3, rank=8, batch=4, seed=1, **TRAINING
        ),
        "save": node("TriLoRASave", trilora=["train", 0], filename="road", precision="float32"),
        "report": node("SaveImage", images=["train", 2], filename_prefix="report"),
    }  # fmt: skip


def sampled(name: str, model: list[Any], words: str) -> dict[str, Any]:
    """Nodes that sample two pictures of a prompt with a MODEL and save them."""
    return {
        f"{name}_words": node("CLIPTextEncode", text=words, clip=["base", 1]),
        f"{name}_latents": node(
            "KSampler", model=model, positive=[f"{name}_words", 0], negative=["nothing", 0],
            latent_image=["canvas", 0], seed=5, steps=12, cfg=4.0, sampler_name="euler", scheduler="normal",
            denoise=1.0,
        ),
        f"{name}_pixels": node("VAEDecode", samples=[f"{name}_latents", 0], vae=["base", 2]),
        name: node("SaveImage", images=[f"{name}_pixels", 0], filename_prefix=name),
    }  # fmt: skip


@pytest.fixture(scope="module")
def pictures(comfy_server: Server) -> Callable[[str], numpy.ndarray]:
    """Pictures by the name of the node that saved them, (n, h, w, 3) in 0..255.

    One prompt runs the whole road; a second one, when the file is there to be chosen, loads it with core's loader.
    """
    words = f"{TRIGGER}, {PROMPTS[0]}"
    prompt = road(steps=300)
    prompt["load"] = node("TriLoRALoad", model=["base", 0], file=["save", 0], strength=1.0)
    prompt["apply"] = node("TriLoRAApply", model=["base", 0], trilora=["train", 0], strength=1.0)
    for name, strength in (("off", 0.0), ("same", 1.0), ("half", 0.5)):
        prompt[name] = node("TriLoRAStrength", model=["load", 0], strength=strength, keep="all")
    for name in ("base", "load", "apply", "off", "same", "half"):
        prompt |= sampled(f"picture_{name}", [name, 0], words)
    for i, text in enumerate(PROMPTS):
        prompt |= sampled(f"plain_{i}", ["base", 0], text) | sampled(f"styled_{i}", ["load", 0], f"{TRIGGER}, {text}")
    again = BASE | {
        "core": node("LoraLoaderModelOnly", model=["base", 0], lora_name="road.safetensors", strength_model=1.0),
        "top": node("TriLoRAStrength", model=["core", 0], strength=1.0, keep="top k", **{"keep.k": 1}),
    }
    again |= sampled("picture_core", ["core", 0], words) | sampled("picture_top", ["top", 0], words)
    files = [(entry, comfy_server) for entry in (comfy_server.run(prompt), comfy_server.run(again))]

    def read(name: str) -> numpy.ndarray:
        found = [file for entry, server in files if name in entry["outputs"] for file in server.images(entry, name)]
        return numpy.stack([numpy.asarray(Image.open(file).convert("RGB")) for file in found])

    return read


def test_strength_0_gives_the_bases_picture_bit_for_bit(pictures: Callable) -> None:
    assert (pictures("picture_off") == pictures("picture_base")).all()


def test_our_loader_and_cores_give_the_same_picture(pictures: Callable) -> None:
    difference = numpy.abs(pictures("picture_load").astype(int) - pictures("picture_core").astype(int))
    assert difference.max() <= 1


def test_applying_and_loading_give_the_same_picture(pictures: Callable) -> None:
    difference = numpy.abs(pictures("picture_load").astype(int) - pictures("picture_apply").astype(int))
    assert difference.max() <= 1


def test_gains_of_1_change_nothing(pictures: Callable) -> None:
    assert (pictures("picture_same") == pictures("picture_load")).all()


def test_strengths_and_top_k_give_pictures_of_their_own(pictures: Callable) -> None:
    names = ("base", "load", "half", "top")
    for a, b in itertools.combinations(names, 2):
        gap = numpy.abs(pictures(f"picture_{a}").astype(int) - pictures(f"picture_{b}").astype(int))
        assert gap.mean() > 2, (a, b)


def test_the_picture_moves_to_the_style(pictures: Callable) -> None:
    """The Fréchet distance to drawings of the same scenes in the style at least halves."""
    drawn = [draw(spec, "stained_glass") for spec in SCENES]
    wanted = fitted(numpy.stack([numpy.asarray(picture) for picture in drawn]))
    before = fitted(numpy.concatenate([pictures(f"plain_{i}") for i in range(len(PROMPTS))]))
    after = fitted(numpy.concatenate([pictures(f"styled_{i}") for i in range(len(PROMPTS))]))
    assert frechet(after, wanted) <= frechet(before, wanted) / 2


def fitted(batch: numpy.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and covariance of the colours of 4 x 4 pixel cells and of their differences to the cells beside them."""
    pixels = torch.from_numpy(batch).double().movedim(-1, 1) / 255
    cells = torch.nn.functional.avg_pool2d(pixels, 4)
    here, left, above = cells[..., 1:, 1:], cells[..., 1:, :-1], cells[..., :-1, 1:]
    features = torch.cat([here, here - left, here - above], dim=1).movedim(1, -1).flatten(0, 2)  # (cells, 9)
    return features.mean(0), features.T.cov()


def frechet(a: tuple[torch.Tensor, torch.Tensor], b: tuple[torch.Tensor, torch.Tensor]) -> float:
    """Squared Fréchet distance of two Gaussians."""
    root = torch.linalg.eigvals(a[1] @ b[1]).real.clamp_min(0).sqrt().sum()
    return float((a[0] - b[0]).square().sum() + a[1].trace() + b[1].trace() - 2 * root)


def test_a_file_of_ours_says_what_it_is(pictures: Callable, comfy_server: Server) -> None:
    metadata = comfy_server.get("/view_metadata/loras?filename=road.safetensors")
    assert metadata["ss_network_module"] == "networks.lora"
    assert metadata["ss_base_model_version"] == "sd_v1"
    assert metadata["modelspec.trigger_phrase"] == TRIGGER
    assert metadata["trilora.steps"] == "300"


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        ("wrong shape", r"broken\.safetensors.*lora_unet_\S+to_\S+.*(the weight is|do not fit together)"),
        (
            "missing partner",
            r"broken\.safetensors.*lora_down\.weight has no partner \S+lora_up\.weight.*export",
        ),
        ("nan", r"broken\.safetensors.*lora_up\.weight holds NaN or inf.*earlier save"),
        ("unknown layer", r"broken\.safetensors.*lora_unet_elsewhere.*does not exist in this MODEL.*load that base"),
        ("truncated", r"broken\.safetensors is not a whole safetensors file.*again"),
        ("text", r"broken\.safetensors is not a whole safetensors file.*again"),
    ],
)
def test_a_broken_file_stops_the_prompt_and_says_why(
    pictures: Callable, comfy_server: Server, damage: str, words: str
) -> None:
    folder = comfy_server.base / "models" / "loras"
    write_broken(folder / "road.safetensors", folder / "broken.safetensors", damage)
    prompt = BASE | {"load": node("TriLoRALoad", model=["base", 0], file="broken.safetensors", strength=1.0)}
    prompt |= sampled("never", ["load", 0], "a house")
    with pytest.raises(PromptError, match=f"(?s){words}"):
        comfy_server.run(prompt)


def write_broken(good: Path, bad: Path, damage: str) -> None:
    """A copy of a good file with one thing wrong."""
    tensors = load_file(good)
    up = next(key for key in tensors if key.endswith("lora_up.weight"))
    if damage == "text":
        bad.write_text("This is not the adapter that you are looking for.")
        return
    if damage == "truncated":
        bad.write_bytes(good.read_bytes()[:-1000])
        return
    if damage == "wrong shape":
        tensors[up] = tensors[up][:-1].contiguous()
    elif damage == "missing partner":
        del tensors[up]
    elif damage == "nan":
        tensors[up][0, 0] = float("nan")
    elif damage == "unknown layer":
        old = up.removesuffix(".lora_up.weight")
        tensors = {key.replace(old, "lora_unet_elsewhere"): tensor for key, tensor in tensors.items()}
    save_file(tensors, bad)
