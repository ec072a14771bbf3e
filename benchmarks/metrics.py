"""What the demo's extractor can tell: prompts right and wrong in every look, and FID by the number of pictures.

`python benchmarks/metrics.py` prints both tables of docs/metrics.md; some minutes.
"""

import random
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy
import torch
from torch import Tensor

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from demo.draw import draw  # noqa: E402
from demo.judge import HEADS  # noqa: E402
from demo.world import SceneSpec, all_triples, caption, specs_over  # noqa: E402
from trilora.metrics import extractors  # noqa: E402
from trilora.metrics.frechet import Moments, frechet  # noqa: E402
from trilora.metrics.similarity import clip_scores  # noqa: E402

COUNT, SETS = 200, (25, 50, 100, 200)
LOOKS = (None, "stained_glass", "paper_print")


def seen(eye: extractors.Network, specs: Sequence[SceneSpec], look: str | None) -> Tensor:
    pictures = numpy.stack([numpy.asarray(draw(spec, look)) for spec in specs])
    return eye.pictures(torch.from_numpy(pictures).float() / 255)


def one_word_wrong(specs: Sequence[SceneSpec], head: str) -> list[str]:
    rng = random.Random(1)
    others = ([word for word in HEADS[head] if word != getattr(spec, head)] for spec in specs)
    return [caption(replace(spec, **{head: rng.choice(words)})) for spec, words in zip(specs, others, strict=True)]


def prompts(eye: extractors.Network) -> Iterator[str]:
    """How often the right prompt scores higher than a wrong one, by look."""
    specs = specs_over(all_triples(), COUNT, seed=77)
    right = [caption(spec) for spec in specs]
    yield (
        "| look | score, right prompt | another picture's | right is higher | "
        + " | ".join(f"than a wrong {head}" for head in HEADS)
        + " |"
    )
    yield "|---|" + "---|" * (3 + len(HEADS))
    for look in LOOKS:
        features = seen(eye, specs, look)

        def scores(texts: list[str], features: Tensor = features) -> Tensor:
            return clip_scores(features, eye.texts(texts))

        ours, other = scores(right), scores([*right[1:], right[0]])
        rates = [ours > other, *(ours > scores(one_word_wrong(specs, head)) for head in HEADS)]
        shares = " | ".join(f"{float(rate.float().mean()):.0%}" for rate in rates)
        yield f"| {look or 'base'} | {ours.mean():.1f} | {other.mean():.1f} | {shares} |"


def floor(eye: extractors.Network) -> Iterator[str]:
    """FID of two sets drawn alike, and of the base's look against the print's, by the number of pictures."""
    specs = specs_over(all_triples(), 2 * max(SETS), seed=612)
    printed, plain = seen(eye, specs, "paper_print"), seen(eye, specs[: max(SETS)], None)
    yield "| pictures a set | FID of two sets of prints | FID of base pictures to prints |"
    yield "|---|---|---|"
    for count in SETS:
        yield f"| {count} | {fid(printed[:count], printed[-count:]):.1f} | {fid(plain[:count], printed[-count:]):.1f} |"


def fid(a: Tensor, b: Tensor) -> float:
    sides = Moments(), Moments()
    sides[0].add(a)
    sides[1].add(b)
    return frechet(*sides)


if __name__ == "__main__":
    network = extractors.demo(ROOT / "demo" / "judge")
    print(*prompts(network), "", *floor(network), sep="\n")
