"""TriLoRA Compare: one labelled grid of what an adapter does at several strengths, top k, or bands of its Σ."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any

import comfy.samplers
import comfy.utils
from comfy_api.latest import io, ui
from torch import Tensor

from ..trilora.charts_sigma import labelled_grid
from ..trilora.entries import entries
from ..trilora.errors import TriLoRAError
from ..trilora.files import Adapter
from ..trilora.plot import picture_of, to_tensor
from ..trilora.variants import NONE, Variant, by_band, by_strength, by_top_k, lettered, side_by_side
from .patching import apply, apply_to_clip, text_layers
from .sampling import encode, sample
from .sockets import CATEGORY, TriLoRA


@dataclass(frozen=True)
class Sampling:
    """What all pictures of the grid share."""

    clip: Any
    vae: Any
    negative: str
    settings: Mapping[str, Any]


def columns(compare: Mapping[str, Any], adapters: Mapping[str, Adapter]) -> dict[str, list[Variant]]:
    """What a row's name begins with -> its columns; adapters that are compared share their rows."""
    kind, rank = compare["compare"], max(adapter.rank for adapter in adapters.values())
    if kind == "adapters":
        return {"": side_by_side(adapters, compare["strength"])}
    if kind == "strengths":
        strengths = entries(compare["strengths"], float, "strengths")
        found = {name: by_strength(adapter, strengths) for name, adapter in adapters.items()}
    elif kind == "top k":
        counts = entries(compare["k"], int, "k")
        found = {name: by_top_k(adapter, counts, rank) for name, adapter in adapters.items()}
    else:
        how = (compare["count"], compare["edges"], compare["strength"])
        found = {name: by_band(adapter, *how, rank) for name, adapter in adapters.items()}
    return found if len(found) > 1 else {"": next(iter(found.values()))}


def sampled(model, groups: Mapping[str, list[Variant]], prompts: list[str], seeds: list[int], how: Sampling):
    """(row, column) -> picture; the bare base is sampled once, however many adapters there are."""
    plain = {prompt: encode(how.clip, prompt) for prompt in [*prompts, how.negative]}
    work = [(name, variant) for name, variants in groups.items() for variant in variants]
    bar = Bar(how.settings["steps"], len(work) * len(prompts) * len(seeds))
    pictures: dict[tuple[str, str], Tensor] = {}
    bare: dict[tuple[str, int], Tensor] = {}
    for name, variant in work:
        patched = apply(model, variant.adapter, variant.strength)
        conditions = plain
        if text_layers(variant.adapter):
            clip = apply_to_clip(how.clip, variant.adapter, variant.strength)
            conditions = {prompt: encode(clip, prompt) for prompt in plain}
        known = bare if variant.adapter is NONE else {}
        for prompt, seed in product(prompts, seeds):
            if (prompt, seed) not in known:
                pixels = sample(
                    patched, conditions[prompt], conditions[how.negative], how.vae, seed, **how.settings,
                    on_step=bar.step,
                )  # fmt: skip
                known[prompt, seed] = pixels[0].cpu()
            row = " | ".join(filter(None, [name, prompt, f"seed {seed}" if len(seeds) > 1 else ""]))
            pictures[row, variant.column] = known[prompt, seed]
            bar.picture(known[prompt, seed])
    return pictures


class Bar:
    """ComfyUI's bar over all steps of all pictures, each picture shown when it is done. Raises when cancelled."""

    def __init__(self, steps: int, pictures: int) -> None:
        self.steps, self.done, self.bar = steps, 0, comfy.utils.ProgressBar(steps * pictures)

    def step(self, number: int) -> None:
        self.bar.update_absolute(self.done + number)

    def picture(self, pixels: Tensor) -> None:
        self.done += self.steps
        self.bar.update_absolute(self.done, preview=("JPEG", picture_of(pixels), 512))


