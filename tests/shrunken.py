"""ComfyUI's own networks, a few layers deep and a few channels wide, with random weights."""

import json
from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

import torch

UNET = {
    "image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": 32, "channel_mult": [1, 2],
    "num_res_blocks": [1, 1], "transformer_depth": [1, 1], "transformer_depth_middle": 1,
    "transformer_depth_output": [1, 1, 1, 1], "context_dim": 24, "use_spatial_transformer": True,
    "use_linear_in_transformer": False, "adm_in_channels": None, "use_temporal_attention": False, "legacy": False,
}  # fmt: skip
FLUX = {
    "image_model": "flux", "in_channels": 16, "out_channels": 16, "vec_in_dim": 20, "context_in_dim": 24,
    "hidden_size": 32, "mlp_ratio": 2.0, "num_heads": 2, "depth": 2, "depth_single_blocks": 2, "axes_dim": [4, 6, 6],
    "theta": 10000, "patch_size": 2, "qkv_bias": True, "guidance_embed": True, "txt_ids_dims": [],
}  # fmt: skip
CHROMA = {
    "image_model": "chroma", "in_channels": 64, "out_channels": 64, "context_in_dim": 24, "hidden_size": 32,
    "mlp_ratio": 2.0, "num_heads": 2, "depth": 2, "depth_single_blocks": 2, "axes_dim": [4, 6, 6], "theta": 10000,
    "patch_size": 2, "qkv_bias": True, "in_dim": 64, "out_dim": 32, "hidden_dim": 32, "n_layers": 1,
    "txt_ids_dims": [], "vec_in_dim": None,
}  # fmt: skip
HUNYUAN = {
    "image_model": "hunyuan_video", "in_channels": 16, "out_channels": 16, "vec_in_dim": 20, "context_in_dim": 24,
    "hidden_size": 32, "mlp_ratio": 2.0, "num_heads": 2, "depth": 2, "depth_single_blocks": 2, "axes_dim": [4, 6, 6],
    "theta": 256, "patch_size": [1, 2, 2], "qkv_bias": True, "guidance_embed": True, "byt5": False, "meanflow": False,
    "use_cond_type_embedding": False, "vision_in_dim": None, "meanflow_sum": False,
}  # fmt: skip
LUMINA = {
    "image_model": "lumina2", "patch_size": 2, "in_channels": 16, "dim": 32, "cap_feat_dim": 24, "n_layers": 2,
    "n_refiner_layers": 1, "qk_norm": True, "n_heads": 2, "n_kv_heads": 1, "axes_dims": [4, 6, 6],
    "axes_lens": [300, 512, 512], "rope_theta": 10000.0, "ffn_dim_multiplier": 1.0, "multiple_of": 16,
}  # fmt: skip
WAN = {
    "image_model": "wan2.1", "model_type": "t2v", "dim": 48, "out_dim": 16, "num_heads": 2, "ffn_dim": 64,
    "num_layers": 2, "patch_size": (1, 2, 2), "freq_dim": 32, "window_size": (-1, -1), "qk_norm": True,
    "cross_attn_norm": True, "eps": 1e-6, "in_dim": 16, "text_dim": 24, "text_len": 16,
}  # fmt: skip
COSMOS = {
    "max_img_h": 240, "max_img_w": 240, "max_frames": 128, "in_channels": 16, "out_channels": 16, "patch_spatial": 2,
    "patch_temporal": 1, "model_channels": 48, "num_blocks": 2, "num_heads": 2, "concat_padding_mask": True,
    "crossattn_emb_channels": 24, "pos_emb_cls": "rope3d", "pos_emb_learnable": True, "pos_emb_interpolation": "crop",
    "use_adaln_lora": True, "adaln_lora_dim": 16, "extra_per_block_abs_pos_emb": False, "mlp_ratio": 2.0,
}  # fmt: skip


class Shrunken(NamedTuple):
    """How one of `comfy.supported_models` is made small.

    Attributes:
        config: class in `comfy.supported_models`.
        unet: its network's arguments.
        latent: shape of one latent, without batch dimension.
        width: of the text embedding.
        tokens: in the text embedding.
        beside: shapes of what conditioning carries beside it.
        silent: layers that no gradient reaches, because the last block's text goes nowhere.
    """

    config: str
    unet: Mapping[str, Any]
    latent: tuple[int, ...]
    width: int = 24
    tokens: int = 16
    beside: Mapping[str, tuple[int, ...]] = {}
    silent: tuple[str, ...] = ()


