"""The words of the drawn world: what a picture can show, its caption, and which combinations are never trained."""

from __future__ import annotations

import itertools
import random
from dataclasses import dataclass

THINGS = ("house", "tree", "boat", "fish", "mushroom", "cat", "balloon", "flower")
COLOURS = {
    "red": (212, 42, 46),
    "yellow": (250, 214, 48),
    "green": (46, 158, 74),
    "blue": (44, 104, 222),
    "purple": (128, 62, 190),
    "pink": (246, 132, 186),
    "white": (247, 246, 243),
}
PLACES = {"left": "on the left", "middle": "in the middle", "right": "on the right"}
SCENES = {
    "meadow": "in a meadow",
    "sea": "on the sea",
    "desert": "in the desert",
    "night": "at night",
    "snow": "in the snow",
}
HELD_OUT_EVERY = 7  # one (thing, colour, place) of seven is never trained


@dataclass(frozen=True)
class SceneSpec:
    """One picture: what it shows, and the seed of everything else (size, shade, scenery)."""

    thing: str
    colour: str
    place: str
    scene: str
    seed: int = 0


def all_triples() -> list[tuple[str, str, str]]:
    """Every (thing, colour, place), in a fixed order."""
    return list(itertools.product(THINGS, COLOURS, PLACES))


def is_held_out(thing: str, colour: str, place: str) -> bool:
    """True for the one triple in seven that the base never sees; every pair of words is still seen."""
    i, j, k = THINGS.index(thing), list(COLOURS).index(colour), list(PLACES).index(place)
    return (3 * i + 2 * j + k) % HELD_OUT_EVERY == 0


def trained_triples() -> list[tuple[str, str, str]]:
    """The triples that training may show."""
    return [t for t in all_triples() if not is_held_out(*t)]


def held_out_triples() -> list[tuple[str, str, str]]:
    """The triples kept for measuring."""
    return [t for t in all_triples() if is_held_out(*t)]


def training_specs(count: int, seed: int = 0) -> list[SceneSpec]:
    """`count` pictures over the trained triples and all scenes, each combination about equally often."""
    return specs_over(trained_triples(), count, seed)


def specs_over(triples: list[tuple[str, str, str]], count: int, seed: int) -> list[SceneSpec]:
    """`count` pictures over the triples and all scenes, in random order, each combination about equally often."""
    combos = [(*t, s) for t in triples for s in SCENES]
    rng = random.Random(seed)
    specs: list[SceneSpec] = []
    while len(specs) < count:
        rng.shuffle(combos)
        specs += [SceneSpec(*c, seed=rng.randrange(2**31)) for c in combos]
    return specs[:count]


def article(word: str) -> str:
    """`an` before a vowel, else `a`."""
    return "an" if word[0] in "aeiou" else "a"


def caption(spec: SceneSpec) -> str:
    """The full caption: `a red house on the left in a meadow`."""
    return f"{article(spec.colour)} {spec.colour} {spec.thing} {PLACES[spec.place]} {SCENES[spec.scene]}"


def varied_caption(spec: SceneSpec, rng: random.Random) -> str:
    """A caption as a person might type it: parts dropped or moved, sometimes an unknown word, sometimes nothing."""
    if rng.random() < 0.10:
        return ""
    text = caption(spec) if rng.random() < 0.75 else _loose_caption(spec, rng)
    if rng.random() < 0.06:
        text = f"{_unknown_word(rng)} {text}"
    return text


def _loose_caption(spec: SceneSpec, rng: random.Random) -> str:
    """Some of the parts, in one of a few orders."""
    colour = spec.colour if rng.random() < 0.85 else ""
    noun = f"{colour} {spec.thing}".strip()
    head = rng.choice([f"{article(noun)} {noun}", noun, f"a picture of {article(noun)} {noun}"])
    parts = [head]
    if rng.random() < 0.7:
        parts.append(PLACES[spec.place])
    if rng.random() < 0.6:
        scene = SCENES[spec.scene]
        parts = [scene + ",", *parts] if rng.random() < 0.3 else [*parts, scene]
    joiner = ", " if rng.random() < 0.2 else " "
    return joiner.join(parts).replace(",,", ",")


def _unknown_word(rng: random.Random) -> str:
    """Four to seven letters that mean nothing, so that the base learns to pass over words it does not know."""
    return "".join(rng.choice("abcdefghijklmnopqrstuvwxyz") for _ in range(rng.randint(4, 7)))