class TriLoRACompare(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TriLoRACompare",
            display_name="TriLoRA Compare",
            category=CATEGORY,
            description="Draws one labelled grid: prompts and seeds down, and across an adapter at several strengths, "
            "with its first singular values only, band by band, or several adapters side by side.",
            search_aliases=["xy plot", "grid", "lora comparison", "singular values"],
            is_output_node=True,
            inputs=[
                io.Model.Input("model", tooltip="The base model, without these adapters on it."),
                io.Clip.Input("clip", tooltip="Reads the prompts."),
                io.Vae.Input("vae", tooltip="Turns latents into pictures."),
                io.Autogrow.Input(
                    "adapters",
                    template=io.Autogrow.TemplatePrefix(
                        TriLoRA.Input("trilora", tooltip="An adapter."), prefix="trilora_", min=1, max=8
                    ),
                    tooltip="One or several; each gets rows of its own, or a column where adapters are compared.",
                ),
                io.String.Input(
                    "prompts", multiline=True, default="",
                    tooltip="One prompt a line, with the trigger word; a row of the grid for each.",
                ),
                io.String.Input(
                    "seeds", default="0",
                    tooltip="Seeds with commas between, '1, 2, 3': each prompt gets a row for every one.",
                ),
                io.DynamicCombo.Input(
                    "compare", options=_options(), tooltip="What the columns are. Each column costs a picture a row."
                ),
                io.Int.Input("steps", default=20, min=1, max=1000, tooltip="Sampling steps a picture."),
                io.Float.Input(
                    "cfg", default=7.0, min=0.0, max=100.0, step=0.1,
                    tooltip="How strictly the prompt is followed; 7 suits SD, 3.5 the demo model, 1 distilled models.",
                ),
                io.Int.Input(
                    "width", default=512, min=16, max=16384, step=8,
                    tooltip="Pixels; take the size that the model was made for: 512 SD1.5, 1024 SDXL, 128 the demo.",
                ),
                io.Int.Input("height", default=512, min=16, max=16384, step=8, tooltip="Pixels; see width."),
                *_advanced_inputs(),
            ],
            outputs=[io.Image.Output("grid", tooltip="The whole grid as one picture, with its labels.")],
        )  # fmt: skip

    @classmethod
    def execute(
        cls, model, clip, vae, adapters, prompts, seeds, compare, steps, cfg, width, height, negative, sampler,
        scheduler, cell,
    ) -> io.NodeOutput:  # fmt: skip
        lines = list(dict.fromkeys(line.strip() for line in prompts.splitlines() if line.strip()))
        if not lines:
            raise TriLoRAError("TriLoRA Compare has no prompt. Write at least one line into prompts.")
        groups = columns(compare, lettered(list(adapters.values())))
        settings = {"steps": steps, "cfg": cfg, "width": width, "height": height, "sampler": sampler}
        how = Sampling(clip, vae, negative, settings | {"scheduler": scheduler})
        pictures = sampled(model, groups, lines, entries(seeds, int, "seeds"), how)
        rows, names = (list(dict.fromkeys(place[side] for place in pictures)) for side in (0, 1))
        grid = to_tensor(labelled_grid(rows, names, pictures, cell))
        return io.NodeOutput(grid, ui=ui.PreviewImage(grid, cls=cls))


def _options() -> list:
    strength = io.Float.Input(
        "strength", default=1.0, min=-10.0, max=10.0, step=0.05,
        tooltip="Of each adapter or band. A weak band shows more at 2 or 3; the whole adapter in the last column of "
        "bands stays at 1.",
    )  # fmt: skip
    option = io.DynamicCombo.Option
    return [
        option(
            "strengths",
            [
                io.String.Input(
                    "strengths", default="0, 0.5, 1, 1.5",
                    tooltip="A column each; 0 is the bare base, 1 as trained, above 1.5 pictures usually break.",
                )
            ],
        ),
        option(
            "top k",
            [
                io.String.Input(
                    "k", default="1, 2, 4, 8",
                    tooltip="How many of each layer's singular values act, strongest first; the base and the whole "
                    "adapter stand beside them.",
                )
            ],
        ),
        option(
            "bands",
            [
                io.Int.Input(
                    "count", default=3, min=1, max=16,
                    tooltip="Into how many bands the singular values are cut; each acts alone in its column.",
                ),
                io.String.Input(
                    "edges", default="", advanced=True,
                    tooltip="Last singular value of each band but the final one: '2, 6' makes 1-2, 3-6 and the rest. "
                    "Empty for bands that widen by the same ratio.",
                ),
                strength,
            ],
        ),
        option("adapters", [strength]),
    ]  # fmt: skip


def _advanced_inputs() -> list:
    return [
        io.String.Input("negative", default="", advanced=True, tooltip="The negative prompt of all pictures."),
        io.Combo.Input(
            "sampler", options=comfy.samplers.KSampler.SAMPLERS, default="euler", advanced=True,
            tooltip="As in KSampler.",
        ),
        io.Combo.Input(
            "scheduler", options=comfy.samplers.KSampler.SCHEDULERS, default="normal", advanced=True,
            tooltip="As in KSampler.",
        ),
        io.Int.Input(
            "cell", default=512, min=32, max=4096, step=8, advanced=True,
            tooltip="Longest side of a picture on the grid in pixels; larger ones are made smaller.",
        ),
    ]  # fmt: skip
