"""Trains the small base model from nothing but drawn pictures: `python -m demo.train_base`.

Stages: autoencoder, denoiser, decoder, judge. Each goes on where it was stopped (state in demo/.work).
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # before torch: waiting threads sleep, so other work is not slowed

from . import autoencoder, denoiser, export, measure  # noqa: E402
from .peers import Peers  # noqa: E402

HERE = Path(__file__).parent
WORK, BASE = HERE / ".work", HERE / "base"
STAGES = ("autoencoder", "denoiser", "decoder", "judge", "measure")


def run(stage: str, args: argparse.Namespace) -> None:
    """One stage."""
    if stage == "autoencoder":
        autoencoder.train(WORK, args.autoencoder_steps, batch=8, peak=1.2e-3)
    elif stage == "denoiser":
        denoiser.train(
            WORK,
            args.pictures,
            args.steps,
            args.batch,
            minutes=args.minutes,
            on_export=lambda: export.export(WORK, BASE),
            export_every=args.export_every,
        )
        if Peers().first:
            export.export(WORK, BASE)
    elif stage == "decoder":
        autoencoder.train(WORK, args.decoder_steps, batch=8, peak=8e-4, decoder_only=True)
        export.export(WORK, BASE)
    elif stage == "judge":
        measure.make_judge(WORK)
    elif stage == "measure":
        measure.measure(WORK, BASE)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stage", choices=STAGES, action="append", help="only this stage (may be repeated)")
    parser.add_argument("--autoencoder-steps", type=int, default=1300)
    parser.add_argument("--decoder-steps", type=int, default=600, help="decoder alone, encoder kept")
    parser.add_argument("--pictures", type=int, default=2880, help="drawn pictures for the denoiser")
    parser.add_argument("--steps", type=int, default=3650, help="denoiser steps")
    parser.add_argument("--batch", type=int, default=20, help="pictures a denoiser step")
    parser.add_argument("--minutes", type=float, default=1e9, help="end the denoiser's schedule after so many minutes")
    parser.add_argument("--export-every", type=float, default=10, help="minutes between exports of demo/base")
    args = parser.parse_args()
    WORK.mkdir(exist_ok=True)
    for stage in args.stage or STAGES:
        run(stage, args)


if __name__ == "__main__":
    main()
