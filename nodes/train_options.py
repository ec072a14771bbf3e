"""Training Options and Training Watch: what experts set, apart from the trainer that everybody sees."""

from comfy_api.latest import io

from ..trilora.film import Preview
from ..trilora.run import Watch
from ..trilora.settings import LOSSES, NOISE_LEVELS, OPTIMIZERS, PRECISIONS, SCHEDULES, Settings
from .sockets import CATEGORY, TriLoRAOptions, TriLoRAWatch


class TrainOptions(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TriLoRATrainOptions",
            display_name="TriLoRA Training Options",
            category=CATEGORY,
            description="Optimizer, noise levels, loss and memory of Train TriLoRA. Nobody has to touch them.",
            inputs=[*optimizer_inputs(), *objective_inputs(), *network_inputs()],
            outputs=[TriLoRAOptions.Output("options", tooltip="For the options input of Train TriLoRA.")],
        )

    @classmethod
    def execute(cls, noise_levels, loss, preserve_captions, checkpointing, **same) -> io.NodeOutput:
        settings = {**same, "levels": noise_levels["noise_levels"], "loss": loss["loss"]}
        settings |= {f"levels_{key}": value for key, value in noise_levels.items() if key != "noise_levels"}
        settings |= {f"huber_{key}": value for key, value in loss.items() if key != "loss"}
        plain = tuple(line.strip() for line in preserve_captions.splitlines() if line.strip())
        return io.NodeOutput({"settings": settings, "plain": plain, "checkpointing": checkpointing})


class TrainWatch(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TriLoRATrainWatch",
            display_name="TriLoRA Training Watch",
            category=CATEGORY,
            description="Held-out pictures, preview pictures and states on disk of Train TriLoRA. None of it changes "
            "what is learned.",
            inputs=[*score_inputs(), *preview_inputs(), *state_inputs()],
            outputs=[TriLoRAWatch.Output("watch", tooltip="For the watch input of Train TriLoRA.")],
        )

    @classmethod
    def execute(cls, held_out_share, previews, **watch) -> io.NodeOutput:
        preview = Preview(**{k: v for k, v in previews.items() if k != "previews"})
        if previews["previews"] == "off":
            preview = Preview(every=0)
        return io.NodeOutput({"watch": Watch(**watch), "preview": preview, "share": held_out_share})


def optimizer_inputs() -> list:
    return [
        io.Combo.Input(
            "optimizer", options=list(OPTIMIZERS), default=Settings.optimizer,
            tooltip="'adamw' is the standard. 'adafactor' needs less memory; 'prodigy' finds its own learning rate "
            "(set learning_rate to 1); 'adamw 8-bit', 'prodigy' and 'schedule-free' need a Python package each.",
        ),
        io.Float.Input(
            "sigma_rate", default=Settings.sigma_rate, min=0.01, max=100.0, step=0.1,
            tooltip="Learning rate of Σ over that of U and V. No value was found better than 1.",
        ),
        io.Combo.Input(
            "schedule", options=list(SCHEDULES), default=Settings.schedule,
            tooltip="How the learning rate goes over the steps: constant, or down to 0 along a cosine or a line.",
        ),
        io.Int.Input(
            "warmup", default=Settings.warmup, min=0, max=100_000,
            tooltip="Steps over which the learning rate rises from 0. A tenth of the steps at most.",
        ),
        io.Int.Input(
            "accumulate", default=Settings.accumulate, min=1, max=256,
            tooltip="Passes that make one step: the same as a batch this many times larger, in the memory of one.",
        ),
        io.Float.Input(
            "average", default=Settings.average, min=0.0, max=0.9999, step=0.001, round=False,
            tooltip="Decay of a moving average of the factors (EMA), which is then kept. 0.99 smooths the last 100 "
            "steps; 0 switches it off.",
        ),
        io.Float.Input(
            "rank_dropout", default=Settings.rank_dropout, min=0.0, max=0.9, step=0.05,
            tooltip="Share of singular values that sit out each pass. Above 0 it counters overfitting.",
        ),
        io.Float.Input(
            "layer_dropout", default=Settings.layer_dropout, min=0.0, max=0.9, step=0.05,
            tooltip="Share of layers that sit out each pass. Above 0 it counters overfitting.",
        ),
        io.Int.Input(
            "samples", default=Settings.samples, min=0, max=1_000_000,
            tooltip="Pictures drawn anew for each epoch, for large datasets (the paper: 100). 0 for all of them.",
        ),
    ]  # fmt: skip


