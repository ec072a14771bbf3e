"""Train TriLoRA: adapters learn on the graph's own MODEL, in ComfyUI's process."""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import comfy.model_management
import comfy.utils
import folder_paths
import torch
from comfy_api.latest import io
from server import PromptServer

from ..trilora import files
from ..trilora.attach import attached
from ..trilora.dataset import Dataset
from ..trilora.files import Adapter
from ..trilora.layers import CORES, INITIALISATIONS
from ..trilora.metadata import base_named, describe
from ..trilora.plot import loss_chart, spectrum_chart, stacked, to_tensor
from ..trilora.targets import PRESETS, select
from ..trilora.training import Settings, Step, create_layers, learned, train
from .denoiser import ComfyDenoiser, lent
from .encoding import encode, examples, kept_on_disk
from .patching import file_of, portable_names
from .sockets import CATEGORY, TriLoRA, TriLoRADataset

UNFINISHED = "unfinished"  # folder under models/loras for what a cancelled or failed run had learned
ACTIVATIONS = 6  # memory of a training step over that of a sampling step, roughly


@dataclass
class Run:
    """What a training has come to so far."""

    model: object
    dataset: Dataset
    settings: Settings
    layers: dict = field(default_factory=dict)
    steps: list[Step] = field(default_factory=list)

    def adapter(self) -> Adapter:
        """The adapter as learned up to now, under names that files use."""
        names = portable_names(self.model, self.layers)
        factors = {names[path]: value for path, value in learned(self.layers).items()}
        base = base_named(type(self.model.model).__name__)
        losses = [step.loss for step in self.steps]
        return Adapter(factors, describe(self.settings, self.dataset, base, file_of(self.model), losses))

    def keep(self) -> None:
        """What was learned, on disk, for a run that ends before its end."""
        if not self.steps:
            return
        name = f"{self.dataset.trigger or 'trilora'}-seed-{self.settings.seed}-step-{len(self.steps)}"
        path = files.inside(Path(folder_paths.get_folder_paths("loras")[0]) / UNFINISHED, name.replace("/", "_"))
        files.save(self.adapter(), path)
        logging.warning("Training ended at step %d; what was learned is in %s", len(self.steps), path)


class Progress:
    """ComfyUI's bar with the loss and the time left as text on the node."""

    def __init__(self, node_id: str, total: int) -> None:
        self.node_id, self.bar, self.told = node_id, comfy.utils.ProgressBar(total), 0.0
        self.first: tuple[float, int] | None = None

    def say(self, text: str) -> None:
        """Text on the node, at most four times a second; raises when the user cancels."""
        comfy.model_management.throw_exception_if_processing_interrupted()
        if time.monotonic() - self.told > 0.25:
            self.told = time.monotonic()
            PromptServer.instance.send_progress_text(text, self.node_id)

    def step(self, step: Step, loss: float) -> None:
        """One step further; `loss` is the running mean."""
        now = time.monotonic()
        if self.first is None:
            self.first = (now, step.number)
        rate = (step.number - self.first[1]) / max(now - self.first[0], 1e-9)
        left = f", {clock((step.total - step.number) / rate)} left" if rate else ""
        self.say(f"step {step.number} of {step.total}, loss {loss:.4f}, {rate:.2f} it/s{left}")
        self.bar.update_absolute(step.number, step.total)


def clock(seconds: float) -> str:
    """h:mm:ss, or m:ss below an hour."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def run_training(model, clip, vae, dataset: Dataset, settings: Settings, progress: Progress) -> Run:
    """Encode, attach, learn. The MODEL is as it was afterwards, whatever happens."""
    run = Run(model, dataset, settings)
    encoded = encode(
        dataset, clip, vae, bool(settings.preserve),
        lambda text, done, total: progress.say(f"{text} ({done} of {total})"), kept_on_disk(),
    )  # fmt: skip
    with lent(model, ACTIVATIONS * model.memory_required([settings.batch, *encoded.largest])) as patcher:
        denoiser = ComfyDenoiser(patcher)
        data = [variants[0] for variants in examples(denoiser, encoded)]
        network = patcher.model.diffusion_model
        progress.say("starting the adapters")
        run.layers = create_layers(select(network, settings.targets), settings)
        with attached(network, run.layers) as switch:
            try:
                advance(run, train(denoiser, run.layers, switch, data, settings), progress.step)
            except BaseException:
                run.keep()
                raise
    return run


def advance(run: Run, steps, show: Callable[[Step, float], None]) -> None:
    """Take every step, showing the running mean of the loss."""
    mean = 0.0
    for step in steps:
        run.steps.append(step)
        mean += (step.loss - mean) * max(0.05, 1 / step.number)
        show(step, mean)


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
            ],
            outputs=[
                TriLoRA.Output("trilora", tooltip="The adapter, for Save TriLoRA and Apply TriLoRA."),
                io.LossMap.Output("loss_map", tooltip="The loss of every step, for core's Plot Loss Graph."),
                io.Image.Output("report", tooltip="Loss curve and spectrum of the adapter."),
            ],
            hidden=[io.Hidden.unique_id],
        )  # fmt: skip

    @classmethod
    def execute(
        cls, model, clip, vae, dataset, steps, learning_rate, rank, batch, seed, method, targets, alpha, preserve,
        shrink, clip_norm,
    ) -> io.NodeOutput:  # fmt: skip
        settings = Settings(
            method=method["method"],
            core=method.get("core", "diagonal"),
            initialisation=method["initialisation"],
            rank=rank,
            alpha=alpha,
            steps=steps,
            batch=batch,
            learning_rate=learning_rate,
            shrink=shrink,
            clip=clip_norm,
            preserve=preserve if dataset.has_plain else 0.0,
            seed=seed,
            targets=targets["pattern"] if targets["targets"] == "pattern" else targets["targets"],
        )
        run = run_training(model, clip, vae, dataset, settings, Progress(cls.hidden.unique_id, steps))
        adapter = run.adapter()
        losses = [step.loss for step in run.steps]
        kept = [step.preservation for step in run.steps if step.preservation is not None]
        report = stacked([loss_chart(losses, kept), spectrum_chart(adapter.layers)])
        return io.NodeOutput(adapter, {"loss": [torch.tensor(loss) for loss in losses]}, to_tensor(report))


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
    pattern = io.String.Input(
        "pattern", default="*.attn2.*", advanced=True,
        tooltip="Glob patterns on the layer's path, separated by commas: '*.attn1.to_v, *.attn1.to_out.0'.",
    )  # fmt: skip
    return [
        io.DynamicCombo.Input(
            "method",
            options=[
                io.DynamicCombo.Option("trilora", [core, initialisation]),
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
            tooltip="How much prompts without the trigger word must stay as they were. 0.3 removes most of the "
            "forgetting and makes a step about twice as long; 0 switches it off, and without a trigger word it is "
            "off.",
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
