"""TriLoRA Spectrum: what the singular values of an adapter hold, as a picture and as numbers."""

from comfy_api.latest import io, ui

from ..trilora.charts_sigma import spectrum_picture
from ..trilora.errors import TriLoRAError
from ..trilora.factors import Factors, merged
from ..trilora.plot import to_tensor
from ..trilora.spectrum import histogram, measure, table
from .reading import adapters_on
from .sockets import CATEGORY, TriLoRA


class TriLoRASpectrum(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TriLoRASpectrum",
            display_name="TriLoRA Spectrum",
            category=CATEGORY,
            description="Shows the singular values of an adapter: how fast they fall, which blocks of the network hold "
            "the energy, and how many values each layer really uses.",
            search_aliases=["lora analysis", "singular values", "sigma", "effective rank"],
            is_output_node=True,
            inputs=[
                TriLoRA.Input("trilora", optional=True, tooltip="The adapter to look at; or connect a model."),
                io.Model.Input(
                    "model", optional=True,
                    tooltip="A model with LoRAs or TriLoRAs on it, from any loader: shows their sum at the strengths "
                    "that they act with.",
                ),
            ],
            outputs=[
                io.Image.Output("picture", tooltip="Spectrum, energy by block and effective rank by layer."),
                io.String.Output("table", tooltip="The numbers behind the picture, a line for each layer."),
                io.Histogram.Output(
                    "histogram",
                    tooltip="The mean spectrum from the first singular value to the last; Curve Editor shows it behind "
                    "its curve.",
                ),
            ],
        )  # fmt: skip

    @classmethod
    def execute(cls, trilora=None, model=None) -> io.NodeOutput:
        layers = _layers(trilora, model)
        lines = measure(layers)
        picture = to_tensor(spectrum_picture(layers))
        counts = histogram(line.sigma for line in lines)
        return io.NodeOutput(picture, table(lines), counts, ui=ui.PreviewImage(picture, cls=cls))


def _layers(trilora, model) -> dict[str, Factors]:
    if (trilora is None) == (model is None):
        given = "neither is connected" if trilora is None else "both are connected"
        raise TriLoRAError(f"TriLoRA Spectrum looks at a trilora or at a model, but {given}. Connect exactly one.")
    layers = dict(trilora.layers) if model is None else _sum_on(model)
    if not layers:
        raise TriLoRAError(
            "There is nothing with singular values here: no LoRA or TriLoRA is on the model, or the adapter has no "
            "layers. Connect a node that loads one."
        )
    return layers


def _sum_on(model) -> dict[str, Factors]:
    """Layer path -> canonical factors of all that acts there, strengths and gains included.

    As matrices: of a convolution some tools keep the kernel, others (ComfyUI's trainer) lay it flat.
    """
    several: dict[str, list[tuple[Factors, float]]] = {}
    for adapter in adapters_on(model):
        for path, (u, sigma, vh) in adapter.factors.items():
            several.setdefault(path, []).append((Factors(u, sigma, vh.flatten(1)), adapter.layers[path].strength))
    return {path: merged(*zip(*terms, strict=True)) for path, terms in several.items()}
