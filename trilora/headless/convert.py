"""An adapter's file under other names."""

import argparse
from pathlib import Path

from .. import files
from . import keeping, naming

HELP = """write an adapter under the names that another tool reads; its numbers stay

kohya      lora_unet_down_blocks_0_....lora_up.weight with alpha: what TriLoRA writes, and every LoRA tool reads
diffusers  unet.down_blocks.0.....lora_A.weight: what diffusers and peft write
comfyui    diffusion_model.input_blocks.1.....lora_up.weight: ComfyUI's own paths

examples:
  python -m trilora convert style.safetensors --to diffusers -o style_diffusers.safetensors
  python -m trilora convert from_peft.safetensors --to kohya -o style.safetensors
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", help="a LoRA or TriLoRA file of Stable Diffusion 1.x, 2.x or XL")
    parser.add_argument("--to", choices=list(naming.NAMINGS), default="kohya", help="the names to write [kohya]")
    parser.add_argument(
        "--depth", type=int, default=2, help="residual blocks a level of the base's UNet; 1 for the demo base [2]"
    )
    keeping.add_output(parser)


def run(options: argparse.Namespace) -> None:
    adapter = naming.renamed(files.load(Path(options.file)), options.to, options.depth)
    keeping.save(adapter, options, naming.NAMINGS[options.to].suffixes)
