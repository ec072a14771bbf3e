"""Steps and seconds to a given held-out loss on the demo base: LoRA and TriLoRA's initialisations.

    python dev.py bench convergence            # 5 arms: 3 learning rates, then 8 seeds; 40 minutes of one core
    python dev.py bench convergence --quick

Each arm at its own best learning rate: the one with which it is there first with the first seed; the other seeds are
run at that rate alone, until they are there. The loss to reach is what LoRA at its usual rate comes to after half of
its run. Training pictures: three quarters of a shipped style; the loss is taken on the other quarter at fixed noise.
Ratios are seed by seed.
"""

import argparse
import math
import statistics
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch

from benchmarks._comfyui import ComfyUI, Wires, comfyui_here
from benchmarks._measure import Clock, Goal, Table, main

STYLE, TRIGGER = "demo: stained_glass", "zorvex"
LORA = "LoRA"
ARMS: Mapping[str, dict[str, Any]] = {
    LORA: {"method": "lora"},
    "LoRA, std 1/r": {"method": "lora", "initialisation": "paper"},
    "TriLoRA, balanced": {},
    "TriLoRA, paper": {"initialisation": "paper"},
    "TriLoRA, orthogonal": {"initialisation": "orthogonal"},
}
RATES, USUAL = (3e-3, 1e-2, 3e-2), 3e-3


class Course(NamedTuple):
    """The held-out loss after so many steps, and the seconds that a step took."""

    losses: dict[int, float]
    seconds: float

    def steps_to(self, loss: float) -> float:
        """The first scored step that is there; twice the run's length if none is."""
        there = [step for step, value in self.losses.items() if value <= loss]
        return float(min(there, default=2 * max(self.losses)))

    def speed(self, loss: float) -> tuple[float, float]:
        """Less is faster; of two that are there at once, or never, the one that ends lower."""
        return self.steps_to(loss), self.losses[max(self.losses)]


def run(args: argparse.Namespace) -> list[Table]:
    steps, every, seeds = (4, 2, (0,)) if args.quick else (240, 10, tuple(range(8)))
    rates = (USUAL,) if args.quick else RATES
    arms = {LORA: ARMS[LORA], "TriLoRA, balanced": {}} if args.quick else ARMS
    with comfyui_here() as ui:
        field = Field(ui, ui.demo(), steps, every)
        tuned = {arm: {rate: field.course(how, rate, seeds[0]) for rate in rates} for arm, how in arms.items()}
        loss = tuned[LORA][USUAL].losses[steps // 2]
        best = {arm: min(courses, key=lambda rate: courses[rate].speed(loss)) for arm, courses in tuned.items()}  # noqa: B023
        chosen = {
            f"{arm}, rate {best[arm]:g}": [
                tuned[arm][best[arm]],
                *(field.course(how, best[arm], seed, loss) for seed in seeds[1:]),
            ]
            for arm, how in arms.items()
        }
    first = next(iter(chosen))
    goals = [Goal(arm, first, 1.0) for arm in chosen if arm.startswith("TriLoRA")]
    note = f"{len(seeds)} seeds; a run that does not get there within {steps} steps counts as {2 * steps}."
    taken = {arm: [course.steps_to(loss) for course in each] for arm, each in chosen.items()}
    seconds = {arm: [course.steps_to(loss) * course.seconds for course in each] for arm, each in chosen.items()}
    return [
        Table(f"Steps to a held-out loss of {loss:.3f}", "steps", taken, first, goals, note),
        Table(f"Seconds to a held-out loss of {loss:.3f}", "s", seconds, first, goals),
    ]


class Field:
    """The demo model and a style, encoded once."""

    def __init__(self, ui: ComfyUI, wires: Wires, steps: int, every: int) -> None:
        self.ui, self.wires, self.steps, self.every = ui, wires, steps, every
        data = ui.run("TriLoRADataset", folder=[STYLE], trigger=[TRIGGER], resolution=[128], bucket_step=[0])[0]
        encode = ui.module("nodes.encoding").encode
        with torch.inference_mode():  # as ComfyUI runs every node
            self.train, self.held = (
                encode(part, wires.clip, wires.vae, False, lambda *_: None) for part in data.split(0.25, 0)
            )

    def course(self, about: Mapping[str, Any], rate: float, seed: int, until: float = -math.inf) -> Course:
        """Train one arm until its loss is there, looking at the held-out pictures every so many steps."""
        ui, network = self.ui, self.wires.model.model.diffusion_model
        learning, attach = ui.module("trilora.training"), ui.module("trilora.attach")
        running, clock, seconds = ui.module("trilora.run"), Clock(), []
        settings = ui.module("trilora.settings").Settings(
            rank=4, alpha=4.0, steps=self.steps, batch=2, learning_rate=rate, seed=seed, **about
        )
        losses: dict[int, float] = {}
        with ui.module("nodes.lending").lent(self.wires.model) as patcher:
            denoiser = ui.module("nodes.denoiser").ComfyDenoiser(patcher)
            examples = ui.module("nodes.encoding").examples
            pictures, held = examples(denoiser, self.train), [first for first, *_ in examples(denoiser, self.held)]
            layers = learning.create_layers(ui.module("trilora.targets").select(network), settings)
            with attach.attached(network, layers) as switch:
                training = learning.Training(denoiser, layers, switch, pictures, settings)
                for step in range(1, self.steps + 1):
                    seconds.append(clock(training.step))
                    if step % self.every == 0:
                        noise = running.fixed_noise(held, 0)
                        losses[step] = ui.module("trilora.objective").score(denoiser, held, noise, running.LEVELS)
                        if losses[step] <= until:
                            break
        return Course(losses, statistics.median(seconds))


if __name__ == "__main__":
    main(__doc__, run, "convergence")