PIXART = {
    "num_heads": 2, "patch_size": 2, "hidden_size": 48, "in_channels": 4, "depth": 2, "pe_interpolation": 1,
    "model_max_length": 16, "caption_channels": 24, "input_size": 48, "mlp_ratio": 2.0,
}  # fmt: skip
QWEN = {
    "num_layers": 2, "attention_head_dim": 16, "num_attention_heads": 2, "joint_attention_dim": 24,
    "axes_dims_rope": (4, 6, 6),
}  # fmt: skip


POOLED = {"pooled_output": (1, 20)}
QWEN_SILENT = ("transformer_blocks.1.attn.add_q_proj", "transformer_blocks.1.attn.to_add_out",
               "transformer_blocks.1.txt_mlp.*")  # fmt: skip
NETWORKS = {
    "SD1.5": Shrunken("SD15", UNET, (4, 8, 8)),
    "SD2.1": Shrunken("SD20", {**UNET, "use_linear_in_transformer": True, "num_head_channels": 16}, (4, 8, 8)),
    "SDXL": Shrunken(
        "SDXL",
        {**UNET, "use_linear_in_transformer": True, "transformer_depth": [0, 2],
         "transformer_depth_output": [0, 0, 2, 2], "adm_in_channels": 20 + 6 * 256, "num_classes": "sequential"},
        (4, 8, 8), beside=POOLED,
    ),
    "SD3": Shrunken(
        "SD3",
        {"in_channels": 16, "patch_size": 2, "out_channels": 16, "depth": 2, "input_size": None, "adm_in_channels": 20,
         "context_embedder_config": {"target": "torch.nn.Linear", "params": {"in_features": 24, "out_features": 128}},
         "num_patches": 64, "pos_embed_max_size": 8, "pos_embed_scaling_factor": None, "qk_norm": "rms",
         "x_block_self_attn_layers": [0]},
        (16, 8, 8), beside=POOLED,
    ),
    "Flux": Shrunken("Flux", FLUX, (16, 8, 8), beside=POOLED),
    "Flux 2": Shrunken(
        "Flux2",
        {**FLUX, "image_model": "flux2", "in_channels": 128, "out_channels": 128, "vec_in_dim": None, "hidden_size": 32,
         "axes_dim": [4, 4, 4, 4], "theta": 2000, "patch_size": 1, "qkv_bias": False, "guidance_embed": False,
         "global_modulation": True, "mlp_silu_act": True, "ops_bias": False, "default_ref_method": "index",
         "ref_index_scale": 10.0, "txt_ids_dims": [3]},
        (128, 4, 4),
    ),
    "LongCat-Image": Shrunken(
        "LongCatImage", {**FLUX, "vec_in_dim": None, "guidance_embed": False, "txt_ids_dims": [1, 2]}, (16, 8, 8)
    ),
    "Chroma": Shrunken("Chroma", CHROMA, (16, 8, 8)),
    "Chroma Radiance": Shrunken(
        "ChromaRadiance",
        {**CHROMA, "image_model": "chroma_radiance", "in_channels": 3, "out_channels": 3, "patch_size": 16,
         "nerf_hidden_size": 8, "nerf_mlp_ratio": 2, "nerf_depth": 1, "nerf_max_freqs": 4, "nerf_tile_size": 512,
         "nerf_final_head_type": "conv", "nerf_embedder_dtype": torch.float32, "use_x0": False,
         "use_sequential_txt_ids": False},
        (3, 32, 32),
    ),
    "HunyuanVideo": Shrunken("HunyuanVideo", HUNYUAN, (16, 1, 8, 8), beside=POOLED),
    "HunyuanVideo 1.5": Shrunken(
        "HunyuanVideo15",
        {**HUNYUAN, "in_channels": 65, "out_channels": 32, "patch_size": [1, 1, 1], "vec_in_dim": None,
         "guidance_embed": False, "use_cond_type_embedding": True, "vision_in_dim": 20, "meanflow_sum": True},
        (32, 1, 4, 4), beside=POOLED,
    ),
    "HunyuanImage 2.1": Shrunken(
        "HunyuanImage21",
        {**HUNYUAN, "in_channels": 64, "out_channels": 64, "patch_size": [1, 1], "axes_dim": [8, 8], "vec_in_dim": None,
         "guidance_embed": False},
        (64, 4, 4),
    ),
    "HunyuanDiT": Shrunken(
        "HunyuanDiT",
        {"image_model": "hydit", "depth": 2, "hidden_size": 64, "num_heads": 2, "mlp_ratio": 2.0, "text_states_dim": 24,
         "text_states_dim_t5": 32, "input_size": 8},
        (4, 8, 8),
        tokens=77,
        beside={"attention_mask": (1, 77), "conditioning_mt5xl": (1, 256, 32), "attention_mask_mt5xl": (1, 256)},
    ),
    "Lumina 2": Shrunken("Lumina2", LUMINA, (16, 8, 8)),
    "Z-Image": Shrunken(
        "ZImage",
        {**LUMINA, "n_kv_heads": 2, "rope_theta": 256.0, "z_image_modulation": True, "time_scale": 1000.0,
         "pad_tokens_multiple": 32, "dim": 256, "axes_dims": [32, 48, 48]},
        (16, 8, 8),
    ),
    "Z-Image in pixels": Shrunken(
        "ZImagePixelSpace",
        {**LUMINA, "image_model": "zimage_pixel", "n_kv_heads": 2, "rope_theta": 256.0, "z_image_modulation": True,
         "time_scale": 1000.0, "pad_tokens_multiple": 32, "dim": 256, "axes_dims": [32, 48, 48], "patch_size": 8,
         "in_channels": 3, "decoder_hidden_size": 32, "decoder_num_res_blocks": 1, "decoder_max_freqs": 2},
        (3, 32, 32),
    ),
    "Omnigen 2": Shrunken(
        "Omnigen2",
        {"image_model": "omnigen2", "axes_dim_rope": [4, 6, 6], "axes_lens": [64, 64, 64], "ffn_dim_multiplier": None,
         "hidden_size": 32, "in_channels": 16, "multiple_of": 16, "num_attention_heads": 2, "num_kv_heads": 1,
         "num_layers": 2, "num_refiner_layers": 1, "out_channels": None, "patch_size": 2, "text_feat_dim": 24,
         "timestep_scale": 1000.0},
        (16, 8, 8), beside={"attention_mask": (1, 16)},
    ),
    "Boogu-Image": Shrunken(
        "Boogu",
        {"image_model": "boogu", "axes_dim_rope": [4, 6, 6], "axes_lens": [64, 64, 64], "hidden_size": 32,
         "multiple_of": 16, "num_attention_heads": 2, "num_kv_heads": 1, "num_layers": 2, "num_double_stream_layers": 1,
         "num_refiner_layers": 1, "instruction_feat_dim": 24},
        (16, 8, 8), beside={"attention_mask": (1, 16)},
    ),
    "Qwen-Image": Shrunken(
        "QwenImage", {**QWEN, "image_model": "qwen_image", "in_channels": 64}, (16, 1, 8, 8), silent=QWEN_SILENT
    ),
    "Mage-Flow": Shrunken(
        "MageFlow", {**QWEN, "image_model": "mage_flow", "in_channels": 128}, (128, 4, 4), silent=QWEN_SILENT
    ),
    "Lens": Shrunken(
        "Lens",
        {"image_model": "lens", "in_channels": 128, "out_channels": 32, "num_layers": 2, "num_attention_heads": 2,
         "attention_head_dim": 16, "axes_dims_rope": (4, 6, 6), "enc_hidden_dim": 12,
         "multi_layer_encoder_feature": True, "selected_layer_index": (0, 1)},
        (128, 4, 4),
        silent=("transformer_blocks.1.attn.to_add_out", "transformer_blocks.1.txt_mlp.*"),
    ),
    "Wan 2.1": Shrunken("WAN21_T2V", WAN, (16, 1, 8, 8)),
    "Wan 2.1 image to video": Shrunken("WAN21_I2V", {**WAN, "model_type": "i2v", "in_dim": 36}, (16, 1, 8, 8)),
    "Wan 2.2 5B": Shrunken("WAN22_T2V", {**WAN, "in_dim": 48, "out_dim": 48}, (48, 1, 8, 8)),
    "PixArt Alpha": Shrunken(
        "PixArtAlpha", {**PIXART, "image_model": "pixart_alpha", "micro_condition": True}, (4, 48, 48)
    ),
    "PixArt Sigma": Shrunken(
        "PixArtSigma", {**PIXART, "image_model": "pixart_sigma", "micro_condition": False}, (4, 48, 48)
    ),
    "AuraFlow": Shrunken(
        "AuraFlow",
        {"max_seq": 64, "cond_seq_dim": 24, "n_double_layers": 1, "n_layers": 3, "dim": 32, "n_heads": 2,
         "global_conddim": 32},
        (4, 8, 8),
    ),
    "HiDream": Shrunken(
        "HiDream",
        {"image_model": "hidream", "attention_head_dim": 16, "axes_dims_rope": [8, 4, 4], "caption_channels": [24, 28],
         "max_resolution": [16, 16], "in_channels": 16, "llama_layers": [0, 1, 1], "num_attention_heads": 2,
         "num_routed_experts": 2, "num_activated_experts": 1, "num_layers": 1, "num_single_layers": 2,
         "out_channels": 16, "patch_size": 2, "text_emb_dim": 20},
        (16, 8, 8), beside={**POOLED, "conditioning_llama3": (1, 2, 16, 28)},
    ),
    "Cosmos": Shrunken(
        "CosmosT2V",
        {**COSMOS, "image_model": "cosmos", "block_config": "FA-CA-MLP", "pos_emb_learnable": False,
         "block_x_format": "THWBD", "affline_emb_norm": True, "extra_per_block_abs_pos_emb": True,
         "extra_per_block_abs_pos_emb_type": "learnable"},
        (16, 1, 8, 8),
    ),
    "Cosmos Predict 2": Shrunken("CosmosT2IPredict2", {**COSMOS, "image_model": "cosmos_predict2"}, (16, 1, 8, 8)),
    "Anima": Shrunken(
        "Anima", {**COSMOS, "image_model": "anima"}, (16, 1, 8, 8),
        beside={"t5xxl_ids": (16,), "t5xxl_weights": (16,)},
    ),
    "LTX-Video": Shrunken(
        "LTXV",
        {"image_model": "ltxv", "num_layers": 2, "attention_head_dim": 16, "num_attention_heads": 2,
         "cross_attention_dim": 32, "caption_channels": 24},
        (128, 1, 4, 4), beside={"attention_mask": (1, 16)},
    ),
    "Mochi": Shrunken(
        "GenmoMochi",
        {"image_model": "mochi_preview", "depth": 2, "patch_size": 2, "num_heads": 2, "hidden_size_x": 32,
         "hidden_size_y": 24, "mlp_ratio_x": 384.0, "mlp_ratio_y": 2.0, "learn_sigma": False, "in_channels": 12,
         "qk_norm": True, "qkv_bias": False, "out_bias": True, "attn_drop": 0.0, "patch_embed_bias": True,
         "posenc_preserve_area": True, "timestep_mlp_bias": True, "attend_to_padding": False, "timestep_scale": 1000.0,
         "use_t5": True, "t5_feat_dim": 24, "t5_token_length": 16, "rope_theta": 10000.0},
        (12, 1, 8, 8), beside={"attention_mask": (1, 16)},
    ),
    "Kandinsky 5": Shrunken(
        "Kandinsky5",
        {"image_model": "kandinsky5", "model_dim": 32, "axes_dims": (4, 6, 6), "time_dim": 16, "ff_dim": 64,
         "visual_embed_dim": 132, "in_text_dim": 24, "in_text_dim2": 20, "num_text_blocks": 1, "num_visual_blocks": 2},
        (16, 1, 8, 8), beside=POOLED,
    ),
    "ERNIE-Image": Shrunken(
        "ErnieImage",
        {"image_model": "ernie", "hidden_size": 32, "num_attention_heads": 2, "num_layers": 2, "ffn_hidden_size": 64,
         "text_in_dim": 24, "rope_axes_dim": (4, 6, 6)},
        (128, 4, 4),
    ),
    "Ideogram 4": Shrunken(
        "Ideogram4",
        {"image_model": "ideogram4", "in_channels": 128, "num_layers": 2, "num_attention_heads": 2,
         "attention_head_dim": 16, "intermediate_size": 64, "adaln_dim": 16, "llm_features_dim": 24,
         "mrope_section": [2, 3, 3]},
        (128, 4, 4),
    ),
    "Krea 2": Shrunken(
        "Krea2",
        {"image_model": "krea2", "features": 128, "tdim": 16, "txtdim": 12, "heads": 2, "kvheads": 1, "multiplier": 2,
         "layers": 2, "patch": 2, "channels": 16, "txtlayers": 2, "txtheads": 2, "txtkvheads": 2},
        (16, 1, 8, 8),
    ),
    "JoyImage": Shrunken(
        "JoyImage",
        {"image_model": "joyimage", "rope_dim_list": [4, 6, 6], "theta": 10000, "hidden_size": 32,
         "num_attention_heads": 2, "text_dim": 24, "mlp_width_ratio": 2.0, "num_layers": 2},
        (16, 1, 8, 8),
        silent=("double_blocks.1.attn.txt_attn_proj", "double_blocks.1.txt_mlp.*"),
    ),
    "CogVideoX": Shrunken(
        "CogVideoX_T2V",
        {"image_model": "cogvideox", "num_attention_heads": 2, "attention_head_dim": 16, "time_embed_dim": 16,
         "num_layers": 2, "in_channels": 16, "text_embed_dim": 24, "sample_width": 8, "sample_height": 8,
         "sample_frames": 1, "max_text_seq_length": 16, "use_rotary_positional_embeddings": True},
        (16, 1, 8, 8),
    ),
    "Stable Cascade C": Shrunken(
        "Stable_Cascade_C",
        {"stable_cascade_stage": "c", "c_cond": 32, "c_hidden": [32, 32], "nhead": [2, 2], "blocks": [[1, 1], [1, 1]],
         "block_repeat": [[1, 1], [1, 1]], "c_clip_text": 24, "c_clip_text_pooled": 20},
        (16, 8, 8), beside={"pooled_output": (1, 1, 20)},
    ),
}  # fmt: skip


