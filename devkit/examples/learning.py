"""Workflows that train."""

from typing import Any

from demo.workflow import TRIGGER, Node, node

from . import Example, Group
from .parts import DEMO_MODEL, TREE, canvas, dataset, picture, sampling, words

WIRES = {"model": ["base", 0], "clip": ["base", 1], "vae": ["base", 2]}
FIRST = """**Press Run.** A TriLoRA learns stained glass from 32 pictures, some minutes on a CPU; the loss, the \
time left and preview pictures show on *Train TriLoRA*. Then the same scene is painted without it and with it.

**Try:** another prompt, or a strength of 0.5 and 1.5 in *Turn the dial*: only the sampler runs again. For \
pictures of your own, put a folder with captions under `input/` and choose it in *1.*; then press R."""
CHECKPOINT = """**You need** a checkpoint in `models/checkpoints`, and 10 to 100 pictures with captions in a \
folder under `input/`. Choose both, then press Run: loss, previews and the time left show on *Train TriLoRA*, \
and the adapter is saved to `models/loras`.

**SDXL:** resolution 1024 in *1.*, and width and height 1024 in *Size*; the rest stays. **Out of memory:** \
connect *TriLoRA Training Options* with `checkpointing` on."""


def train(title: str, preserve: float = 0.3, **numbers: Any) -> Node:
    """Train TriLoRA with its defaults, apart from these."""
    defaults = {
        "method": "trilora", "method.core": "diagonal", "method.initialisation": "balanced", "method.learn": "all",
        "targets": "attention", "alpha": 8.0, "preserve": preserve, "shrink": 0.0, "clip_norm": 1.0, "blocks": "",
    }  # fmt: skip
    return node("TriLoRATrain", title, **WIRES, dataset=["data", 0], **numbers, **defaults)


def used(prompt: str, cfg: float, filename: str) -> dict[str, Node]:
    """Save, apply, turn the dial; the same scene before and after."""
    return {
        "save": node("TriLoRASave", "3. Save", trilora=["train", 0], filename=filename, precision="float32"),
        "apply": node("TriLoRAApply", "4. Put it on the model", model=["base", 0], trilora=["train", 0], strength=1.0),
        "dial": node("TriLoRAStrength", "5. Turn the dial", model=["apply", 0], strength=1.0, keep="all"),
        "with": words(f"{TRIGGER}, {prompt}", "Prompt with the trigger word"),
        "without": words(prompt, "The same without the trigger word"),
        **picture("before", "Before", ["base", 0], "without", cfg=cfg),
        **picture("style", "With your style", ["dial", 0], "with", cfg=cfg),
        "report": node("PreviewImage", "Loss and singular values", images=["train", 2]),
    }


GROUPS = (
    Group("Learn", (("base", "data", "note"), ("train",), ("save", "report"))),
    Group("Use", (("apply", "dial", "canvas"), ("with", "without", "nothing"), sampling("before"), sampling("style"))),
)


HELP = {"train_report": ("report",), "dataset": ("data",), "demo_model": ("before",)}


def first_style() -> Example:
    nodes = DEMO_MODEL | {
        "data": dataset(),
        "train": train("2. Train", preserve=0.0, steps=200, learning_rate=3e-3, rank=8, batch=4, seed=30),
        **canvas(batch=4),
        **used(TREE, 3.5, "my_first_style"),
    }
    return Example(nodes, {"note": FIRST}, GROUPS, ("before", "style"), HELP)


def checkpoint() -> Example:
    nodes = {
        "base": node("CheckpointLoaderSimple", "Your checkpoint", ckpt_name="v1-5-pruned-emaonly-fp16.safetensors"),
        "data": dataset(512, 64),
        "train": train("2. Train", steps=1000, learning_rate=1e-4, rank=16, batch=1, seed=0),
        **canvas(512, 1),
        **used("a fox in the snow", 7.0, "my_style"),
    }
    return Example(nodes, {"note": CHECKPOINT}, GROUPS, ("data",), runs_alone=False)
