"""The pictures of the experiment: the user's folders, or drawn ones, made on demand and the same each time."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from PIL.Image import Image

from benchmarks.paper import creatures, garments
from demo import draw as world_drawn
from demo.world import SCENES, SceneSpec, caption, held_out_triples
from trilora.dataset import Dataset
from trilora.pictures import read_folder

COUNTS = {"creatures": 60, "garments": 52, "flat lays": 160, "plain": 24}


@dataclass(frozen=True)
class Folders:
    """Where each set of pictures lies; None for the drawn one.

    Attributes:
        creatures: the set with many subjects (the paper: 736 pictures and captions).
        garments: the small set of flat lays (the paper: 52).
        flat_lays: more than the small set of its kind, to specialise the base with (the paper: over 1000).
        plain: pictures and captions of what the base can do and nothing here trains: forgetting is measured on them.
    """

    creatures: Path | None = None
    garments: Path | None = None
    flat_lays: Path | None = None
    plain: Path | None = None


def dataset(folders: Folders, name: str, out: Path, side: int, trigger: str = "") -> Dataset:
    """A set as squares of `side` pixels; a drawn one is written below `out` first."""
    folder = getattr(folders, name.replace(" ", "_")) or drawn(name, out / "drawn" / name.replace(" ", "_"))
    return Dataset(read_folder(folder), trigger, side, 0)


def drawn(name: str, folder: Path) -> Path:
    """A drawn set as name.png and name.txt, made if it is not there yet."""
    if len(list(folder.glob("*.txt"))) < COUNTS[name]:
        folder.mkdir(parents=True, exist_ok=True)
        for i, (picture, text) in enumerate(_made(name, COUNTS[name])):
            picture.save(folder / f"{i:03d}.png")
            (folder / f"{i:03d}.txt").write_text(text + "\n", encoding="utf-8")
    return folder


def _made(name: str, count: int) -> Iterable[tuple[Image, str]]:
    if name == "creatures":
        return ((creatures.draw(one), creatures.caption(one)) for one in creatures.creatures(count, 1))
    if name == "plain":
        triples, scenes = held_out_triples(), list(SCENES)
        specs = [SceneSpec(*triples[i % len(triples)], scenes[i % len(scenes)], i) for i in range(count)]
        return ((world_drawn.draw(spec), caption(spec)) for spec in specs)
    house = name == "garments"
    return ((garments.draw(one), garments.caption(one)) for one in garments.garments(count, 1 if house else 2, house))
