"""Stable Diffusion 1.5 at its full size with random weights, as an ordinary checkpoint file."""

from pathlib import Path

import torch

UNET = {
    "image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": 320, "channel_mult": [1, 2, 4, 4],
    "num_res_blocks": [2, 2, 2, 2], "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0], "transformer_depth_middle": 1,
    "transformer_depth_output": [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0], "context_dim": 768,
    "use_spatial_transformer": True, "use_linear_in_transformer": False, "adm_in_channels": None,
    "use_temporal_attention": False, "legacy": False,
}  # fmt: skip
VAE = {
    "double_z": True, "z_channels": 4, "resolution": 256, "in_channels": 3, "out_ch": 3, "ch": 128,
    "ch_mult": [1, 2, 4, 4], "num_res_blocks": 2, "attn_resolutions": [], "dropout": 0.0,
}  # fmt: skip
DIFFUSERS = {"cross_attention_dim": 768}  # the rest is what `UNet2DConditionModel` begins with


def write(path: Path) -> None:
    """Make the file through ComfyUI's own classes, in float16: UNet, text encoder, VAE."""
    import comfy.sd1_clip
    import comfy.supported_models
    from comfy.ldm.models.autoencoder import AutoencoderKL
    from safetensors.torch import save_file

    torch.manual_seed(0)
    config = comfy.supported_models.SD15(UNET)
    config.set_inference_dtype(torch.float16, None)
    unet = config.get_model({}, "").diffusion_model
    text = comfy.sd1_clip.SD1ClipModel(dtype=torch.float16)
    vae = AutoencoderKL(embed_dim=4, ddconfig=VAE).half()
    tensors: dict[str, torch.Tensor] = {}
    for prefix, module in (("model.diffusion_model.", unet), ("first_stage_model.", vae)):
        tensors |= {prefix + key: random_like(key, tensor) for key, tensor in module.state_dict().items()}
    for key, tensor in text.clip_l.transformer.state_dict().items():
        if "text_projection" not in key:
            tensors["cond_stage_model.transformer." + key] = random_like(key, tensor)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    save_file(tensors, part)
    part.rename(path)


def random_like(key: str, tensor: torch.Tensor) -> torch.Tensor:
    """Small random weights; norms at 1, so that activations stay in range."""
    if tensor.ndim < 2:
        return (torch.ones if "norm" in key and key.endswith("weight") else torch.zeros)(tensor.shape).half()
    std = (0.5 / tensor[0].numel()) ** 0.5
    return torch.empty(tensor.shape, dtype=torch.float16).normal_(0, std)
