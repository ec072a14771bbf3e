"""What is run, one after another: each job is a small file once it is finished, and is not run again."""

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.paper.scale import Scale
from trilora.disk import write

PLAIN, PRESERVED, SHRUNK = "plain", "preserved", "weight decay"
OTHERS = "preserved on other captions"
BARE, ELSEWHERE = "no trigger", f"no trigger, {OTHERS}"
FIRST = ("lora", "orthogonal")
REST = ("balanced", "raw", "kaiming", "full", "paper", "diffusers")
PAPER, OWN = ("diffusers", "paper"), ("lora", "balanced")  # as the paper trained them, and as this pack does
PAIRS = (PAPER, OWN)
TABLE_1 = (*PAPER, *OWN)
AFTER = ("lora", "balanced")
LONG = ("lora", "orthogonal", *PAPER, "balanced")
PARTS = ("frontier", "table1", "after", "long", "rest", "extras", "more")


@dataclass(frozen=True)
class Job:
    """One run.

    Attributes:
        kind: `fit`, `after`, `long`, or `table1`.
        method: of `methods.METHODS`; "base" for none.
        seed: of adapter, order and noise.
        rate: learning rate.
        how: what is done to keep the base, or, for `table1`, the data set.
    """

    kind: str
    method: str
    seed: int = 0
    rate: float = 0.0
    how: str = PLAIN

    @property
    def name(self) -> str:
        how = self.how.replace(",", "").replace(" ", "_")
        return f"{self.kind}-{self.method}-{how}-{self.rate:g}-{self.seed}"


class Store:
    """Results in a folder, a file for each job."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def opened(self, scale: Scale) -> "Store":
        """For rows of this size; a folder with rows of another one is refused."""
        path, mine = self.folder / "scale.json", json.loads(json.dumps(asdict(scale)))
        if path.is_file() and json.loads(path.read_text(encoding="utf-8")) != mine:
            raise SystemExit(f"{self.folder} holds rows of another size ({path.name}). Give another folder as --out.")
        write(path, json.dumps(mine, indent=1).encode())
        return self

    def result(self, job: Job) -> dict[str, Any] | None:
        """What a job came to; None if it is not finished."""
        path = self.folder / f"{job.name}.json"
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None

    def put(self, job: Job, result: dict[str, Any]) -> None:
        text = json.dumps({"job": asdict(job), **result}, indent=1)
        write(self.folder / f"{job.name}.json", text.encode())

    def every(self, kind: str) -> list[dict[str, Any]]:
        """All finished jobs of a kind."""
        return [json.loads(path.read_text(encoding="utf-8")) for path in sorted(self.folder.glob(f"{kind}-*.json"))]

    def factors(self, job: Job) -> Path:
        """Where a job's adapter lies."""
        return self.folder / "adapters" / f"{job.name}.safetensors"

    def tuned(self, method: str, scale: Scale) -> list[float]:
        """Rates by their loss on the validation pictures, the best first, of those that are finished."""
        jobs = [Job("fit", method, scale.seeds[0], rate) for rate in scale.rates]
        done = {job.rate: result["validation"] for job in jobs if (result := self.result(job))}
        return sorted(done, key=lambda rate: done[rate])


def plan(scale: Scale, store: Store) -> dict[str, Callable[[], Iterator[Job]]]:
    """The jobs of each part, the most important first; a rate is looked up when it is needed, after its tuning."""

    def frontier(methods: tuple[str, ...]) -> Iterator[Job]:
        for method in methods:
            yield from (Job("fit", method, scale.seeds[0], rate) for rate in scale.rates)
        for seed in scale.seeds:
            for method in methods:
                for rate in store.tuned(method, scale)[: scale.kept_rates]:
                    yield from (Job("fit", method, seed, rate, how) for how in (PLAIN, PRESERVED))

    def table1(methods: tuple[str, ...]) -> Iterator[Job]:
        yield from (Job("table1", "base", how=name) for name in ("creatures", "garments"))
        rates = {"garments": scale.garment_rate, "creatures": scale.creature_rate}
        for seed in scale.paper_seeds:
            for method in methods:
                yield from (Job("table1", method, seed, rate, name) for name, rate in rates.items())

    def after(method: str) -> Iterator[Job]:
        yield from (Job("after", method, seed, store.tuned(method, scale)[0]) for seed in scale.seeds)

    def long() -> Iterator[Job]:
        yield Job("long", "base")
        for seed in scale.long_seeds:
            yield from (Job("long", method, seed, scale.long_rates[0]) for method in LONG)
            yield from (Job("long", LONG[0], seed, rate) for rate in scale.long_rates[1:])

    def more() -> Iterator[Job]:
        yield from after(AFTER[1])
        yield from table1(OWN)

    def extras() -> Iterator[Job]:
        for seed in scale.seeds:
            for how in (OTHERS, ELSEWHERE, SHRUNK):
                yield from (Job("fit", method, seed, store.tuned(method, scale)[0], how) for method in AFTER)
            yield from (Job(kind, AFTER[0], seed, store.tuned(AFTER[0], scale)[0], BARE) for kind in ("fit", "after"))

    return {
        "frontier": lambda: frontier(FIRST), "table1": lambda: table1(PAPER), "after": lambda: after(AFTER[0]),
        "long": long, "rest": lambda: (job for method in REST for job in frontier((method,))), "extras": extras,
        "more": more,
    }  # fmt: skip
