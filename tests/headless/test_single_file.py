"""A checkpoint in one file, as the world shares them, is the pipeline that its folder is."""

import re
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from safetensors.torch import save_file
from shipped import BASE
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from trilora.errors import FileError
from trilora.headless.paths import stability
from trilora.headless.pipelines import load_pipeline

VAE = (  # diffusers' names in the autoencoder -> Stability's
    (r"down_blocks\.(\d+)\.resnets\.", r"down.\1.block."),
    (r"down_blocks\.(\d+)\.downsamplers\.0", r"down.\1.downsample"),
    (r"up_blocks\.0\.resnets\.", r"up.1.block."),
    (r"up_blocks\.1\.resnets\.", r"up.0.block."),
    (r"up_blocks\.0\.upsamplers\.0", r"up.1.upsample"),
    (r"mid_block\.resnets\.0", r"mid.block_1"),
    (r"mid_block\.resnets\.1", r"mid.block_2"),
    (r"mid_block\.attentions\.0\.group_norm", r"mid.attn_1.norm"),
    (r"mid_block\.attentions\.0\.to_([qkv])", r"mid.attn_1.\1"),
    (r"mid_block\.attentions\.0\.to_out\.0", r"mid.attn_1.proj_out"),
    (r"conv_norm_out", r"norm_out"),
    (r"conv_shortcut", r"nin_shortcut"),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Stable Diffusion 1.x in small, with random weights."""
    torch.manual_seed(0)
    text = CLIPTextConfig(
        vocab_size=624, hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        projection_dim=32, bos_token_id=622, eos_token_id=623, pad_token_id=623,
    )  # fmt: skip
    unet = diffusers.UNet2DConditionModel(
        sample_size=8, block_out_channels=(32, 64), layers_per_block=2, cross_attention_dim=32, attention_head_dim=2,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    )  # fmt: skip
    vae = diffusers.AutoencoderKL(
        block_out_channels=(32, 32), down_block_types=("DownEncoderBlock2D",) * 2, latent_channels=4,
        up_block_types=("UpDecoderBlock2D",) * 2,
    )  # fmt: skip
    path = tmp_path_factory.mktemp("sd")
    diffusers.StableDiffusionPipeline(
        vae, CLIPTextModel(text), CLIPTokenizer.from_pretrained(BASE / "tokenizer"), unet,
        diffusers.DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear"), None, None,
        requires_safety_checker=False,
    ).save_pretrained(path)  # fmt: skip
    return path


def checkpoint(pipe: Any) -> dict[str, torch.Tensor]:
    """The pipeline's weights under the names of Stability's code."""
    found = {}
    for name, tensor in pipe.unet.state_dict().items():
        path, _, kind = name.rpartition(".")
        # the first level up has no attention
        theirs = stability(path).replace("output_blocks.2.2.conv", "output_blocks.2.1.conv")
        found[f"model.diffusion_model.{theirs}.{kind}"] = tensor
    for name, tensor in pipe.vae.state_dict().items():
        for ours, theirs in VAE:
            name = re.sub(ours, theirs, name)
        square = ".attn_1." in name and tensor.ndim == 2
        found[f"first_stage_model.{name}"] = tensor[:, :, None, None] if square else tensor
    for name, tensor in pipe.text_encoder.state_dict().items():
        found[f"cond_stage_model.transformer.text_model.{name.removeprefix('text_model.')}"] = tensor
    return {name: tensor.contiguous() for name, tensor in found.items()}


def test_a_single_file_is_the_pipeline_of_its_folder(folder: Path, tmp_path: Path) -> None:
    from_folder = load_pipeline(folder, device="cpu")
    save_file(checkpoint(from_folder), tmp_path / "model.safetensors")
    from_file = load_pipeline(tmp_path / "model.safetensors", device="cpu", config=folder)
    for component in ("unet", "vae", "text_encoder"):
        ours, theirs = (getattr(pipe, component).state_dict() for pipe in (from_file, from_folder))
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs), component
    assert from_file.scheduler.config.prediction_type == "epsilon"


def test_without_a_configuration_on_the_machine_it_says_what_to_give(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "empty"))
    save_file(checkpoint(load_pipeline(folder, device="cpu")), tmp_path / "model.safetensors")
    with pytest.raises(FileError, match="weights alone.*base_config"):
        load_pipeline(tmp_path / "model.safetensors")
