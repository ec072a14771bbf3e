"""How often the base draws the right thing in the right colour in the right place, for combinations never trained.

`python -m demo.measure` uses the shipped base and judge; it writes base/sheet.png and the numbers in the model card.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from .autoencoder import to_tensor, trained_autoencoder
from .card import write_card
from .judge import drawn, load_judge, right, save_judge, through, train_judge
from .scenery import SIZE
from .world import SceneSpec, all_triples, caption, held_out_triples, specs_over

HERE = Path(__file__).parent
STEPS, GUIDANCE = 25, 4.0


def make_judge(work: Path) -> None:
    """Trains the judge, reports it on fresh pictures, and writes demo/judge."""
    judge = train_judge(work)
    specs = specs_over(all_triples(), 1000, seed=91)
    pictures = drawn(specs)
    numbers = rates(right(judge, pictures, specs))
    again = rates(right(judge, through(trained_autoencoder(work), pictures[:200]), specs[:200]))
    print(f"judge on fresh pictures {numbers}, after the autoencoder {again}", flush=True)
    save_judge(judge, HERE / "judge", {"fresh pictures": numbers, "after the autoencoder": again})


def rates(found: dict[str, Tensor]) -> dict[str, float]:
    """Share of right answers by head."""
    return {name: round(float(hit.float().mean()), 4) for name, hit in found.items()}


def load_base(base: Path) -> StableDiffusionPipeline:
    """The shipped model in float32."""
    pipe = StableDiffusionPipeline.from_pretrained(base, safety_checker=None, torch_dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def generate(pipe: StableDiffusionPipeline, prompts: list[str], seed: int = 0, batch: int = 16) -> list[Image.Image]:
    """One picture a prompt; picture i starts from the noise of seed + i."""
    made: list[Image.Image] = []
    for at in range(0, len(prompts), batch):
        some = prompts[at : at + batch]
        noise = [torch.Generator().manual_seed(seed + at + i) for i in range(len(some))]
        made += pipe(
            some, num_inference_steps=STEPS, guidance_scale=GUIDANCE, generator=noise, height=SIZE, width=SIZE
        ).images
    return made


def unseen(count: int) -> list[SceneSpec]:
    """Held-out (thing, colour, place) triples in all scenes."""
    return specs_over(held_out_triples(), count, seed=1)


def measure(work: Path, base: Path, count: int = 240, quick: bool = False) -> dict:
    """Draws `count` unseen prompts, counts what is right, and (unless quick) writes sheet and card."""
    specs = unseen(count)
    pictures = generate(load_base(base), [caption(s) for s in specs])
    found = right(load_judge(), to_tensor(np.stack([np.asarray(p) for p in pictures])), specs)
    numbers = rates(found) | {"pictures": count}
    print(json.dumps(numbers), flush=True)
    labelled_sheet(pictures[:64], [caption(s) for s in specs[:64]]).save(base / "sheet.png", optimize=True)
    if not quick:
        write_card(work, base, numbers, STEPS, GUIDANCE)
    return numbers


def labelled_sheet(pictures: list[Image.Image], captions: list[str], columns: int = 8) -> Image.Image:
    """Pictures with their captions below."""
    cell, font = SIZE + 26, ImageFont.load_default(9)
    rows = -(-len(pictures) // columns)
    out = Image.new("RGB", (columns * (SIZE + 6) + 6, rows * cell + 6), "white")
    pen = ImageDraw.Draw(out)
    for i, (picture, text) in enumerate(zip(pictures, captions, strict=True)):
        x, y = 6 + i % columns * (SIZE + 6), 6 + i // columns * cell
        out.paste(picture, (x, y))
        half = text.index(" ", len(text) // 2)
        pen.text((x, y + SIZE + 1), f"{text[:half]}\n{text[half + 1 :]}", fill=(60, 60, 70), font=font, spacing=1)
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, default=HERE / "base")
    parser.add_argument("--count", type=int, default=240)
    parser.add_argument("--quick", action="store_true", help="numbers and sheet only, the card stays")
    args = parser.parse_args()
    measure(HERE / ".work", args.base, args.count, args.quick)


if __name__ == "__main__":
    main()
