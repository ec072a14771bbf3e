"""Train TriLoRA: adapters learn on the graph's own MODEL, in ComfyUI's process."""

import torch
from comfy_api.latest import io

from ..trilora import report
from ..trilora.layers import CORES, INITIALISATIONS
from ..trilora.plot import to_tensor
from ..trilora.settings import LEARN, Settings
from ..trilora.targets import PRESETS
from .progress import Progress
from .running import Task, run_training
from .sockets import CATEGORY, TriLoRA, TriLoRADataset, TriLoRAOptions, TriLoRAWatch


class TrainTriLoRA(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TriLoRATrain",
            display_name="Train TriLoRA",
            category=CATEGORY,
            description="Trains an adapter W = W0 + U Σ Vᵀ on your pictures. The model itself stays as it is.",
            inputs=[
                io.Model.Input("model", tooltip="The base to adapt. LoRAs already on it act while you train."),
                io.Clip.Input("clip", tooltip="Reads the captions; it is not trained."),
                io.Vae.Input("vae", tooltip="Turns the pictures into latents, once."),
                TriLoRADataset.Input("dataset", tooltip="Pictures and captions, from TriLoRA Dataset."),
                io.Int.Input(
                    "steps", default=1000, min=1, max=1_000_000,
                    tooltip="How many times the adapter is corrected. 500 to 2000 suit 10 to 50 pictures; too many and "
                    "it repeats your pictures instead of their style.",
                ),
                io.Float.Input(
                    "learning_rate", default=1e-4, min=1e-7, max=1.0, step=1e-5, round=False,
                    tooltip="Size of each correction. 0.0001 suits SD1.5, SDXL and Flux; 0.002 the demo model. Too "
                    "high and pictures burn, too low and nothing happens.",
                ),
                io.Int.Input(
                    "rank", default=16, min=1, max=512,
                    tooltip="Number of singular values in each layer. 4 to 16 suit a style, 16 to 64 a subject; the "
                    "file grows with it.",
                ),
                io.Int.Input(
                    "batch", default=1, min=1, max=64,
                    tooltip="Pictures looked at in each step. Twice as many cost twice the time and more memory, and "
                    "make steadier corrections.",
                ),
                io.Int.Input(
                    "seed", default=0, min=0, max=2**63 - 1, control_after_generate=False,
                    tooltip="Decides every random number: the same seed on the same machine gives the same adapter.",
                ),
                *advanced_inputs(),
                *optional_inputs(),
            ],
            outputs=[
                TriLoRA.Output("trilora", tooltip="The adapter, for Save TriLoRA and Apply TriLoRA."),
                io.LossMap.Output("loss_map", tooltip="The loss of every step, for core's Plot Loss Graph."),
                io.Image.Output("report", tooltip="Loss curves and spectrum of the adapter."),
                io.Image.Output("previews", tooltip="The film strip: a picture at step 0 and every so many steps."),
                io.String.Output("summary", tooltip="The run in words: parameters, losses, overfitting, forgetting."),
            ],
            hidden=[io.Hidden.unique_id, io.Hidden.extra_pnginfo],
        )  # fmt: skip

    @classmethod
    def execute(
        cls, model, clip, vae, dataset, steps, learning_rate, rank, batch, seed, method, targets, alpha, preserve,
        shrink, clip_norm, blocks="", held_out=None, regularisation=None, start_from=None, options=None, watch=None,
    ) -> io.NodeOutput:  # fmt: skip
        options, watch = options or {}, watch or {}
        plain = tuple(options.get("plain", ()))
        settings = Settings(
            method=method["method"],
            core=method.get("core") or Settings.core,
            initialisation=method["initialisation"],
            learn=method.get("learn") or Settings.learn,
            rank=rank,
            alpha=alpha,
            steps=steps,
            batch=batch,
            learning_rate=learning_rate,
            shrink=shrink,
            clip=clip_norm,
            preserve=preserve if dataset.has_plain or plain else 0.0,
            caption_dropout=dataset.caption_dropout,
            seed=seed,
            targets=targets["pattern"] if targets["targets"] == "pattern" else targets["targets"],
            blocks=blocks,
            **options.get("settings", {}),
        )
        task = Task(
            model, clip, vae, dataset, settings, held_out=held_out, regularisation=regularisation, start=start_from,
            plain=plain, checkpointing=options.get("checkpointing", False), **watch,
        )  # fmt: skip
        with Progress(cls.hidden.unique_id, steps, cls.hidden.extra_pnginfo) as progress:
            outcome = run_training(task, progress)
        adapter, losses = outcome.adapter(), outcome.run.history.loss
        charts = to_tensor(report.picture(outcome.run, adapter.layers))
        summary = "\n".join(outcome.said)
        loss_map = {"loss": [torch.tensor(loss) for loss in losses]}
        return io.NodeOutput(adapter, loss_map, charts, outcome.film.tensor(), summary, ui={"text": (summary,)})


