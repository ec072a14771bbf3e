"""TriLoRA Demo Pictures: drawings in an example style of scenes that nothing was trained on, with their prompts."""

import numpy
import torch
from comfy_api.latest import io

from ..demo.draw import draw
from ..demo.styles_drawn import STYLES
from ..demo.world import caption, held_out_triples, specs_over
from .sockets import CATEGORY


class TriLoRADemoPictures(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TriLoRADemoPictures",
            display_name="TriLoRA Demo Pictures",
            category=CATEGORY,
            description="Real pictures for TriLoRA Evaluate: drawings in one of the pack's example styles, of scenes "
            "that neither the demo model nor its adapters were trained on, and a prompt for each.",
            inputs=[
                io.Combo.Input("style", options=sorted(STYLES), tooltip="The hand that draws them."),
                io.String.Input(
                    "trigger", default="zorvex",
                    tooltip="The adapter's trigger word, put before every prompt of with_trigger.",
                ),
                io.Int.Input(
                    "count", default=16, min=2, max=120,
                    tooltip="How many pictures. More make the numbers steadier; each is also sampled where its prompt "
                    "goes.",
                ),
                io.Int.Input(
                    "seed", default=0, min=0, max=2**31 - 1, control_after_generate=False,
                    tooltip="Which scenes: the same seed gives the same pictures and prompts.",
                ),
            ],
            outputs=[
                io.Image.Output("pictures", tooltip="The drawings, 128 x 128 pixels, one batch."),
                io.String.Output(
                    "prompts", is_output_list=True,
                    tooltip="What each shows, a list: nodes behind it run once for each.",
                ),
                io.String.Output("with_trigger", is_output_list=True, tooltip="The same behind the trigger word."),
            ],
        )  # fmt: skip

    @classmethod
    def execute(cls, style, trigger, count, seed) -> io.NodeOutput:
        scenes = specs_over(held_out_triples(), count, seed)
        pictures = torch.stack([torch.from_numpy(numpy.array(draw(scene, style))) for scene in scenes]) / 255
        prompts = [caption(scene) for scene in scenes]
        return io.NodeOutput(pictures, prompts, [f"{trigger}, {prompt}".removeprefix(", ") for prompt in prompts])
