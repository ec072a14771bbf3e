"""The workflow behind `python dev.py demo`, in ComfyUI's API form: train twice, save, load, compare, turn the dial."""

from __future__ import annotations

from typing import Any

STYLE, TRIGGER = "demo: stained_glass", "zorvex"
PROMPTS = (  # of combinations that neither the base nor the style's pictures ever showed
    "a white house on the right in a meadow",
    "a blue cat on the left at night",
    "a red boat in the middle on the sea",
)
STRENGTHS = (0.0, 0.5, 1.0, 1.5)
SEED = 30
STEPS = 220

Node = dict[str, Any]


def build(steps: int = STEPS) -> dict[str, Node]:
    """Node id -> node. A picture's title is `row | column` of the sheet that it belongs on."""
    nodes = {
        "base": node("TriLoRADemoModel"),
        "data": node(
            "TriLoRADataset",
            "the pictures it learned from",
            folder=STYLE,
            trigger=TRIGGER,
            resolution=128,
            bucket_step=0,
        ),
        "nothing": text(""),
        "canvas": node("EmptyLatentImage", width=128, height=128, batch_size=1),
    }
    models: dict[str, list[Any]] = {"base": ["base", 0]}
    for method in ("lora", "trilora"):
        nodes |= trained(method, steps)
        models["LoRA" if method == "lora" else "TriLoRA"] = [f"load_{method}", 0]
    for i, prompt in enumerate(PROMPTS):
        nodes[f"prompt_{i}"], nodes[f"plain_{i}"] = text(f"{TRIGGER}, {prompt}"), text(prompt)
        for column, model in models.items():
            words = f"plain_{i}" if column == "base" else f"prompt_{i}"
            nodes |= picture(f"{column}_{i}", f"{prompt} | {column}", model, words)
    for strength in STRENGTHS:
        name = f"strength_{strength:g}"
        nodes[name] = node("TriLoRAStrength", model=["load_trilora", 0], strength=strength, keep="all")
        nodes |= picture(f"{name}_picture", f"strength of TriLoRA | {strength:g}", [name, 0], "prompt_0")
    return nodes


def trained(method: str, steps: int) -> dict[str, Node]:
    """Train, save and load one adapter, and keep its report."""
    settings = {"method": method, "method.initialisation": "balanced"}
    if method == "trilora":
        settings["method.core"] = "diagonal"
    train = node(
        "TriLoRATrain",
        f"train {method}",
        **{"model": ["base", 0], "clip": ["base", 1], "vae": ["base", 2], "dataset": ["data", 0]},
        **{"steps": steps, "learning_rate": 2e-3, "rank": 8, "batch": 4, "seed": SEED, "targets": "attention"},
        **{"alpha": 8.0, "preserve": 0.0, "shrink": 0.0, "clip_norm": 1.0},
        **settings,
    )
    return {
        f"train_{method}": train,
        f"save_{method}": node(
            "TriLoRASave", trilora=[f"train_{method}", 0], filename=f"demo/{method}", precision="float32"
        ),
        f"load_{method}": node("TriLoRALoad", model=["base", 0], file=[f"save_{method}", 0], strength=1.0),
        f"report_{method}": save(f"report of {method}", [f"train_{method}", 2]),
    }


def picture(name: str, title: str, model: list[Any], words: str) -> dict[str, Node]:
    """Sample one picture and save it."""
    sample = node(
        "KSampler",
        **{"model": model, "positive": [words, 0], "negative": ["nothing", 0], "latent_image": ["canvas", 0]},
        **{"seed": SEED, "steps": 20, "cfg": 3.5, "sampler_name": "euler", "scheduler": "normal", "denoise": 1.0},
    )
    return {
        f"{name}_latent": sample,
        f"{name}_pixels": node("VAEDecode", samples=[f"{name}_latent", 0], vae=["base", 2]),
        name: save(title, [f"{name}_pixels", 0]),
    }


def save(title: str, images: list[Any]) -> Node:
    """Write pictures to output/TriLoRA."""
    return node("SaveImage", title, images=images, filename_prefix="TriLoRA/demo")


def text(words: str) -> Node:
    """Encode a prompt."""
    return node("CLIPTextEncode", text=words, clip=["base", 1])


def node(kind: str, title: str = "", **inputs: Any) -> Node:
    """One node of the API form."""
    return {"class_type": kind, "inputs": inputs} | ({"_meta": {"title": title}} if title else {})
