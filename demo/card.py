"""The model card of demo/base, with the numbers of the run that made it."""

from __future__ import annotations

import json
from pathlib import Path

from .saving import load_state
from .world import COLOURS, PLACES, SCENES, THINGS, held_out_triples, trained_triples

HERE = Path(__file__).parent
TEMPLATE = HERE / "card.md.in"


def write_card(work: Path, base: Path, measured: dict, steps: int, guidance: float) -> None:
    """README.md of the base, from the measured rates, the judge's own accuracy and the training states.

    Where those are not, as beside a base that was not trained here, the card stays.
    """
    if not (work / "denoiser.pt").exists():
        return
    from .denoiser import CHANNELS, HEADS, trained_denoiser  # late: only the card needs all of it
    from .narrow import full_autoencoder

    model, tokenizer, _ = trained_denoiser(work)
    accuracy = json.loads((HERE / "judge" / "config.json").read_text(encoding="utf-8"))["accuracy"]
    text = TEMPLATE.read_text(encoding="utf-8").format(
        **_world_words(),
        vae=_millions(full_autoencoder()),
        text=_millions(model.text),
        unet=_millions(model.unet),
        tokens=len(tokenizer),
        channels=CHANNELS,
        heads=HEADS,
        stages=_stages(work),
        pictures=len(load_state(work / "latents.pt")["z"]),
        m=measured,
        n_measured=measured["pictures"],
        steps=steps,
        guidance=guidance,
        j1=accuracy["fresh pictures"]["all"],
        j2=accuracy["after the autoencoder"]["all"],
    )
    (base / "README.md").write_text(text, encoding="utf-8")


def _world_words() -> dict:
    """The world's words and how many there are."""
    trained, held = len(trained_triples()), len(held_out_triples())
    words = {"things": THINGS, "colours": COLOURS, "places": PLACES.values(), "scenes": SCENES.values()}
    counts = {f"n_{k}": len(v) for k, v in words.items()}
    return (
        {k: ", ".join(v) for k, v in words.items()}
        | counts
        | {
            "n_all": trained + held,
            "n_trained": trained,
            "n_held": held,
        }
    )


def _millions(model) -> float:
    return sum(p.numel() for p in model.parameters()) / 1e6


def _stages(work: Path) -> str:
    """One table row for each stage that has left a state."""
    rows = ""
    for name in ("autoencoder", "denoiser", "decoder"):
        if (work / f"{name}.pt").exists():
            state = load_state(work / f"{name}.pt")
            size = f"{state['step']} x {state['batch']}"
            rows += f"| {name} | {size} | {state['loss']:.4f} | {state['seconds'] / 60:.0f} min |\n"
    return rows
