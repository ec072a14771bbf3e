"""Makes example_workflows/: `COMFYUI_PATH=... python -m devkit.examples [--pictures] [NAME ...]`.

Needs the environment of `python dev.py test`, and Chromium. With --pictures each workflow is run, some minutes a piece,
and its thumbnail made of what comes out; the demo model stands in for a checkpoint.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from PIL import Image

from demo.workflow import Node, node
from devkit import ROOT, comfyui
from devkit.server import Server, comfy_server

from . import Example, examples
from .page import converted, opened

FOLDER = ROOT / "example_workflows"
HELP = ROOT / "web" / "docs" / "pictures"
THUMBNAIL = (512, 320)
HELP_WIDTH = 900
GREY = "#202020"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", action="store_true", help="run them and make the thumbnails")
    parser.add_argument("names", nargs="*", metavar="NAME")
    args = parser.parse_args()
    known = examples()
    chosen = {name: known[name] for name in args.names or known}
    comfy = comfyui.find(ROOT)
    if comfy is None:
        sys.exit("No ComfyUI: run `python dev.py test` once, or set COMFYUI_PATH.")
    with tempfile.TemporaryDirectory() as base, comfy_server(sys.executable, comfy, Path(base)) as server:
        with opened(server) as page:
            for name, example in chosen.items():
                write(FOLDER / f"{name}.json", converted(page, name, example))
        for name, example in chosen.items() if args.pictures else ():
            draw(server, name, example)
            print(name, flush=True)


def write(path: Path, workflow: dict[str, Any]) -> None:
    path.write_text(json.dumps(workflow, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def draw(server: Server, name: str, example: Example) -> None:
    """Run the workflow; its pictures become the thumbnail and those of the help pages."""
    prompt = example.prompt() if example.runs_alone else on_demo_model(example)
    entry = server.run(prompt)

    def of(names: tuple[str, ...]) -> list[Image.Image]:
        files = [server.images(entry, example.numbers[name])[0] for name in names]
        return [Image.open(file).convert("RGB") for file in files]

    thumbnail(of(example.thumbnail)).save(FOLDER / f"{name}.jpg", quality=88, optimize=True)
    for name, nodes in example.help.items():
        row(of(nodes)).save(HELP / f"{name}.jpg", quality=85, optimize=True)


def on_demo_model(example: Example) -> dict[str, Node]:
    """The workflow with the demo model for its checkpoint, and few steps: the thumbnail shows pictures that go in."""
    suited = {
        "TriLoRADataset": {"resolution": 128, "bucket_step": 0},
        "TriLoRATrain": {"steps": 3},
        "EmptyLatentImage": {"width": 128, "height": 128},
        "KSampler": {"cfg": 3.5},
    }
    prompt = {
        id: {**each, "inputs": each["inputs"] | suited.get(each["class_type"], {})}
        for id, each in example.prompt().items()
    }
    return {
        id: node("TriLoRADemoModel") if each["class_type"] == "CheckpointLoaderSimple" else each
        for id, each in prompt.items()
    }


def thumbnail(pictures: list[Image.Image]) -> Image.Image:
    """Pictures beside each other on a field of one size."""
    sheet, strip = Image.new("RGB", THUMBNAIL, GREY), row(pictures)
    scale = min((THUMBNAIL[0] - 8) / strip.width, (THUMBNAIL[1] - 8) / strip.height)
    small = strip.resize((round(strip.width * scale), round(strip.height * scale)), Image.Resampling.LANCZOS)
    sheet.paste(small, ((THUMBNAIL[0] - small.width) // 2, (THUMBNAIL[1] - small.height) // 2))
    return sheet


def row(pictures: list[Image.Image]) -> Image.Image:
    """Pictures of one height beside each other, small ones at twice their size, none wider than the help shows."""
    height = max(each.height for each in pictures)
    if height <= 160:
        height *= 2
    pictures = [
        each.resize((each.width * height // each.height, height), Image.Resampling.LANCZOS) for each in pictures
    ]
    sheet = Image.new("RGB", (sum(each.width + 8 for each in pictures) - 8, height), GREY)
    x = 0
    for each in pictures:
        sheet.paste(each, (x, 0))
        x += each.width + 8
    sheet.thumbnail((HELP_WIDTH, HELP_WIDTH), Image.Resampling.LANCZOS)
    return sheet


if __name__ == "__main__":
    main()
