"""How much is trained and measured."""

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Scale:
    """Sizes of the experiment; the paper gives no rank, alpha or batch.

    Attributes:
        side: of every picture, in pixels.
        seeds: of the fair comparison.
        rates: the grid of learning rates, the same for every method.
        kept_rates: how many of them, the best for a method on the validation pictures, its frontier is made of.
        steps: of each training of the fair comparison.
        strengths: at which the adapter after the last step is measured.
        after: steps of Σ-only tuning and of repair.
        captions: on which repair paints.
        long_epochs, long_pictures: of very long training on very few pictures.
        long_rates: the rate of every method in it, and further ones for LoRA.
        long_seeds: of it.
        paper_seeds: of Table 1.
        paper_pictures: drawn anew for each epoch of the creature set (the paper: 100).
        creature_epochs, garment_epochs: as in the paper.
        creature_rate, garment_rate: fixed; the paper's are 1e-4 and 5e-5, for a base of Stable Diffusion's size.
        prompts: at most so many of each set are painted (the paper: all, 736 and 52).
        special_steps, special_rate: of the full fine-tuning that makes a base for garments.
    """

    side: int = 128
    rank: int = 4
    alpha: float = 4.0
    batch: int = 2
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    rates: tuple[float, ...] = (3e-3, 1e-2, 3e-2)
    kept_rates: int = 2
    steps: int = 60
    strengths: tuple[float, ...] = (0.8, 0.6, 0.45, 0.3)
    after: int = 40
    captions: int = 12
    long_epochs: int = 500
    long_pictures: int = 4
    long_rates: tuple[float, ...] = (3e-3, 1e-3)
    long_seeds: tuple[int, ...] = (0,)
    paper_seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    paper_pictures: int = 4
    creature_epochs: int = 100
    garment_epochs: int = 10
    creature_rate: float = 3e-3
    garment_rate: float = 1.5e-3
    prompts: int = 24
    special_steps: int = 60
    special_rate: float = 3e-4

    @property
    def marks(self) -> tuple[int, ...]:
        """Steps after which a training is measured."""
        return tuple(sorted({max(1, self.steps // 2), self.steps}))


DEMO = Scale()
QUICK = replace(
    DEMO, seeds=(0, 1), rates=(3e-3, 1e-2), kept_rates=1, steps=16, strengths=(0.7,), after=8, captions=4,
    long_epochs=20, paper_seeds=(0,), creature_epochs=20, garment_epochs=2, prompts=8,
    special_steps=10,
)  # fmt: skip
WHOLE = replace(
    DEMO, side=512, batch=1, rates=(3e-5, 1e-4, 3e-4, 1e-3), steps=1000, after=300, captions=30,
    long_epochs=1000, long_pictures=30, long_rates=(1e-4, 3e-5), paper_pictures=100, creature_rate=1e-4,
    garment_rate=5e-5, prompts=736, special_steps=2000, special_rate=2e-6,
)  # fmt: skip