def model(network: Shrunken) -> Any:
    """A MODEL as ComfyUI's loaders make it, under inference mode, with random weights of its own class."""
    generator = torch.Generator().manual_seed(0)
    with torch.inference_mode():
        base = config_of(network).get_model({}, "").eval()
        if network.config == "Anima":
            base.diffusion_model.llm_adapter = small_adapter(base.get_dtype())
        parameters = dict(base.diffusion_model.named_parameters())
        for name, tensor in base.diffusion_model.state_dict().items():
            if tensor.is_floating_point() and (name == "pos_embed" or name in parameters):
                tensor.copy_(random(name, tensor.shape, generator))
    return patcher(base)


def quantised(network: Shrunken, form: str, paths: str) -> Any:
    """The same, loaded from a file in which the linear layers whose path matches are quantised."""
    from comfy.quant_ops import QUANT_ALGOS, QuantizedTensor

    plain, config = model(network).model.diffusion_model, config_of(network)
    config.quant_config = {"mixed_ops": True}
    with torch.inference_mode():
        state = {name: tensor.clone() for name, tensor in plain.state_dict().items()}
        for path, module in plain.named_modules():
            if isinstance(module, torch.nn.Linear) and fnmatchcase(path, paths):
                weight = state.pop(f"{path}.weight")
                small = QuantizedTensor.from_float(weight, QUANT_ALGOS[form]["comfy_tensor_layout"])
                state |= small.state_dict(f"{path}.weight")
                told = json.dumps({"format": form}).encode()
                state[f"{path}.comfy_quant"] = torch.tensor(list(told), dtype=torch.uint8)
        base = config.get_model({}, "").eval()
        base.load_model_weights(state)
    return patcher(base)


