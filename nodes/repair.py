"""Repair LoRA: an adapter keeps its style on the trigger word and gives the base back everywhere else."""

from comfy_api.latest import io

from ..trilora import report
from ..trilora.plot import to_tensor
from ..trilora.settings import Settings
from .progress import Progress
from .repairing import Repair, run_repair
from .sockets import CATEGORY, TriLoRA, TriLoRADataset, TriLoRAWatch

WARM = 20  # steps in which the rate rises: AdamW's first steps are large, and there is something to lose


class TriLoRARepair(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TriLoRARepair",
            display_name="Repair LoRA",
            category=CATEGORY,
            description="Mends a LoRA that has forgotten its base: with the trigger word the style stays, without it "
            "the base comes back. Needs no training pictures.",
            inputs=[
                io.Model.Input("model", tooltip="The base that the adapter was trained on, without the adapter on it."),
                io.Clip.Input("clip", tooltip="Reads the captions; it is not changed."),
                io.Vae.Input("vae", tooltip="Between pictures and latents."),
                TriLoRA.Input("trilora", tooltip="The adapter to repair, TriLoRA or any LoRA, from Load TriLoRA."),
                io.String.Input(
                    "trigger", default="",
                    tooltip="The adapter's trigger word, as it was trained. A repair is not possible without one.",
                ),
                io.String.Input(
                    "captions", default="", multiline=True,
                    tooltip="Prompts without the trigger word, one a line, 30 or more: all kinds of things that the "
                    "base can do. With a dataset connected they may be empty.",
                ),
                io.Int.Input(
                    "resolution", default=512, min=64, max=4096, step=8,
                    tooltip="Side in pixels of the pictures that the adapter paints to learn on: 512 for SD1.5, 1024 "
                    "for SDXL and Flux, 128 for the demo model. Not used with a dataset.",
                ),
                io.Int.Input(
                    "steps", default=300, min=1, max=100_000,
                    tooltip="Corrections, 200 to 400. The first hundred turn the adapter down everywhere; the rest "
                    "bring the style back where the trigger word is.",
                ),
                io.Float.Input(
                    "learning_rate", default=1e-4, min=1e-7, max=1.0, step=1e-5, round=False,
                    tooltip="The rate that the adapter was trained with, falling to 0 along a cosine: 0.0001 for "
                    "SD1.5, SDXL and Flux, 0.003 for the demo model. A third of it if the style suffers.",
                ),
                io.Float.Input(
                    "preserve", default=0.3, min=0.01, max=10.0, step=0.05, advanced=True,
                    tooltip="How much the base counts beside the style: 0.3 keeps more of the style, 1 brings the base "
                    "back further. 1 for a LoRA that was trained too long.",
                ),
                io.Int.Input(
                    "batch", default=2, min=1, max=64, advanced=True,
                    tooltip="Pictures looked at in each correction. 4 make it steadier and cost twice the time.",
                ),
                io.Int.Input(
                    "seed", default=0, min=0, max=2**63 - 1, control_after_generate=False,
                    tooltip="Decides every random number: the same seed on the same machine gives the same adapter.",
                ),
                TriLoRADataset.Input(
                    "dataset", optional=True,
                    tooltip="The pictures that the adapter was trained on, if you have them: then they are the style, "
                    "not what the adapter paints itself.",
                ),
                TriLoRAWatch.Input(
                    "watch", optional=True,
                    tooltip="From TriLoRA Training Watch: previews and states on disk. The last step is always kept.",
                ),
            ],
            outputs=[
                TriLoRA.Output("trilora", tooltip="The repaired adapter, for Save TriLoRA and Apply TriLoRA."),
                io.Image.Output("pictures", tooltip="Base, before and after, without the trigger word and with it."),
                io.Image.Output("report", tooltip="Loss curves and spectrum of the repaired adapter."),
                io.String.Output("summary", tooltip="Style and forgetting before and after, on captions held out."),
            ],
            hidden=[io.Hidden.unique_id, io.Hidden.extra_pnginfo],
        )  # fmt: skip

    @classmethod
    def execute(
        cls, model, clip, vae, trilora, trigger, captions, resolution, steps, learning_rate, preserve, batch, seed,
        dataset=None, watch=None,
    ) -> io.NodeOutput:  # fmt: skip
        settings = Settings(
            rank=trilora.rank,
            steps=steps,
            learning_rate=learning_rate,
            preserve=preserve,
            preserve_every=1,
            schedule="cosine",
            warmup=min(WARM, steps // 10),
            batch=batch,
            seed=seed,
        )
        repair = Repair(model, clip, vae, trilora, trigger.strip(), captions, resolution, settings, dataset, watch)
        with Progress(cls.hidden.unique_id, steps, cls.hidden.extra_pnginfo) as progress:
            repaired = run_repair(repair, progress)
        charts = to_tensor(report.picture(repaired.outcome.run, repaired.adapter.layers))
        summary = "\n".join(repaired.said)
        return io.NodeOutput(repaired.adapter, to_tensor(repaired.pictures), charts, summary, ui={"text": (summary,)})
