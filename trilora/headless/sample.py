"""Pictures by a base with adapters."""

import argparse
from pathlib import Path

from .. import files
from ..disk import write
from ..errors import TriLoRAError
from ..pictures import SMALLEST

HELP = """paint pictures with a base and any number of adapters

A picture of each prompt at each seed goes into the output folder as 000_seed30.png, 001_seed30.png, ...

examples:
  python -m trilora sample --base sd15/ --adapter fox.safetensors --prompt "zorvex, a fox in the snow"
  python -m trilora sample --base sd15/ --adapter a.safetensors b.safetensors --strength 1 0.5 \\
      --prompts prompts.txt --seed 30 31 32 --size 512x768 --output pictures/
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--base", required=True, help="the model: a folder in diffusers' layout, or a single file")
    parser.add_argument("--base-config", help="for a single file, a folder in diffusers' layout of its kind")
    parser.add_argument("--adapter", nargs="*", default=[], metavar="FILE", help="LoRA or TriLoRA files")
    parser.add_argument("--strength", nargs="+", type=float, default=[1.0], help="one for each adapter, or for all [1]")
    parser.add_argument("--prompt", nargs="*", default=[], help="what to paint")
    parser.add_argument("--prompts", metavar="FILE", help="text file, a prompt a line")
    parser.add_argument("--negative", default="", help="what to stay away from")
    parser.add_argument("--seed", nargs="+", type=int, default=[30], help="of the noise [30]")
    parser.add_argument("--steps", type=int, default=20, help="of sampling [20]")
    parser.add_argument("--guidance", type=float, default=7.5, help="classifier-free guidance; 1 for none [7.5]")
    parser.add_argument("--sampler", default="euler", help="euler, or dpm++ 2m [euler]")
    parser.add_argument("--size", type=_size, default=(512, 512), metavar="WxH", help="in pixels [512x512]")
    parser.add_argument("--dtype", choices=list(files.DTYPES), default="float32", help="of the base [float32]")
    parser.add_argument("--device", help="such as cuda:1 or cpu; the GPU where there is one")
    parser.add_argument("--output", "-o", default="pictures", metavar="FOLDER", help="where pictures go [pictures]")


def run(options: argparse.Namespace) -> None:
    prompts = [*options.prompt, *(_lines(options.prompts) if options.prompts else [])]
    if options.steps < 1:
        raise TriLoRAError(f"{options.steps} steps paint nothing. Give --steps 1 or more.")
    if not prompts:
        raise TriLoRAError("There is nothing to paint. Give --prompt, or --prompts with a file.")
    strengths = options.strength * len(options.adapter) if len(options.strength) == 1 else options.strength
    if len(strengths) != len(options.adapter):
        raise TriLoRAError(f"{len(strengths)} strengths came with {len(options.adapter)} adapters. Give one for each.")
    adapters = [files.load(Path(file)) for file in options.adapter]

    from tqdm import tqdm

    from ..film import png
    from ..plot import picture_of
    from .painting import paint
    from .pipelines import load_pipeline
    from .wearing import worn

    pipe = load_pipeline(options.base, options.dtype, options.device, options.base_config)
    places = [(number, prompt, seed) for number, prompt in enumerate(prompts) for seed in options.seed]
    how = (options.steps, options.guidance, options.size, options.negative, options.sampler)
    with worn(pipe, list(zip(adapters, strengths, strict=True))), tqdm(places, unit="picture") as bar:
        for number, prompt, seed in bar:
            picture = picture_of(paint(pipe, prompt, seed, *how))
            write(Path(options.output) / _named(number, seed, len(prompts)), png(picture))
    print(f"{len(places)} pictures in {options.output}")


def _named(number: int, seed: int, count: int) -> str:
    """A picture's file; `count` prompts lie in their own order by name, because `evaluate --prompts` goes by that."""
    return f"{number:0{max(3, len(str(count - 1)))}}_seed{seed}.png"


def _lines(file: str) -> list[str]:
    try:
        return [line.strip() for line in Path(file).read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise TriLoRAError(f"The prompts in {file} can't be read: {error}.") from None


def _size(text: str) -> tuple[int, int]:
    width, _, height = text.lower().partition("x")
    if not (width.isdecimal() and height.isdecimal() and min(int(width), int(height)) >= SMALLEST):
        raise argparse.ArgumentTypeError(f"{text!r} is no width x height of {SMALLEST} pixels or more, such as 512x768")
    return int(width), int(height)
