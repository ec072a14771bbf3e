"""Pictures against real ones and against their prompts: FID, NFID and CLIP score in one pass over each set."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..errors import DataError
from .extractors import Extractor
from .frechet import Moments, frechet, nfid, warning
from .similarity import clip_score


@dataclass(frozen=True)
class Evaluation:
    """What was measured; None where what it needs was not given.

    Attributes:
        extractor: the network whose features were compared.
        generated, real, base: how many pictures there were.
        fid: distance of the generated from the real pictures; base_fid: of the base's from the real ones.
        nfid: fid / base_fid.
        clip_score: 0 to 100, how well the generated pictures fit their prompts; base_clip_score: the base's.
        warnings: sentences on what these numbers can't tell.
    """

    extractor: str
    generated: int
    real: int
    base: int
    fid: float
    base_fid: float | None
    nfid: float | None
    clip_score: float | None
    base_clip_score: float | None
    warnings: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    def words(self) -> str:
        """The numbers as a table, and the warnings."""
        lines = [
            f"{self.generated} generated, {self.real} real, {self.base} base pictures, seen by {self.extractor}",
            "",
            f"{'':12}{'NFID':>10}{'FID':>12}{'CLIP score':>12}",
            _row("generated", self.nfid, self.fid, self.clip_score),
        ]
        if self.base_fid is not None:
            lines.append(_row("base", 1.0, self.base_fid, self.base_clip_score))
        return "\n".join([*lines, *(f"\n! {each}" for each in self.warnings)])


def evaluate(
    extractor: Extractor,
    generated: Iterable[Tensor],
    real: Iterable[Tensor],
    base: Iterable[Tensor] | None = None,
    prompts: Sequence[str] | None = None,
) -> Evaluation:
    """All numbers that the given pictures allow.

    Args:
        extractor: looks at the pictures, and reads the prompts if it can.
        generated, real, base: batches (n, height, width, 3) in 0..1, each used once; sizes may differ between batches.
        prompts: one for each generated picture, in the same order, or one for them all. The base's pictures are
            scored by them too where they are as many.

    Raises:
        DataError: a set without or with a single picture, or prompts that don't fit the pictures.
    """
    made, made_features = _look(extractor, generated, "generated")
    wanted, _ = _look(extractor, real, "real")
    score = _score(extractor, made_features, prompts)
    fid = frechet(made, wanted)
    found = Evaluation(extractor.name, made.count, wanted.count, 0, fid, None, None, score, None, ())
    sets = {"generated": made, "real": wanted}
    if base is not None:
        plain, plain_features = _look(extractor, base, "base")
        base_fid = frechet(plain, wanted)
        alike = plain.count == made.count or (prompts is not None and len(prompts) == 1)
        base_score = _score(extractor, plain_features, prompts) if alike else None
        ratio = nfid(fid, base_fid)
        found = replace(found, base=plain.count, base_fid=base_fid, nfid=ratio, base_clip_score=base_score)
        sets["base"] = plain
    return replace(found, warnings=tuple(_warnings(extractor, sets, prompts)))


def _look(extractor: Extractor, batches: Iterable[Tensor], kind: str) -> tuple[Moments, Tensor]:
    """Moments and features of a set of pictures."""
    moments, features = Moments(), []
    for batch in batches:
        if len(batch):
            features.append(extractor.pictures(batch))
            moments.add(features[-1])
    if moments.count < 2:
        raise DataError(
            f"{moments.count} {kind} picture{'s' if moments.count != 1 else ''} can't be compared: FID needs a spread. "
            f"Give at least 2 {kind} pictures; below some hundreds FID is rough."
        )
    return moments, torch.cat(features)


def _score(extractor: Extractor, features: Tensor, prompts: Sequence[str] | None) -> float | None:
    """CLIP score of a set, or None where nothing can be said."""
    if not prompts or extractor.texts is None:
        return None
    if len(prompts) not in (1, len(features)):
        raise DataError(
            f"{len(prompts)} prompts came with {len(features)} pictures, so pairs can't be told. Give one prompt for "
            "each generated picture, in the same order, or a single one for them all."
        )
    return clip_score(features, extractor.texts(prompts).expand(len(features), -1))


def _warnings(extractor: Extractor, sets: Mapping[str, Moments], prompts: Sequence[str] | None) -> Iterator[str]:
    for kind, moments in sets.items():
        if said := warning(moments):
            yield f"{kind}: {said}"
    if "base" in sets and sets["base"].count != sets["generated"].count:
        yield (
            f"{sets['generated'].count} generated but {sets['base'].count} base pictures: FID falls with their number, "
            "so NFID favours the larger set. Make as many of each, with the same prompts."
        )
    if prompts and extractor.texts is None:
        yield f"{extractor.name} can't read, so there is no CLIP score. Choose an extractor with a text side."


def _row(name: str, *numbers: float | None) -> str:
    cells = ["-" if number is None else f"{number:.4g}" for number in numbers]
    return f"{name:12}{cells[0]:>10}{cells[1]:>12}{cells[2]:>12}"
