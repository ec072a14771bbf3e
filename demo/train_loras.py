"""Trains the adapters of demo/loras on the demo model: `COMFYUI_PATH=... python -m demo.train_loras`, some minutes.

Needs the environment of `python dev.py test`.
"""

import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from demo.workflow import TRIGGER, Node, node
from devkit import ROOT, comfyui
from devkit.server import comfy_server

FOLDER = ROOT / "demo" / "loras"
SECOND_TRIGGER = "plimble"
TRILORA = {"method": "trilora", "method.core": "diagonal", "method.initialisation": "balanced"}
LORA = {"method": "lora", "method.initialisation": "balanced"}
LORAS: dict[str, dict[str, Any]] = {
    "stained_glass": {"steps": 300, "learning_rate": 3e-3, "preserve": 0.0, **TRILORA},
    "paper_print": {"steps": 300, "learning_rate": 2e-3, "preserve": 0.3, **TRILORA},
    # An ordinary LoRA, on purpose too long and too fast: something to mend.
    "stained_glass_overcooked": {"steps": 400, "learning_rate": 6e-3, "preserve": 0.0, **LORA},
}


def training(name: str) -> dict[str, Node]:
    """Demo model -> dataset -> train -> save."""
    style, _, overcooked = name.partition("_overcooked")
    trigger = SECOND_TRIGGER if style == "paper_print" else TRIGGER
    return {
        "base": node("TriLoRADemoModel"),
        "data": node("TriLoRADataset", folder=f"demo: {style}", trigger=trigger, resolution=128, bucket_step=0),
        "watch": node(
            "TriLoRATrainWatch", held_out_share=0.1, score_every=50, patience=0, keep_best=False, previews="off",
            checkpoint_every=0, checkpoints=1, resume=False,
        ),
        "train": node(
            "TriLoRATrain", model=["base", 0], clip=["base", 1], vae=["base", 2], dataset=["data", 0],
            watch=["watch", 0], rank=8, batch=4, seed=30, targets="attention", alpha=8.0, shrink=0.0, clip_norm=1.0,
            **LORAS[name],
        ),
        "save": node("TriLoRASave", trilora=["train", 0], filename=name, precision="float16"),
    }  # fmt: skip


def main() -> None:
    comfy = comfyui.find(ROOT)
    if comfy is None:
        sys.exit("No ComfyUI: run `python dev.py test` once, or set COMFYUI_PATH.")
    FOLDER.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as base, comfy_server(sys.executable, comfy, Path(base)) as server:
        for name in sys.argv[1:] or LORAS:
            entry = server.run(training(name))
            print(name, *entry["outputs"]["train"]["text"], sep="\n", flush=True)
            shutil.copy2(server.base / "models" / "loras" / f"{name}.safetensors", FOLDER)


if __name__ == "__main__":
    main()
