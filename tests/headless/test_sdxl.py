"""Stable Diffusion XL, shrunken and with random weights: trained, told the sizes, and read by diffusers."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from PIL import Image
from shipped import BASE, TRIGGER
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from trilora import files
from trilora.dataset import Dataset
from trilora.factors import delta
from trilora.headless.denoiser import DiffusersDenoiser
from trilora.headless.encoding import encode
from trilora.headless.paths import kohya
from trilora.headless.pipelines import load_pipeline
from trilora.pictures import read_folder


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every part of SDXL in small, in a folder."""
    torch.manual_seed(0)
    text = CLIPTextConfig(
        vocab_size=624, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        projection_dim=16, bos_token_id=622, eos_token_id=623, pad_token_id=623,
    )  # fmt: skip
    unet = diffusers.UNet2DConditionModel(
        sample_size=8, block_out_channels=(32, 64), layers_per_block=2, cross_attention_dim=32,
        attention_head_dim=(2, 4),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 2), use_linear_projection=True, addition_embed_type="text_time",
        addition_time_embed_dim=8, projection_class_embeddings_input_dim=6 * 8 + 16,
    )  # fmt: skip
    vae = diffusers.AutoencoderKL(
        block_out_channels=(32, 32), down_block_types=("DownEncoderBlock2D",) * 2, latent_channels=4,
        up_block_types=("UpDecoderBlock2D",) * 2, scaling_factor=0.13025,
    )  # fmt: skip
    tokenizer = CLIPTokenizer.from_pretrained(BASE / "tokenizer")
    scheduler = diffusers.EulerDiscreteScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    folder = tmp_path_factory.mktemp("sdxl")
    diffusers.StableDiffusionXLPipeline(
        vae, CLIPTextModel(text), CLIPTextModelWithProjection(text), tokenizer, tokenizer, unet, scheduler
    ).save_pretrained(folder)
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A wide and a square picture."""
    path = tmp_path / "pictures"
    path.mkdir()
    for name, size in (("a", (96, 32)), ("b", (40, 40))):
        picture = Image.linear_gradient("L").resize(size)
        Image.merge("RGB", [picture, picture, picture.rotate(180)]).save(path / f"{name}.png")
        (path / f"{name}.txt").write_text(f"a {name}")
    return path


def test_two_steps_change_what_diffusers_then_reads(
    base: Path, folder: Path, trilora: Callable, train_words: Callable, tmp_path: Path
) -> None:
    words = train_words(
        base=base, pictures=folder, resolution=32, bucket_step=16, steps=2, batch=1, preview_every=2, preview_steps=1
    )
    said = trilora(*words)
    assert said.code == 0, said.err
    adapter = files.load(tmp_path / "out.safetensors")
    assert adapter.metadata["ss_base_model_version"] == "sdxl_base_v1-0"
    assert all(float(delta(factors).abs().max()) > 0 for factors in adapter.layers.values())
    pipe = load_pipeline(base, device="cpu")
    before = {path: layer.weight.clone() for path, layer in pipe.unet.named_modules() if kohya(path) in adapter.layers}
    assert len(before) == len(adapter.layers) > 30
    pipe.load_lora_weights(str(tmp_path / "out.safetensors"))
    pipe.fuse_lora()
    pipe.unload_lora_weights()
    for path, weight in before.items():
        change = pipe.unet.get_submodule(path).weight - weight
        torch.testing.assert_close(change, delta(adapter.layers[kohya(path)]), rtol=1e-3, atol=1e-6)


def test_the_network_is_told_each_pictures_size_crop_and_bucket(base: Path, folder: Path) -> None:
    denoiser = DiffusersDenoiser(load_pipeline(base, device="cpu"))
    data = Dataset(read_folder(folder), TRIGGER, 32, 0)
    ((wide,), (square,)), _ = encode(denoiser, data)
    for condition in (wide.condition, wide.plain):
        assert condition["sizes"].tolist() == [[32, 96, 0, 32, 32, 32]]  # height, width, top, left, height, width
    assert square.condition["sizes"].tolist() == [[40, 40, 0, 0, 32, 32]]
    assert not torch.equal(wide.condition["pooled"], wide.plain["pooled"])
    asked = denoiser.pipe._get_add_time_ids((32, 96), (0, 32), (32, 32), torch.float32, 16)
    assert torch.equal(wide.condition["sizes"], asked), "the order that diffusers has"


def test_a_folder_of_another_kind_is_refused(tmp_path: Path, trilora: Any) -> None:
    (tmp_path / "model_index.json").write_text('{"_class_name": "FluxPipeline"}')
    assert "holds a FluxPipeline, but only" in trilora("sample", "--base", tmp_path, "--prompt", "a").err
    (tmp_path / "a.safetensors").write_bytes(b"nothing")
    said = trilora("sample", "--base", tmp_path / "a.safetensors", "--prompt", "a")
    assert (said.code, "no checkpoint that diffusers knows" in said.err) == (1, True)