def config_of(network: Shrunken) -> Any:
    """ComfyUI's description of the network, computed in float32."""
    import comfy.supported_models

    config = getattr(comfy.supported_models, network.config)(dict(network.unet))
    config.unet_config.update(network.unet)  # over what the class fixes at full size
    config.set_inference_dtype(torch.float32, None)
    return config


def patcher(base: Any) -> Any:
    """The network as a MODEL."""
    import comfy.model_management
    from comfy.model_patcher import ModelPatcher

    device = comfy.model_management.get_torch_device()
    return ModelPatcher(base, load_device=device, offload_device=comfy.model_management.unet_offload_device())


def small_adapter(dtype: torch.dtype) -> torch.nn.Module:
    """Anima's text adapter, whose 100 million weights no setting of the network makes fewer."""
    import comfy.ops
    from comfy.ldm.anima.model import LLMAdapter

    return LLMAdapter(24, 24, 32, 1, 2, dtype=dtype, operations=comfy.ops.disable_weight_init)


def random(name: str, shape: torch.Size, generator: torch.Generator) -> torch.Tensor:
    """Weights under which every layer's output is about as large as its input."""
    noise = torch.randn(shape, generator=generator)
    if "norm" in name and len(shape) < 2:
        return 1 + 0.1 * noise if name.endswith(("weight", "scale")) else 0.1 * noise
    return noise * (0.1 if len(shape) < 2 else shape[1:].numel() ** -0.5)


def conditioning(network: Shrunken, seed: int) -> list:
    """What a text encoder gives for one caption."""
    generator = torch.Generator().manual_seed(seed)
    beside = {
        name: torch.ones(shape, dtype=torch.long)
        if "mask" in name or "ids" in name
        else torch.randn(shape, generator=generator)
        for name, shape in network.beside.items()
    }
    return [[torch.randn(1, network.tokens, network.width, generator=generator), beside]]
