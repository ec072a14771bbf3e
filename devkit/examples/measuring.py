"""The workflow that measures."""

from demo.workflow import TRIGGER, node

from . import Example, Group
from .parts import DEMO_MODEL, canvas, load, picture, sampling

NOTE = """**You see** drawings in the style, of scenes that nothing learned from, and the same scenes painted by the \
base and with the adapter. *TriLoRA Evaluate* says how near each is to the drawings: an NFID below 1 is nearer than \
the base. It takes a minute or two.

**Try:** another `strength`, or the other adapters with their style; keep `count` when you compare numbers, and \
don't believe small differences: 16 pictures are few."""


def evaluate() -> Example:
    nodes = DEMO_MODEL | {
        "load": load("stained_glass"),
        "real": node("TriLoRADemoPictures", "Real pictures", style="stained_glass", trigger=TRIGGER, count=16, seed=0),
        "shown": node("PreviewImage", "Real pictures", images=["real", 0]),
        "with": node("CLIPTextEncode", "Prompts with the trigger word", clip=["base", 1], text=["real", 2]),
        "without": node("CLIPTextEncode", "Prompts without it", clip=["base", 1], text=["real", 1]),
        **canvas(batch=1),
        **picture("by the base", "By the base", ["base", 0], "without"),
        **picture("with the adapter", "With the adapter", ["load", 0], "with"),
        "evaluate": node(
            "TriLoRAEvaluate", generated=["with the adapter decoder", 0], real=["real", 0],
            base=["by the base decoder", 0], prompts=["real", 1], extractor="demo",
        ),
        "report": node("PreviewAny", "The numbers", source=["evaluate", 3]),
    }  # fmt: skip
    groups = (
        Group("An adapter", (("base", "load", "note"),)),
        Group("Scenes", (("real", "shown"), ("with", "without", "nothing", "canvas"))),
        Group("Pictures", (sampling("by the base"), sampling("with the adapter"))),
        Group("Numbers", (("evaluate", "report"),)),
    )
    trio = ("shown", "by the base", "with the adapter")
    return Example(nodes, {"note": NOTE}, groups, trio, {"evaluate": trio})
