"""TriLoRA Strength: scales Σ of whatever low-rank adapters are on a MODEL."""

from collections import ChainMap, Counter
from collections.abc import Iterator
from functools import partial

import torch
from comfy_api.input import CurveInput
from comfy_api.latest import io
from server import PromptServer
from torch import Tensor

from ..trilora import gains, shares
from ..trilora.spectrum import histogram
from ..trilora.targets import PRESETS
from .reading import Patched
from .shaping import bypassed, chosen, planned, shaped, spectra, within
from .sockets import CATEGORY

FLAT = [(0.0, 0.5), (1.0, 0.5)]  # the widget's heights are 0 to 1, and stand for gains of 0 to 2


class TriLoRAStrength(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TriLoRAStrength",
            display_name="TriLoRA Strength",
            category=CATEGORY,
            description="Scales the singular values of the adapters on a model: TriLoRA and every ordinary LoRA.",
            search_aliases=["lora strength", "sigma", "singular values", "lora block weight"],
            has_intermediate_output=True,
            inputs=[
                io.Model.Input("model", tooltip="A model that has a TriLoRA or LoRA on it, from any loader."),
                io.Float.Input(
                    "strength", default=1.0, min=-10.0, max=10.0, step=0.05,
                    tooltip="Gain on every singular value: 0 is the bare base, 1 as loaded. Several of these nodes in "
                    "a row multiply.",
                ),
                io.DynamicCombo.Input(
                    "keep", options=keep_options(),
                    tooltip="Which singular values of each layer act. 'all' changes nothing; few keep the broad "
                    "strokes and drop the detail.",
                ),
                io.Curve.Input(
                    "curve", default=FLAT, optional=True,
                    tooltip="Gain by singular value, from each layer's strongest (left) to its weakest (right): the "
                    "bottom is 0, the middle 1, the top 2. The spectrum is drawn behind it once the node has run.",
                ),
                io.DynamicCombo.Input(
                    "layers", options=layer_options(), optional=True,
                    tooltip="Which of the adapter's layers this node scales; the others stay as they are.",
                    extra_dict={"advanced": True},
                ),
                io.Int.Input(
                    "adapter", default=0, min=0, max=99, optional=True, advanced=True,
                    tooltip="Which adapter this node scales, counted from 1 as they were loaded; 0 for all.",
                ),
                io.String.Input(
                    "blocks", default="", optional=True, advanced=True,
                    tooltip="Which blocks of the network this node scales, as in Train TriLoRA: '4-12', 'middle', "
                    "'input 4-8, output 3-5'. Empty for all.",
                ),
            ],
            outputs=[io.Model.Output("model", tooltip="The model with Σ scaled; the input model is unchanged.")],
            hidden=[io.Hidden.unique_id],
        )  # fmt: skip

    @classmethod
    def execute(cls, model, strength, keep, curve=None, layers=None, adapter=0, blocks="") -> io.NodeOutput:
        adapters = chosen(model, adapter)
        layers = layers or {"layers": "all"}
        if layers["layers"] != "all" or blocks.strip():
            choice = {"all": "*"}.get(layers["layers"], layers.get("pattern", layers["layers"]))
            inside = within(model, [path for patched in adapters for path in patched.layers], choice, blocks)
            adapters = [patched.only(inside) for patched in adapters]
        shape = partial(gains_of, keep=keep, curve=CurveInput.from_raw(curve or FLAT))
        plan = ChainMap(*(planned(patched.layers, shape, strength) for patched in adapters))
        told = report(adapters, bypassed(model))
        sigmas = [sigma for patched in adapters for sigma in spectra(patched.layers).values()]
        spectrum = shares.along_places(pair for patched in adapters for pair in acting(patched, keep)) | {"keep": keep}
        PromptServer.instance.send_progress_text(told, cls.hidden.unique_id)
        seen = {"histogram": histogram(sigmas), "text": (told,), "spectrum": (spectrum,)}
        return io.NodeOutput(shaped(model, plan), ui=seen)


