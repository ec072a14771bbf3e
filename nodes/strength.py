"""TriLoRA Strength: scales Σ of whatever low-rank adapters are on a MODEL."""

from functools import partial

from comfy_api.latest import io

from ..trilora import gains
from .shaping import shape_sigma
from .sockets import CATEGORY


class TriLoRAStrength(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TriLoRAStrength",
            display_name="TriLoRA Strength",
            category=CATEGORY,
            description="Scales the singular values of the adapters on a model: TriLoRA and every ordinary LoRA.",
            search_aliases=["lora strength", "sigma", "singular values"],
            inputs=[
                io.Model.Input("model", tooltip="A model that has a TriLoRA or LoRA on it, from any loader."),
                io.Float.Input(
                    "strength", default=1.0, min=-10.0, max=10.0, step=0.05,
                    tooltip="Gain on every singular value: 0 is the bare base, 1 as loaded. Several of these nodes in "
                    "a row multiply.",
                ),
                io.DynamicCombo.Input(
                    "keep",
                    options=[
                        io.DynamicCombo.Option("all", []),
                        io.DynamicCombo.Option(
                            "top k",
                            [
                                io.Int.Input(
                                    "k", default=8, min=0, max=1024,
                                    tooltip="Number of singular values kept in each layer, strongest first. Few keep "
                                    "the style's broad strokes and drop its detail.",
                                )
                            ],
                        ),
                    ],
                    tooltip="Which singular values of each layer act. 'all' changes nothing.",
                ),
            ],
            outputs=[io.Model.Output("model", tooltip="The model with Σ scaled; the input model is unchanged.")],
        )  # fmt: skip

    @classmethod
    def execute(cls, model, strength, keep) -> io.NodeOutput:
        by_value = partial(gains.first, count=keep["k"]) if keep["keep"] == "top k" else None
        return io.NodeOutput(shape_sigma(model, by_value, strength))
