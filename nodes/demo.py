"""TriLoRA Demo Model: the small base shipped with the pack, in ComfyUI's own classes."""

import functools
import json
from pathlib import Path
from types import SimpleNamespace

import comfy.clip_model
import comfy.model_management
import comfy.model_patcher
import comfy.sd
import comfy.sd1_clip
import comfy.supported_models
import comfy.utils
import torch
from comfy_api.latest import io

from ..trilora.errors import FileError
from .sockets import CATEGORY

FOLDER = Path(__file__).parent.parent / "demo" / "base"
WEIGHTS = "diffusion_pytorch_model.safetensors"


class SmallSD(comfy.supported_models.SD15):
    """SD1.x with the demo's sizes."""

    unet_config = {}
    unet_extra_config = {}


def unet_config(diffusers: dict) -> dict:
    """ComfyUI's words for a diffusers `UNet2DConditionModel` config of the SD1.x kind."""
    channels = diffusers["block_out_channels"]
    blocks = diffusers["layers_per_block"]
    depths = [int("CrossAttn" in name) for name in diffusers["down_block_types"]]
    return {
        "image_size": 32,
        "in_channels": diffusers["in_channels"],
        "out_channels": diffusers["out_channels"],
        "model_channels": channels[0],
        "channel_mult": [size // channels[0] for size in channels],
        "num_res_blocks": [blocks] * len(channels),
        "transformer_depth": [depth for depth in depths for _ in range(blocks)],
        "transformer_depth_middle": 1,
        "transformer_depth_output": [depth for depth in depths for _ in range(blocks + 1)],
        "context_dim": diffusers["cross_attention_dim"],
        "num_heads": diffusers["attention_head_dim"],  # diffusers' name for the number of heads
        "num_head_channels": -1,
        "use_spatial_transformer": True,
        "use_linear_in_transformer": False,
        "adm_in_channels": None,
        "use_temporal_attention": False,
        "legacy": False,
    }


def load_model(folder: str, disable_dynamic: bool = False) -> comfy.model_patcher.ModelPatcher:
    """The UNet as a MODEL; also how ComfyUI loads it again where it wants its weights whole."""
    config = unet_config(_json(folder, "unet/config.json"))
    source = comfy.utils.load_torch_file(_file(folder, f"unet/{WEIGHTS}"))
    names = comfy.utils.unet_to_diffusers(config)
    weights = {inner: source[outer] for outer, inner in names.items() if outer in source}
    device = comfy.model_management.get_torch_device()
    settings = SmallSD(config)
    dtype = comfy.model_management.unet_dtype(
        model_params=sum(tensor.numel() for tensor in weights.values()),
        supported_dtypes=settings.supported_inference_dtypes,
        weight_dtype=torch.float16,
    )
    cast = comfy.model_management.unet_manual_cast(dtype, device, settings.supported_inference_dtypes)
    settings.set_inference_dtype(dtype, cast, device=device)
    model = settings.get_model(weights, "")
    kind = comfy.model_patcher.ModelPatcher if disable_dynamic else comfy.model_patcher.CoreModelPatcher
    patcher = kind(model, load_device=device, offload_device=comfy.model_management.unet_offload_device())
    model.load_model_weights(weights, "", assign=patcher.is_dynamic())
    patcher.cached_patcher_init = (load_model, (folder,))
    return patcher


def load_clip(folder: str) -> comfy.sd.CLIP:
    """The text encoder as a CLIP."""
    config = _json(folder, "text_encoder/config.json")
    words = _json(folder, "tokenizer/vocab.json")
    special = {"start": words["<|startoftext|>"], "end": words["<|endoftext|>"], "pad": words["<|endoftext|>"]}
    tokenizer = functools.partial(
        comfy.sd1_clip.SDTokenizer,
        tokenizer_path=str(Path(folder) / "tokenizer"),
        embedding_size=config["hidden_size"],
    )
    encoder = functools.partial(
        comfy.sd1_clip.SDClipModel,
        textmodel_json_config=config,
        special_tokens=special,
        model_class=SmallVocabulary,
        return_projected_pooled=False,
    )
    target = SimpleNamespace(
        params={"clip_model": encoder},
        clip=comfy.sd1_clip.SD1ClipModel,
        tokenizer=functools.partial(comfy.sd1_clip.SD1Tokenizer, tokenizer=tokenizer),
    )
    source = comfy.utils.load_torch_file(_file(folder, "text_encoder/model.safetensors"))
    weights = {"text_model." + key.removeprefix("text_model."): tensor for key, tensor in source.items()}
    weights["text_projection.weight"] = torch.eye(config["hidden_size"])  # SD1.x has none
    clip = comfy.sd.CLIP(target, parameters=sum(tensor.numel() for tensor in weights.values()))
    missing, unexpected = clip.cond_stage_model.clip_l.load_sd(weights)
    if missing or unexpected:
        raise FileError(f"The demo text encoder in {folder} is not whole: {[*missing, *unexpected]}. Install it again.")
    return clip


class SmallVocabulary(comfy.clip_model.CLIPTextModel):
    """ComfyUI's CLIP text model, whose vocabulary is fixed, with as many words as its config says."""

    def __init__(self, config, dtype, device, operations):
        super().__init__(config, dtype, device, operations)
        self.text_model.embeddings.token_embedding = operations.Embedding(
            config["vocab_size"], config["hidden_size"], dtype=dtype, device=device
        )


def load_vae(folder: str) -> comfy.sd.VAE:
    """The tiny autoencoder as a VAE. ComfyUI's decoder begins with a clamp that diffusers keeps outside its list."""
    weights = {"vae_scale": torch.tensor(0.18215), "vae_shift": torch.tensor(0.0)}
    for key, tensor in comfy.utils.load_torch_file(_file(folder, f"vae/{WEIGHTS}")).items():
        half, _, number, rest = key.split(".", 3)
        weights[f"taesd_{half}.{int(number) + (half == 'decoder')}.{rest}"] = tensor
    return comfy.sd.VAE(sd=weights)


class TriLoRADemoModel(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TriLoRADemoModel",
            display_name="TriLoRA Demo Model",
            category=CATEGORY,
            description="A whole, tiny Stable Diffusion that comes with the pack: 128 x 128 pixels, picture-book "
            "scenes such as 'a red house on the left in a meadow'. Nothing is downloaded.",
            inputs=[],
            outputs=[
                io.Model.Output("model", tooltip="Its UNet; train and sample at 128 x 128."),
                io.Clip.Output("clip", tooltip="Its text encoder; it knows the words of its picture book."),
                io.Vae.Output("vae", tooltip="Its autoencoder."),
            ],
        )

    @classmethod
    def execute(cls) -> io.NodeOutput:
        return io.NodeOutput(load_model(str(FOLDER)), load_clip(str(FOLDER)), load_vae(str(FOLDER)))


def _file(folder: str, name: str) -> str:
    path = Path(folder) / name
    if not path.is_file():
        raise FileError(f"The demo model's {name} is missing from {folder}. Install the pack again, whole.")
    return str(path)


def _json(folder: str, name: str) -> dict:
    return json.loads(Path(_file(folder, name)).read_text(encoding="utf-8"))
