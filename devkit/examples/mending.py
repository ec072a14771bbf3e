"""Workflows that mend a LoRA that came out too strong."""

from demo.workflow import TRIGGER, node
from demo.world import caption, specs_over, trained_triples

from . import Example, Group
from .parts import DEMO_MODEL, TREE, canvas, curve, load, picture, sampling, words
from .playing import grid

SOFTEN = """**You see** a LoRA that was trained too long and too fast: on the left as it is, on the right with \
its first singular value kept and the others turned down by the curve. The spectrum shows how little of it the \
first value holds.

**Try:** other curves, and look at the grid: on this LoRA a plain strength of 0.5 to 0.75 does as well, on yours \
it may not. *TriLoRA Strength* works on any LoRA, from any loader."""
REPAIR = """**You see** a LoRA that paints its style into everything, trigger word or not, before the repair and \
after it: without the word the base comes back, with it the style stays. No training picture is needed, only \
prompts. It takes some minutes on a CPU.

**Try:** 400 steps, which bring back more, or your own LoRA on your own model: 30 prompts of all kinds, the rate \
it was trained with. The file that is saved is a standard LoRA."""
CAPTIONS = 40


def soften() -> Example:
    cooked = f"{TRIGGER}, {TREE}"
    nodes = DEMO_MODEL | {
        "load": load("stained_glass_overcooked", "A LoRA that is too strong"),
        "spectrum": node("TriLoRASpectrum", trilora=["load", 1]),
        "soft": node(
            "TriLoRAStrength", "First value kept, the rest turned down", model=["load", 0], strength=1.0, keep="all",
            curve=curve((0, 0.5), (0.1, 0.2), (1, 0.2)),
        ),
        "words": words(cooked, "Prompt with the trigger word"),
        **canvas(),
        **picture("overcooked", "As trained", ["load", 0], "words"),
        **picture("softened", "Softened", ["soft", 0], "words"),
        "strengths": grid(
            "Plain strength, for comparison", (cooked,), [["load", 1]], compare="strengths",
            **{"compare.strengths": "0.25, 0.5, 0.75, 1"},
        ),
    }  # fmt: skip
    groups = (
        Group("A LoRA and its spectrum", (("base", "load", "note"), ("spectrum", "words", "nothing", "canvas"))),
        Group("Soften it", (("soft",), sampling("overcooked"), sampling("softened"))),
        Group("Plain strength", (("strengths",),)),
    )
    return Example(nodes, {"note": SOFTEN}, groups, ("overcooked", "softened"))


def repair() -> Example:
    captions = dict.fromkeys(caption(spec) for spec in specs_over(trained_triples(), CAPTIONS, seed=5))
    nodes = DEMO_MODEL | {
        "load": load("stained_glass_overcooked", "A LoRA that has forgotten its base"),
        "repair": node(
            "TriLoRARepair", model=["base", 0], clip=["base", 1], vae=["base", 2], trilora=["load", 1],
            trigger=TRIGGER, captions="\n".join(captions), resolution=128, steps=200, learning_rate=3e-3, preserve=0.3,
            batch=2, seed=30,
        ),
        "save": node("TriLoRASave", trilora=["repair", 0], filename="my_repaired", precision="float32"),
        "pictures": node("SaveImage", "Base, before, after", images=["repair", 1], filename_prefix="TriLoRA/repair"),
        "report": node("PreviewImage", "Loss and singular values", images=["repair", 2]),
        "told": node("PreviewAny", "The repair in numbers", source=["repair", 3]),
    }  # fmt: skip
    groups = (
        Group("A LoRA to mend", (("base", "load", "note"),)),
        Group("Mend it", (("repair",), ("save", "told", "report"), ("pictures",))),
    )
    return Example(nodes, {"note": REPAIR}, groups, ("pictures",), {"repair": ("pictures",)})