def advanced_inputs() -> list:
    """What a newcomer leaves alone."""
    initialisation = io.Combo.Input(
        "initialisation", options=list(INITIALISATIONS), default="balanced", advanced=True,
        tooltip="Where the factors start; the model is unchanged at step 0 in each. 'balanced' is the default; 'paper' "
        "follows the paper to the letter and forgets more; 'orthogonal' keeps U and V orthonormal, learns at twice the "
        "learning rate and bears very long training.",
    )  # fmt: skip
    gaussian = io.Combo.Input(
        "initialisation", options=["balanced", "paper"], default="balanced", advanced=True,
        tooltip="'balanced' draws with std 0.02; 'paper' with std 1/rank, as diffusers 0.24 did.",
    )  # fmt: skip
    core = io.Combo.Input(
        "core", options=list(CORES), default="diagonal", advanced=True,
        tooltip="Σ as a diagonal (the paper's equation 5), or as a full matrix (its figure 1; no gain was seen).",
    )  # fmt: skip
    learn = io.Combo.Input(
        "learn", options=list(LEARN), default="all", advanced=True, optional=True,
        tooltip="'sigma' keeps U and V of the adapter in start_from and learns Σ alone: a few thousand numbers, which "
        "re-tune a LoRA in seconds.",
    )  # fmt: skip
    pattern = io.String.Input(
        "pattern", default="*.attn2.*", advanced=True,
        tooltip="Glob patterns on the layer's path, separated by commas: '*.attn1.to_v, *.attn1.to_out.0'.",
    )  # fmt: skip
    return [
        io.DynamicCombo.Input(
            "method",
            options=[
                io.DynamicCombo.Option("trilora", [core, initialisation, learn]),
                io.DynamicCombo.Option("lora", [gaussian]),
            ],
            tooltip="'trilora' learns U, Σ and V; 'lora' is the ordinary pair of factors, for comparison.",
            extra_dict={"advanced": True},
        ),
        io.DynamicCombo.Input(
            "targets",
            options=[io.DynamicCombo.Option(preset, []) for preset in PRESETS]
            + [io.DynamicCombo.Option("pattern", [pattern])],
            tooltip="Which layers learn. Attention is where style lives; more layers fit closer and forget more.",
            extra_dict={"advanced": True},
        ),
        io.Float.Input(
            "alpha", default=8.0, min=0.01, max=1024.0, step=0.5, advanced=True,
            tooltip="The adapter's gain is alpha / rank. Leave it when you change the rank.",
        ),
        io.Float.Input(
            "preserve", default=0.3, min=0.0, max=10.0, step=0.05, advanced=True,
            tooltip="How much prompts without the trigger word must stay as they were. 0.3 holds them gently and "
            "makes a step about half as long again; 1 holds them firmer at the cost of some style; 0 switches it off, "
            "and without a trigger word it is off.",
        ),
        io.Float.Input(
            "shrink", default=0.0, min=0.0, max=0.9, step=0.05, advanced=True,
            tooltip="Weight decay as the share that unused parts of the adapter lose over the whole run.",
        ),
        io.Float.Input(
            "clip_norm", default=1.0, min=0.0, max=100.0, step=0.1, advanced=True,
            tooltip="Largest norm of a correction's gradient; larger ones are scaled down to it. 0 for no limit.",
        ),
    ]  # fmt: skip


def optional_inputs() -> list:
    """What can be connected, and which part of the network learns."""
    return [
        io.String.Input(
            "blocks", default="", optional=True, advanced=True,
            tooltip="Which blocks of the network learn, such as '4-12' or 'middle, up'. All when empty.",
        ),
        TriLoRADataset.Input(
            "held_out", optional=True,
            tooltip="Pictures that are scored but never learned. Without them, a tenth of the dataset is held out if "
            "it has ten pictures or more.",
        ),
        TriLoRADataset.Input(
            "regularisation", optional=True,
            tooltip="Pictures of the same kind of thing without the trigger word (DreamBooth): they keep the model "
            "from calling everything by your subject's name.",
        ),
        TriLoRA.Input(
            "start_from", optional=True,
            tooltip="An adapter to go on with instead of a fresh one, TriLoRA or LoRA. Its layers learn; rank and "
            "targets are its own.",
        ),
        TriLoRAOptions.Input("options", optional=True, tooltip="From TriLoRA Training Options."),
        TriLoRAWatch.Input("watch", optional=True, tooltip="From TriLoRA Training Watch."),
    ]  # fmt: skip
