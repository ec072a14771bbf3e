"""What an adapter's file says of itself."""

import argparse
import json
from pathlib import Path

from .. import files
from ..errors import TriLoRAError
from ..files import Adapter
from ..spectrum import measure, table

HELP = """say what is in an adapter's file: rank, base, trigger word, training, singular values

examples:
  python -m trilora info fox.safetensors
  python -m trilora info fox.safetensors --toml > again.toml
"""
SAID = (  # what is told first -> where the metadata has it
    ("title", "modelspec.title"),
    ("trigger", "modelspec.trigger_phrase"),
    ("base", "ss_base_model_version"),
    ("base file", "ss_sd_model_name"),
    ("method", "trilora.method"),
    ("pictures", "ss_num_train_images"),
    ("steps", "trilora.steps"),
    ("processes", "trilora.processes"),
    ("loss", "trilora.loss"),
    ("energy kept", "trilora.energy_kept"),
    ("date", "modelspec.date"),
)


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", help="a LoRA or TriLoRA file")
    only = parser.add_mutually_exclusive_group()
    only.add_argument("--toml", action="store_true", help="only the settings that make the same file again")
    only.add_argument("--metadata", action="store_true", help="only the metadata, as JSON")


def run(options: argparse.Namespace) -> None:
    path = Path(options.file)
    adapter = files.load(path)
    if options.toml:
        print(_toml(path, adapter), end="")
    elif options.metadata:
        print(json.dumps(dict(adapter.metadata), indent=1, ensure_ascii=False))
    else:
        print("\n".join([*_said(path, adapter), "", table(measure(adapter.layers))]))


def _said(path: Path, adapter: Adapter) -> list[str]:
    ranks = sorted({factors.rank for factors in adapter.layers.values()})
    span = str(ranks[0]) if len(ranks) == 1 else f"{ranks[0]} to {ranks[-1]}"
    rows = [
        ("file", f"{path.name}, {path.stat().st_size / 1e6:.1f} MB"),
        ("rank", f"{span}, {len(adapter.layers)} layers"),
    ]
    rows += [(name, adapter.metadata[key]) for name, key in SAID if adapter.metadata.get(key)]
    settings = json.loads(adapter.metadata.get("trilora.settings") or "{}")
    if settings:
        rows.append(("settings", ", ".join(f"{name} {value}" for name, value in settings.items() if value != "")))
    return [f"{name:<12}{value}" for name, value in rows]


def _toml(path: Path, adapter: Adapter) -> str:
    text = adapter.metadata.get("trilora.toml")
    if not text:
        raise TriLoRAError(
            f"{path.name} holds no settings of a headless training: it was made in a graph or by another tool. What it "
            f"says of itself: python -m trilora info {path} --metadata."
        )
    count = int(adapter.metadata.get("trilora.processes", "1"))
    several = f"# made by {count} processes: accelerate launch --num_processes {count} -m trilora train --config ...\n"
    return (several if count > 1 else "") + text
