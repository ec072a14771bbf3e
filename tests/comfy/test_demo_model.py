"""The small base in ComfyUI's classes is the small base in diffusers' classes."""

from typing import Any

import pytest
import torch

from devkit import ROOT

pytestmark = pytest.mark.comfy

BASE = ROOT / "demo" / "base"
PROMPT = "a red house on the left in a meadow"


@pytest.fixture(scope="module")
def condition(demo: Any) -> torch.Tensor:
    with torch.inference_mode():
        return demo.clip.encode_from_tokens_scheduled(demo.clip.tokenize(PROMPT))[0][0]


def test_the_text_encoder_equals_transformers(condition: torch.Tensor) -> None:
    from transformers import CLIPTextModel, CLIPTokenizer

    tokenizer = CLIPTokenizer.from_pretrained(BASE / "tokenizer")
    encoder = CLIPTextModel.from_pretrained(BASE / "text_encoder").float()
    ids = tokenizer(PROMPT, padding="max_length", max_length=77, return_tensors="pt").input_ids
    with torch.no_grad():
        reference = encoder(ids).last_hidden_state
    assert (condition - reference).abs().max() < 1e-4


@pytest.mark.parametrize("timestep", [0, 250, 999])
def test_the_network_equals_diffusers(demo: Any, condition: torch.Tensor, timestep: int) -> None:
    from diffusers import UNet2DConditionModel

    unet = UNet2DConditionModel.from_pretrained(BASE / "unet").float()
    noisy = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(1))
    text = condition.clone().expand(2, -1, -1)
    with torch.inference_mode():
        ours = demo.model.model.diffusion_model(noisy, torch.tensor([float(timestep)] * 2), context=text)
        reference = unet(noisy, torch.tensor([timestep] * 2), encoder_hidden_states=text).sample
    assert reference.std() > 0.1
    assert (ours - reference).abs().max() < 1e-4


def test_the_autoencoder_equals_diffusers(demo: Any) -> None:
    from diffusers import AutoencoderTiny

    vae = AutoencoderTiny.from_pretrained(BASE / "vae").float()
    picture = torch.rand(1, 128, 128, 3, generator=torch.Generator().manual_seed(2))
    with torch.inference_mode():
        latent = demo.model.model.process_latent_in(demo.vae.encode(picture))
        reference = vae.encode(picture.movedim(-1, 1) * 2 - 1).latents
        again = demo.vae.decode(demo.model.model.process_latent_out(latent))
        there = (vae.decode(reference).sample.movedim(1, -1) / 2 + 0.5).clamp(0, 1)
    assert (latent - reference).abs().max() < 1e-4
    assert (again - there).abs().max() < 1e-3


def test_the_whole_base_is_small() -> None:
    files = [path for path in BASE.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 25e6
    weights = {path.suffix for path in files if path.stat().st_size > 1e6 and path.suffix != ".png"}
    assert weights == {".safetensors"}
