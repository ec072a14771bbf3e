"""A run on the toy, which uses most of what a run can do."""

from pathlib import Path

from strategies import CONDITION, LATENT, Toy, randn

from trilora.attach import attached
from trilora.objective import Example
from trilora.run import Run, Watch
from trilora.settings import Settings
from trilora.targets import linear_layers
from trilora.training import Training, create_layers

EVERYTHING = {
    "rank": 4, "alpha": 4.0, "steps": 24, "batch": 2, "accumulate": 2, "learning_rate": 1e-2, "preserve": 0.3,
    "rank_dropout": 0.2, "layer_dropout": 0.2, "average": 0.9, "schedule": "cosine", "warmup": 3, "shrink": 0.1,
}  # fmt: skip


def pictures(count: int = 6, first: int = 0) -> list[tuple[Example]]:
    """Toy pictures of one style."""
    common = randn(99, *LATENT)
    conditions = [(randn(first + 20 + i, CONDITION), randn(first + 40 + i, CONDITION)) for i in range(count)]
    return [(Example(common + randn(first + i, *LATENT) / 5, *c),) for i, c in enumerate(conditions)]


def make(folder: Path, toy: Toy | None = None, watch: Watch | None = None, held: int = 2, **changed):
    """A run that is ready to go, and the context that the caller keeps open."""
    settings = Settings(**(EVERYTHING | changed))
    toy = toy or Toy()
    layers = create_layers(linear_layers(toy.net), settings)
    context = attached(toy.net, layers)
    training = Training(toy, layers, context.__enter__(), pictures(), settings)
    held_out = [example for (example,) in pictures(held, 200)]
    watch = watch or Watch(score_every=4, checkpoint_every=3)
    return Run(training, folder, held_out, watch, {"settings": EVERYTHING | changed, "data": "toy"}), context