def keep_options() -> list:
    """Which singular values act."""
    few = io.Int.Input(
        "k", default=8, min=0, max=1024, tooltip="Singular values kept in each layer, strongest first."
    )  # fmt: skip
    many = io.Int.Input(
        "k", default=256, min=0, max=1_000_000,
        tooltip="Singular values kept in the whole adapter, strongest first: layers that matter little lose all.",
    )  # fmt: skip
    share = io.Float.Input(
        "share", default=0.9, min=0.0, max=1.0, step=0.01,
        tooltip="Share of each layer's energy, the sum of its squared singular values, that is kept. 0.9 often needs "
        "a third of them.",
    )  # fmt: skip
    options = {"all": [], "top k": [few], "top k of all layers": [many], "energy": [share]}
    return [io.DynamicCombo.Option(name, inputs) for name, inputs in options.items()]


def layer_options() -> list:
    """Which layers are scaled."""
    pattern = io.String.Input(
        "pattern", default="*.attn2.*", advanced=True,
        tooltip="Glob patterns on the layer's path in the model, separated by commas, or 're:' and a regular "
        "expression: as in Train TriLoRA.",
    )  # fmt: skip
    presets = [preset for preset in PRESETS if preset != "all linear"]
    return [io.DynamicCombo.Option(name, []) for name in ("all", *presets)] + [
        io.DynamicCombo.Option("pattern", [pattern])
    ]


def gains_of(sigmas: gains.Spectra, keep: dict, curve: CurveInput) -> gains.Gains:
    """What the widgets make of the spectra of one adapter."""
    return gains.times(kept_of(sigmas, keep), gains.along(sigmas, partial(heights, curve)))


def kept_of(sigmas: gains.Spectra, keep: dict) -> gains.Gains:
    """1 for the values that `keep` keeps, 0 for the rest."""
    return {
        "all": lambda: gains.first(sigmas, max(map(len, sigmas.values()), default=0)),
        "top k": lambda: gains.first(sigmas, keep["k"]),
        "top k of all layers": lambda: gains.first_overall(sigmas, keep["k"]),
        "energy": lambda: gains.holding(sigmas, keep["share"]),
    }[keep["keep"]]()


def acting(patched: Patched, keep: dict) -> Iterator[tuple[Tensor, Tensor]]:
    """Of each layer, Σ as it acts before this node, and which of its values are kept."""
    for path, kept in kept_of(spectra(patched.layers), keep).items():
        layer = patched.layers[path]
        yield layer.factors.sigma * abs(layer.strength), kept


def heights(curve: CurveInput, places: Tensor) -> Tensor:
    """The curve's gains at places 0..1. Interpolated in float64: in float32, a curve at the middle is 1 exactly."""
    return 2 * torch.from_numpy(curve.interp_array(places.double().numpy())).to(places)


def report(adapters: list[Patched], bypass: bool) -> str:
    """What came in and at which strength, and which layers took this node's strength alone."""
    lines = []
    for patched in adapters:
        kinds = Counter(layer.kind for layer in patched.layers.values())
        amounts = {f"{layer.strength:.3g}" for layer in patched.layers.values()}
        at = f" (at {amounts.pop()})" if len(amounts) == 1 else ""
        lines.append(f"{patched.label}{at}: " + ", ".join(f"{count} x {kind}" for kind, count in kinds.items()))
    bare = {path: layer.kind for a in adapters for path, layer in a.layers.items() if not layer.has_sigma}
    if bare:
        named = ", ".join(f"{path} ({kind})" for path, kind in list(bare.items())[:8])
        lines.append(
            f"No singular values, so the strength alone, in {len(bare)} layers: {named}"
            + (" ..." if len(bare) > 8 else "")
        )
    if bypass:
        lines.append("An adapter from a bypass loader leaves no patch and is not scaled; set its strength there")
    return "\n".join(lines)
