"""TriLoRA Schedule: Σ over the sampling steps, as hooks for ComfyUI's conditioning nodes."""

from typing import Any

import comfy.hooks
import numpy
from comfy_api.input import CurveInput
from comfy_api.latest import io

from ..trilora.files import Adapter
from ..trilora.spectrum import bands, only
from .patching import clip_patches, model_patches
from .sockets import CATEGORY, TriLoRA

FINENESS = 100  # keyframes along a curve at most
NOTHING = Adapter({})
FLAT = [(0.0, 1.0), (1.0, 1.0)]
NAMES = {"one curve": ["curve"], "2 bands": ["coarse", "fine"], "3 bands": ["coarse", "middle", "fine"]}


class SigmaHook(comfy.hooks.WeightHook):
    """One band of an adapter; the weights that it is for are found on the MODEL or CLIP that is about to run.

    ComfyUI clones a hook by calling its class with nothing.
    """

    def __init__(self, adapter: Adapter = NOTHING, strength: float = 1.0) -> None:
        super().__init__(strength_model=strength, strength_clip=strength)
        self.adapter = adapter
        self.need_weight_init = False

    def add_hook_patches(self, model, model_options, target_dict, registered):
        if target_dict.get("target") == comfy.hooks.EnumWeightTarget.Clip:
            self.weights_clip = clip_patches(model.model, self.adapter)
        else:
            self.weights = model_patches(model, self.adapter)
        return super().add_hook_patches(model, model_options, target_dict, registered)

    def clone(self) -> "SigmaHook":
        copy = super().clone()
        copy.adapter = self.adapter
        return copy


def keyframes(curve: Any) -> comfy.hooks.HookKeyframeGroup:
    """The curve in `FINENESS` stairs; equal neighbours are one, because each change patches the weights anew."""
    percents = numpy.linspace(0, 1, FINENESS, endpoint=False)
    heights = CurveInput.from_raw(curve).interp_array(percents).round(4).tolist()
    group = comfy.hooks.HookKeyframeGroup()
    for percent, height, before in zip(percents, heights, [None, *heights[:-1]], strict=True):
        if height != before:
            group.add(comfy.hooks.HookKeyframe(height, percent, guarantee_steps=0))
    return group


def schedule(adapter: Adapter, curves: list[Any], edges: str, strength: float) -> comfy.hooks.HookGroup:
    """A hook for each band of the spectrum, strongest first, each with its curve."""
    group = comfy.hooks.HookGroup()
    for band, curve in zip(bands(adapter.rank, len(curves), edges), curves, strict=True):
        hook = SigmaHook(only(adapter, band), strength)
        hook.hook_keyframe = keyframes(curve)
        group.add(hook)
    return group


class TriLoRASchedule(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TriLoRASchedule",
            display_name="TriLoRA Schedule",
            category=CATEGORY,
            description="Lets an adapter's strength move over the sampling steps, as a whole or by bands of its "
            "singular values: coarse directions early, fine ones late. Connect hooks to Cond Pair Set Props, and the "
            "sampler to the model without this adapter.",
            search_aliases=["lora schedule", "hook keyframes", "strength over time"],
            inputs=[
                TriLoRA.Input("trilora", tooltip="The adapter, from Load TriLoRA or Train TriLoRA."),
                io.Float.Input(
                    "strength", default=1.0, min=-10.0, max=10.0, step=0.05,
                    tooltip="What a curve's upper edge stands for: 1 is as trained.",
                ),
                io.DynamicCombo.Input(
                    "bands",
                    options=[io.DynamicCombo.Option(kind, _inputs(names)) for kind, names in NAMES.items()],
                    tooltip="One curve for the whole adapter, or one for each of 2 or 3 bands of singular values. "
                    "Curves flat at the top give the plain adapter.",
                ),
            ],
            outputs=[
                io.Hooks.Output(
                    "hooks",
                    tooltip="For Cond Pair Set Props on the positive and the negative prompt. A curve that moves costs "
                    "a patching of the weights at each step.",
                )
            ],
        )  # fmt: skip

    @classmethod
    def execute(cls, trilora, strength, bands) -> io.NodeOutput:
        curves = [bands[name] for name in NAMES[bands["bands"]]]
        return io.NodeOutput(schedule(trilora, curves, bands.get("edges", ""), strength))


def _inputs(names: list[str]) -> list:
    """A curve for each band, and where the bands end."""
    parts = {"curve": "the adapter", "coarse": "the strongest singular values", "middle": "those in the middle",
             "fine": "the weakest singular values"}  # fmt: skip
    curves = [
        io.Curve.Input(
            name, default=FLAT, socketless=False,
            tooltip=f"Strength of {parts[name]}, from the first step on the left to the last on the right, as ComfyUI "
            "counts percents.",
        )
        for name in names
    ]  # fmt: skip
    edges = io.String.Input(
        "edges", default="", advanced=True,
        tooltip="Last singular value of each band but the final one: '2, 6' makes 1-2, 3-6 and the rest. Empty for "
        "bands that widen by the same ratio.",
    )  # fmt: skip
    return curves + ([edges] if len(names) > 1 else [])
