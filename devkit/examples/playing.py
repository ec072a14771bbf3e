"""Workflows that play an adapter's Σ."""

from demo.train_loras import SECOND_TRIGGER
from demo.workflow import SEED, TRIGGER, Node, node

from . import Example, Group
from .parts import BOAT, DEMO_MODEL, TREE, canvas, curve, load, picture, sampling, words

STRENGTH = """**You see** the same scene with the adapter as it was trained and with its singular values turned \
by the curve: left is the strongest value, right the weakest, the middle of the height is a gain of 1.

**Try:** move a point of the curve, or set `keep` to *top k*, and run again: only the right sampler works. \
Behind the curve stands the spectrum, once the node has run."""
SCHEDULE = """**You see** the adapter acting all the time, in the first half of the steps alone, and in the \
second half alone: on this model the strokes of the style are made late.

**Try:** other curves, or `bands` *2 bands*, which gives the strongest singular values and the rest a curve \
each. The samplers take the bare model: the adapter comes with the hooks on the prompts."""
GRID = """**You see** one adapter at four strengths, and beside it as through a lens: only its first singular \
value, only the second and third, only the rest. *TriLoRA Spectrum* has the numbers behind that.

**Try:** `compare` *top k*, more prompts (a line each) or more seeds, or load your own LoRA on your own model. A \
band that hardly shows is seen at a `strength` of 3."""
MERGE = """**You see** two styles and their merge, a single adapter that answers to both trigger words; it is \
saved to `models/loras`.

**Try:** weights such as *1, 0.3*, or `keep` *rank* for a smaller file: the report says what that loses. A merge \
with weights is the same as loading the adapters in a row at these strengths."""


def strength_and_curve() -> Example:
    nodes = DEMO_MODEL | {
        "load": load("stained_glass"),
        "curve": node(
            "TriLoRAStrength", "Draw your curve", model=["load", 0], strength=1.0, keep="all",
            curve=curve((0, 0.3), (0.15, 0.3), (0.3, 0.9), (1, 0.9)),
        ),
        "words": words(f"{TRIGGER}, {TREE}", "Prompt with the trigger word"),
        **canvas(),
        **picture("as trained", "As trained", ["load", 0], "words"),
        **picture("curve picture", "With your curve", ["curve", 0], "words"),
    }  # fmt: skip
    groups = (
        Group("An adapter", (("base", "load", "note"), ("curve",), ("words", "nothing", "canvas"))),
        Group("Pictures", (sampling("as trained"), sampling("curve picture"))),
    )
    return Example(
        nodes,
        {"note": STRENGTH},
        groups,
        ("as trained", "curve picture"),
        {"strength": ("as trained", "curve picture")},
    )


def scheduled(name: str, title: str, heights: dict[str, object]) -> dict[str, Node]:
    """Schedule, hooks on both prompts, picture."""
    return {
        f"{name} curve": node(
            "TriLoRASchedule", title, trilora=["load", 1], strength=1.0, bands="one curve", **{"bands.curve": heights}
        ),
        f"{name} hooks": node(
            "PairConditioningSetProperties", positive_NEW=["words", 0], negative_NEW=["nothing", 0], strength=1.0,
            set_cond_area="default", hooks=[f"{name} curve", 0],
        ),
        **picture(name, title, ["base", 0], [f"{name} hooks", 0], [f"{name} hooks", 1]),
    }  # fmt: skip


def schedule() -> Example:
    early = scheduled("first half", "First half of the steps", curve((0, 1), (0.5, 1), (0.5, 0), (1, 0)))
    late = scheduled("second half", "Second half of the steps", curve((0, 0), (0.5, 0), (0.5, 1), (1, 1)))
    nodes = DEMO_MODEL | {
        "load": load("stained_glass"),
        "words": words(f"{TRIGGER}, {TREE}", "Prompt with the trigger word"),
        **canvas(),
        **picture("all the time", "All the time", ["load", 0], "words"),
        **early,
        **late,
    }
    groups = (
        Group("An adapter and a prompt", (("base", "load", "note"), ("words", "nothing", "canvas"))),
        Group("All the time", (sampling("all the time"),)),
        Group("First half", (("first half curve", "first half hooks"), sampling("first half"))),
        Group("Second half", (("second half curve", "second half hooks"), sampling("second half"))),
    )
    three = ("all the time", "first half", "second half")
    return Example(nodes, {"note": SCHEDULE}, groups, three, {"schedule": three})


def grid(title: str, prompts: tuple[str, ...], adapters: list[list[object]], **how: object) -> Node:
    """TriLoRA Compare on the demo model."""
    wires = {f"adapters.trilora_{i}": wire for i, wire in enumerate(adapters)}
    return node(
        "TriLoRACompare", title, model=["base", 0], clip=["base", 1], vae=["base", 2], **wires,
        prompts="\n".join(prompts), seeds=str(SEED), **how, steps=20, cfg=3.5, width=128, height=128, negative="",
        sampler="euler", scheduler="normal", cell=256,
    )  # fmt: skip


def compare() -> Example:
    prompts = tuple(f"{TRIGGER}, {prompt}" for prompt in (TREE, BOAT))
    strengths = {"compare": "strengths", "compare.strengths": "0, 0.5, 1, 1.5"}
    bands = {"compare": "bands", "compare.count": 3, "compare.edges": "1, 3", "compare.strength": 1.0}
    nodes = DEMO_MODEL | {
        "load": load("stained_glass"),
        "strengths": grid("The grid: strengths", prompts, [["load", 1]], **strengths),
        "bands": grid("The lens: bands of singular values", prompts, [["load", 1]], **bands),
        "spectrum": node("TriLoRASpectrum", trilora=["load", 1]),
        "saved": node("SaveImage", "The grid, saved", images=["strengths", 0], filename_prefix="TriLoRA/grid"),
    }  # fmt: skip
    groups = (
        Group("An adapter", (("base", "load", "note"), ("spectrum",))),
        Group("Grid and lens", (("strengths",), ("bands",), ("saved",))),
    )
    return Example(
        nodes, {"note": GRID}, groups, ("strengths",), {"compare": ("strengths",), "spectrum": ("spectrum",)}
    )


def merge() -> Example:
    both = f"{TRIGGER}, {SECOND_TRIGGER}, {BOAT}"
    nodes = DEMO_MODEL | {
        "glass": load("stained_glass", f"Stained glass, trigger word {TRIGGER}"),
        "print": load("paper_print", f"Paper print, trigger word {SECOND_TRIGGER}"),
        "merge": node(
            "TriLoRAMerge", **{"adapters.trilora0": ["glass", 1], "adapters.trilora1": ["print", 1]},
            weights="0.8, 0.6", keep="all",
        ),
        "save": node("TriLoRASave", trilora=["merge", 0], filename="my_merge", precision="float32"),
        "told": node("PreviewAny", "What was kept and lost", source=["merge", 1]),
        "grid": grid(
            "Each alone, and the merge", (both, f"{TRIGGER}, {SECOND_TRIGGER}, {TREE}"),
            [["glass", 1], ["print", 1], ["merge", 0]], compare="adapters", **{"compare.strength": 1.0},
        ),
    }  # fmt: skip
    groups = (
        Group("Two adapters", (("base", "glass", "print"), ("note",))),
        Group("One of both", (("merge", "save", "told"), ("grid",))),
    )
    return Example(nodes, {"note": MERGE}, groups, ("grid",), {"merge": ("grid",)})