def objective_inputs() -> list:
    mean = io.Float.Input(
        "mean", default=Settings.levels_mean, min=-5.0, max=5.0, step=0.1,
        tooltip="Of the logit of the noise level. Above 0 favours much noise (layout), below 0 little (texture).",
    )  # fmt: skip
    std = io.Float.Input(
        "std", default=Settings.levels_std, min=0.1, max=5.0, step=0.1, tooltip="Of the logit; wider is more uniform."
    )
    shift = io.Float.Input(
        "shift", default=3.0, min=0.05, max=20.0, step=0.1,
        tooltip="Above 1 favours much noise, below 1 little; on top of the shift that the model itself has.",
    )  # fmt: skip
    delta = io.Float.Input(
        "delta", default=Settings.huber_delta, min=0.001, max=10.0, step=0.01, round=False,
        tooltip="Error from which the loss grows along a line instead of a square.",
    )  # fmt: skip
    options = {"uniform": [], "logit-normal": [mean, std], "shifted": [shift]}
    return [
        io.DynamicCombo.Input(
            "noise_levels", options=[io.DynamicCombo.Option(name, options[name]) for name in NOISE_LEVELS],
            tooltip="Which noise levels of the model's schedule are trained how often.",
        ),
        io.Float.Input(
            "min_snr", default=Settings.min_snr, min=0.0, max=20.0, step=0.5,
            tooltip="γ of min-SNR weighting: noise levels that are too easy count less. 5 is usual; 0 switches it off.",
        ),
        io.Float.Input(
            "noise_offset", default=Settings.noise_offset, min=0.0, max=1.0, step=0.01,
            tooltip="Noise that is constant over the picture. 0.05 lets a style become darker or brighter as a whole.",
        ),
        io.DynamicCombo.Input(
            "loss", options=[io.DynamicCombo.Option(name, {"mse": [], "huber": [delta]}[name]) for name in LOSSES],
            tooltip="'huber' is pulled less by what does not fit, such as a bad picture among good ones.",
        ),
        io.String.Input(
            "preserve_captions", default="", multiline=True,
            tooltip="Captions on which the base is to stay as it was, one a line, in place of the pictures' own "
            "captions without the trigger word. 20 to 40 prompts of what else you paint keep far more of the base. "
            "With these, no trigger word is needed.",
        ),
        io.Int.Input(
            "preserve_every", default=Settings.preserve_every, min=1, max=16,
            tooltip="The base is compared at every how many-th picture. 1 preserves a little better and takes longer.",
        ),
        io.Float.Input(
            "prior", default=Settings.prior, min=0.0, max=10.0, step=0.1,
            tooltip="Weight of the regularisation pictures' loss, where there are any.",
        ),
    ]  # fmt: skip


def network_inputs() -> list:
    return [
        io.Combo.Input(
            "precision", options=list(PRECISIONS), default=Settings.precision,
            tooltip="Of the network's arithmetic. 'auto' is the model's own. The adapter is float32 in any case.",
        ),
        io.Boolean.Input(
            "checkpointing", default=False,
            tooltip="Computes each block a second time instead of remembering it: half as slow again, and a tenth of "
            "the memory.",
        ),
    ]  # fmt: skip


def score_inputs() -> list:
    return [
        io.Float.Input(
            "held_out_share", default=0.1, min=0.0, max=0.5, step=0.05,
            tooltip="Share of the pictures that is scored but never learned, if there are ten pictures or more and "
            "none are connected to held_out. 0 learns them all.",
        ),
        io.Int.Input(
            "score_every", default=Watch.score_every, min=1, max=100_000,
            tooltip="Steps between scores of the held-out pictures. A score costs a few steps' time.",
        ),
        io.Int.Input(
            "patience", default=Watch.patience, min=0, max=1000,
            tooltip="The run ends after this many scores without a better one. 0 never ends it early.",
        ),
        io.Boolean.Input(
            "keep_best", default=Watch.keep_best,
            tooltip="Hand on the adapter of the best score instead of the last one.",
        ),
    ]  # fmt: skip


def preview_inputs() -> list:
    inputs = [
        io.Int.Input(
            "every", default=Preview.every, min=1, max=100_000,
            tooltip="Steps between preview pictures; there is one before the first step and one at the end.",
        ),
        io.String.Input(
            "prompt", default=Preview.prompt,
            tooltip="What is painted. Empty: the trigger word and the first picture's caption.",
        ),
        io.Int.Input(
            "seed", default=Preview.seed, min=0, max=2**63 - 1, control_after_generate=False,
            tooltip="The same for every preview, so that only the adapter changes.",
        ),
        io.Int.Input("steps", default=Preview.steps, min=1, max=200, tooltip="Sampling steps of a preview."),
        io.Float.Input("cfg", default=Preview.cfg, min=0.0, max=30.0, step=0.1, tooltip="Guidance of a preview."),
    ]  # fmt: skip
    return [
        io.DynamicCombo.Input(
            "previews", options=[io.DynamicCombo.Option("on", inputs), io.DynamicCombo.Option("off", [])],
            tooltip="Pictures by the model in training, sent to the node as they come and kept as a film strip.",
        )
    ]  # fmt: skip


def state_inputs() -> list:
    return [
        io.Int.Input(
            "checkpoint_every", default=Watch.checkpoint_every, min=0, max=100_000,
            tooltip="Steps between states on disk (output/TriLoRA/runs), from which a run that broke off goes on. A "
            "state is three times the adapter's size.",
        ),
        io.Int.Input("checkpoints", default=Watch.checkpoints, min=1, max=100, tooltip="How many states are kept."),
        io.Boolean.Input(
            "resume", default=Watch.resume,
            tooltip="Go on from the state of a run with the same settings and pictures. Off: always from step 0.",
        ),
    ]  # fmt: skip
