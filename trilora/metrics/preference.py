"""Answers of a blind study counted: which share prefers each method, with a 95 % interval."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import DataError
from .blind import Key

Z = 1.959963984540054  # 95 % of a normal distribution lie within
RESAMPLES, SEED = 10_000, 0
FEW = 10  # participants; below, their spread is hardly known
TIE = "tie"
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Answers:
    """One person's file: page number -> side 0, 1, 2, or "tie"."""

    participant: str
    choices: dict[int, int | str]


@dataclass(frozen=True)
class Share:
    """How often a method was preferred; a tie counts for all its methods alike, so shares add up to 1."""

    method: str
    wins: int
    share: float
    low: float
    high: float


@dataclass(frozen=True)
class Counted:
    """The outcome of a study.

    Attributes:
        shares: best first.
        answers, ties: how many answers there are, and how many of them prefer nothing.
        participants, pages: how many people answered, and how many pages the study has.
        notes: sentences on what these numbers can't tell.
    """

    question: str
    shares: tuple[Share, ...]
    answers: int
    ties: int
    participants: int
    pages: int
    notes: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    def words(self) -> str:
        """A table, and the notes."""
        width = max(len(each.method) for each in self.shares)
        rows = [
            f"{each.method:{width}}  {each.share:8.1%}   {each.low:6.1%} to {each.high:6.1%}  {each.wins:6}"
            for each in self.shares
        ]
        head = f"{'':{width}}  {'share':>8}   {'95 % interval':>16}  {'wins':>6}"
        told = f"{self.answers} answers of {self.participants} people on {self.pages} pages, {self.ties} ties"
        return "\n".join([self.question, told, "", head, *rows, *(f"\n! {each}" for each in self.notes)])


def read_answers(file: Path, key: Key) -> Answers:
    """One person's answers.

    Raises:
        DataError: no answers, of another study, or to pages and sides that this study has not.
    """
    try:
        told = json.loads(file.read_text(encoding="utf-8"))
        study, person = str(told["study"]), str(told["participant"])
        choices = {int(page): choice for page, choice in told["answers"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{file} holds no answers of a study ({error!r}). Give files saved by its page.") from error
    if study != key.study:
        raise DataError(f"{file} answers study {study}, the key is of {key.study}. Take key and answers of one page.")
    sides = range(len(key.methods))
    if not all(0 <= page < len(key.pages) and (c == TIE or c in sides) for page, c in choices.items()):
        raise DataError(f"{file} has an answer that its page does not offer. Ask for the file again, unchanged.")
    return Answers(person, choices)


def count(key: Key, answers: Sequence[Answers]) -> Counted:
    """Shares with intervals: Wilson's for one person, else a bootstrap over people, never narrower than Wilson's.

    Raises:
        DataError: no answer, or one person twice.
    """
    people = [each.participant for each in answers]
    if twice := {person for person in people if people.count(person) > 1}:
        raise DataError(f"Two files are of the same person ({sorted(twice)[0]}). Leave one of them out.")
    answers = [each for each in answers if each.choices]
    if not answers:
        raise DataError("There is no answer to count. Give the files that the study's page saved.")
    votes = np.stack([_votes(key, each) for each in answers])  # (people, methods), a tie shared out
    total = float(votes.sum())
    shares = votes.sum(0) / total
    low, high = _wilson(shares, total)
    if len(answers) > 1:
        spread = _bootstrap(votes)
        low, high = np.minimum(low, spread[0]), np.maximum(high, spread[1])
    wins = [
        sum(_winner(key, page, choice) == m for each in answers for page, choice in each.choices.items())
        for m in key.methods
    ]
    rows = [
        Share(m, w, float(s), float(a), float(b))
        for m, w, s, a, b in zip(key.methods, wins, shares, low, high, strict=True)
    ]
    given = sum(len(each.choices) for each in answers)
    return Counted(
        key.question, tuple(sorted(rows, key=lambda row: -row.share)), given, given - sum(wins), len(answers),
        len(key.pages), tuple(_notes(key, answers)),
    )  # fmt: skip


def _winner(key: Key, page: int, choice: int | str) -> str | None:
    return None if isinstance(choice, str) else key.pages[page][1][choice]


def _votes(key: Key, answers: Answers) -> Floats:
    votes = np.zeros(len(key.methods))
    for page, choice in answers.choices.items():
        winner = _winner(key, page, choice)
        votes += 1 / len(votes) if winner is None else np.array([method == winner for method in key.methods])
    return votes


def _wilson(share: Floats, n: float) -> tuple[Floats, Floats]:
    """Wilson 1927: the shares p with |share - p| <= z sqrt(p (1 - p) / n)."""
    middle = (share + Z * Z / (2 * n)) / (1 + Z * Z / n)
    half = Z / (1 + Z * Z / n) * np.sqrt(share * (1 - share) / n + Z * Z / (4 * n * n))
    return np.clip(middle - half, 0, 1), np.clip(middle + half, 0, 1)


def _bootstrap(votes: Floats) -> tuple[Floats, Floats]:
    """Percentiles of the shares over people drawn with replacement; (people, methods) -> low and high.

    They lie as far out as Student's t for so few people asks (Hesterberg 2015, the expanded percentile interval).
    """
    people, free = len(votes), len(votes) - 1
    t = Z + (Z**3 + Z) / (4 * free) + (5 * Z**5 + 16 * Z**3 + 3 * Z) / (96 * free**2)
    tail = NormalDist().cdf(-t * math.sqrt(people / free))
    picks = np.random.default_rng(SEED).integers(people, size=(RESAMPLES, people))
    sums = votes[picks].sum(1)
    low, high = np.quantile(sums / sums.sum(1, keepdims=True), [tail, 1 - tail], axis=0)
    return low, high


def _notes(key: Key, answers: Sequence[Answers]) -> list[str]:
    notes = []
    if len(answers) < FEW:
        notes.append(f"{len(answers)} people are few: what others would prefer is less sure than the interval says.")
    if open_ := sum(len(each.choices) < len(key.pages) for each in answers):
        notes.append(f"{open_} of {len(answers)} people did not finish; what they answered is counted.")
    return notes
