"""Pictures by the pipeline, and what is measured on them: FID, CLIP score, saturated values."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.paper.bench import Bench
from trilora.metrics.frechet import Moments, frechet
from trilora.metrics.similarity import clip_score
from trilora.plot import contact_sheet

SEED, STEPS, GUIDANCE = 30, 20, 7.5  # the paper's
TOGETHER = 8
BEYOND = 1.05  # of values that should lie in -1 to 1
SHOWN = 16


@torch.no_grad()
def paint(
    bench: Bench, prompts: Sequence[str], seed: int = SEED, steps: int = STEPS, guidance: float = GUIDANCE
) -> tuple[list[Tensor], float]:
    """Pictures (height, width, 3) in 0..1, the i-th from the noise of seed + i; and the share of saturated values."""
    pipe, side = bench.pipe, bench.scale.side
    made: list[Tensor] = []
    beyond = 0.0
    for at in range(0, len(prompts), TOGETHER):
        some = list(prompts[at : at + TOGETHER])
        noise = [torch.Generator().manual_seed(seed + at + i) for i in range(len(some))]
        latents = pipe(
            some, num_inference_steps=steps, guidance_scale=guidance, generator=noise, height=side, width=side,
            output_type="latent",
        ).images  # fmt: skip
        values = pipe.vae.decode(latents / pipe.vae.config.scaling_factor).sample.float().cpu()
        beyond += float((values.abs() > BEYOND).float().mean()) * len(some)
        made += list((values / 2 + 0.5).clamp(0, 1).movedim(1, -1))
    return made, beyond / len(prompts)


def measured(bench: Bench, name: str, captions: Sequence[str], trigger: str, sheet: Path) -> dict[str, Any]:
    """FID to the pictures of a data set, CLIP score, and the share of saturated values, on at most `scale.prompts`.

    Args:
        name: of the data set.
        sheet: where some of the pictures go, without suffix.
    """
    captions = captions[: bench.scale.prompts]
    made, beyond = paint(bench, [f"{trigger}, {caption}" for caption in captions])
    features = bench.setup.extractor.pictures(torch.stack(made))
    found, real = Moments(), bench.moments(name)
    found.add(features)
    sheet.parent.mkdir(parents=True, exist_ok=True)
    contact_sheet(made[:SHOWN], captions[:SHOWN], columns=8).quantize(128).save(sheet.with_name(sheet.name + ".png"))
    texts = bench.setup.extractor.texts
    clip = clip_score(features, texts(captions)) if texts else float("nan")
    return {"fid": frechet(found, real), "clip": clip, "saturated": beyond, "prompts": len(captions)}
