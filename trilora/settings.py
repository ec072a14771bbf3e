"""Settings: everything that decides a run, together with its data."""

import math
from dataclasses import asdict, dataclass
from typing import Any

from .errors import TrainingError
from .layers import CORES, INITIALISATIONS, METHODS

LEARN = ("all", "sigma")
OPTIMIZERS = ("adamw", "adamw 8-bit", "adafactor", "prodigy", "schedule-free")
SCHEDULES = ("constant", "cosine", "linear")
NOISE_LEVELS = ("uniform", "logit-normal", "shifted")
LOSSES = ("mse", "huber")
PRECISIONS = ("auto", "float32", "bfloat16", "float16")


@dataclass(frozen=True)
class Settings:
    """Everything that decides a run, together with its data.

    Attributes:
        method: `trilora`, or `lora` for the baseline.
        core: `diagonal` (Eq. 5) or `full` (Figure 1).
        initialisation: `balanced`, `paper` or `orthogonal`; see `factors.initial`.
        learn: `all` factors, or `sigma` alone, with U and V of the adapter that is started from.
        rank: number of singular values a layer.
        alpha: the gain on the product is alpha / rank; keep alpha when the rank grows.
        targets: preset or patterns of layers; see `targets.select`.
        blocks: which blocks of the network, such as `4-12`; all when empty.
        steps: optimizer steps.
        batch: pictures in one pass through the network.
        accumulate: passes a step; batch x accumulate pictures decide each step.
        samples: pictures drawn anew for each epoch (the paper: 100); 0 for all.
        optimizer: one of OPTIMIZERS.
        learning_rate: 1e-4 suits SD-class models with adamw; prodigy finds its own and wants 1.
        sigma_rate: the learning rate of Σ over that of U and V.
        schedule: of the learning rate: `constant`, `cosine` or `linear` (both down to 0).
        warmup: steps in which the learning rate rises from 0.
        shrink: total decoupled weight decay over the run, as a share; 0.1 takes 10 % from what is not renewed.
        clip: largest norm of the whole gradient; 0 for none.
        average: decay of a moving average of the factors (EMA), which is then what is kept; 0 for none.
        rank_dropout: share of singular values that sit out each pass.
        layer_dropout: share of layers that sit out each pass.
        caption_dropout: share of pictures shown with the empty caption.
        levels: distribution of noise levels over the model's schedule: `uniform`, `logit-normal` or `shifted`.
        levels_mean, levels_std: of the logit, for `logit-normal`; above 0 favours much noise.
        levels_shift: for `shifted`; above 1 favours much noise.
        min_snr: γ of min-SNR weighting (Hang et al. 2023); 0 for none.
        noise_offset: size of noise that is constant over each channel; lets a style become darker or brighter.
        loss: `mse`, or `huber`, which outliers pull less.
        huber_delta: error from which `huber` grows linearly.
        preserve: λ of the distance to the frozen base on captions without the trigger; 0 switches it off.
        preserve_every: the distance is taken at every how many-th picture; its weight keeps λ's meaning.
        prior: weight of the loss on regularisation pictures, where there are any (DreamBooth).
        precision: of the network's arithmetic: `auto`, `float32`, `bfloat16` or `float16`; factors are float32 always.
        seed: of adapter, order, noise and noise levels.
    """

    method: str = "trilora"
    core: str = "diagonal"
    initialisation: str = "balanced"
    learn: str = "all"
    rank: int = 16
    alpha: float = 8.0
    targets: str = "attention"
    blocks: str = ""
    steps: int = 1000
    batch: int = 1
    accumulate: int = 1
    samples: int = 0
    optimizer: str = "adamw"
    learning_rate: float = 1e-4
    sigma_rate: float = 1.0
    schedule: str = "constant"
    warmup: int = 0
    shrink: float = 0.0
    clip: float = 1.0
    average: float = 0.0
    rank_dropout: float = 0.0
    layer_dropout: float = 0.0
    caption_dropout: float = 0.0
    levels: str = "uniform"
    levels_mean: float = 0.0
    levels_std: float = 1.0
    levels_shift: float = 1.0
    min_snr: float = 0.0
    noise_offset: float = 0.0
    loss: str = "mse"
    huber_delta: float = 0.1
    preserve: float = 0.0
    preserve_every: int = 2
    prior: float = 1.0
    precision: str = "auto"
    seed: int = 0

    def __post_init__(self) -> None:
        for field, options in _CHOICES.items():
            _require(getattr(self, field) in options, field, getattr(self, field), f"one of {', '.join(options)}")
        for field in ("rank", "steps", "batch", "accumulate", "preserve_every"):
            _require(getattr(self, field) >= 1, field, getattr(self, field), "at least 1")
        for field in ("learning_rate", "alpha", "sigma_rate", "levels_std", "levels_shift", "huber_delta"):
            value = getattr(self, field)
            _require(math.isfinite(value) and value > 0, field, value, "a number above 0")
        for field in ("clip", "preserve", "prior", "min_snr", "noise_offset", "warmup", "samples"):
            value = getattr(self, field)
            _require(math.isfinite(value) and value >= 0, field, value, "0 or more")
        for field in ("shrink", "average", "rank_dropout", "layer_dropout"):
            _require(0 <= getattr(self, field) < 1, field, getattr(self, field), "from 0 up to, not including, 1")
        _require(0 <= self.caption_dropout <= 1, "caption_dropout", self.caption_dropout, "from 0 to 1")
        if self.method == "lora":
            _require(self.core == "diagonal", "core", self.core, "diagonal for the method lora")
            _require(self.initialisation != "orthogonal", "initialisation", "orthogonal", "balanced or paper for lora")
            _require(self.learn == "all", "learn", self.learn, "all for the method lora, which has no Σ")
        if self.optimizer == "prodigy":
            _require(self.sigma_rate == 1, "sigma_rate", self.sigma_rate, "1 for prodigy, which finds one rate for all")
            _require(not self.shrink, "shrink", self.shrink, "0 for prodigy, whose rate can't be told beforehand")
        _require(self.warmup < self.steps, "warmup", self.warmup, f"below the number of steps, {self.steps}")

    @property
    def pictures(self) -> int:
        """Pictures that decide one step."""
        return self.batch * self.accumulate

    def course(self) -> dict[str, Any]:
        """What decides the course of the run up to any step; the number of steps does so only through a schedule."""
        course = asdict(self)
        if self.schedule == "constant" and not self.shrink:
            del course["steps"]
        return course


_CHOICES = {
    "method": METHODS,
    "core": CORES,
    "initialisation": INITIALISATIONS,
    "learn": LEARN,
    "optimizer": OPTIMIZERS,
    "schedule": SCHEDULES,
    "levels": NOISE_LEVELS,
    "loss": LOSSES,
    "precision": PRECISIONS,
}


def _require(good: bool, field: str, value: object, want: str) -> None:
    if not good:
        raise TrainingError(f"The setting {field} is {value!r}, but has to be {want}.")
