"""Tables and plots of whatever rows are finished; every number comes from their files."""

import itertools
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.paper.charts import Panel, drawn
from benchmarks.paper.intervals import Point, Ratio, frontier, interval, least, ratio
from benchmarks.paper.jobs import (
    AFTER,
    BARE,
    ELSEWHERE,
    LONG,
    OTHERS,
    PAIRS,
    PLAIN,
    PRESERVED,
    SHRUNK,
    TABLE_1,
    Job,
    Store,
)
from benchmarks.paper.methods import METHODS
from benchmarks.paper.scale import Scale
from trilora.disk import write

BAR = "lora"
LEVELS = (1.5, 1.25, 1.1, 1.05)  # held-out loss over that of tuned LoRA after its last step
HOWS = (PLAIN, PRESERVED, OTHERS, SHRUNK, BARE, ELSEWHERE)
AGAINST = ((PRESERVED, PLAIN), (OTHERS, PLAIN), (SHRUNK, PLAIN), (BARE, PLAIN), (ELSEWHERE, BARE))

MARK = "<!-- tables: run.py --table --page -->"

Row = dict[str, Any]


def report(store: Store, scale: Scale, out: Path, page: Path | None = None) -> None:
    """Print every table there is something for, keep them in tables.md, and draw the plots.

    Args:
        page: a folder whose README.md is to show them too, between its two marks.
    """
    book = Book(store, scale)
    text = "\n\n".join(filter(None, (part() for part in book.parts())))
    print(text)
    write(out / "tables.md", (text + "\n").encode())
    book.plots(out)
    if page:
        whole = (page / "README.md").read_text(encoding="utf-8")
        before, after = whole[: whole.index(MARK) + len(MARK)], whole[whole.rindex(MARK) :]
        write(page / "README.md", f"{before}\n\n{text}\n\n{after}".encode())
        book.plots(page)


class Book:
    """The finished rows, and the tables made of them."""

    def __init__(self, store: Store, scale: Scale) -> None:
        self.store, self.scale = store, scale
        self.fits, self.long_runs = store.every("fit"), store.every("long")
        self.table_rows, self.later = store.every("table1"), store.every("after")

    def parts(self) -> Iterable[Callable[[], str]]:
        return (self.table1, self.ends, self.frontiers, self.best, self.rates, self.dials, self.long)

    # Table 1

    def table1(self) -> str:
        """NFID and CLIP score, as the paper gives them, and the share of saturated values."""
        base = {row["job"]["how"]: row for row in self.table_rows if row["job"]["method"] == "base"}
        names = [name for name in ("garments", "creatures") if name in base]
        if not names:
            return ""
        lines = []
        for method in ("base", *TABLE_1):
            cells = []
            for name in names:
                cells += _quality([*self._by_seed(method, name).values()], base[name])
            if any(cells):
                lines.append([_title(method), *cells])
        head = [f"{name}: {what}" for name in names for what in ("NFID ↓", "CLIP ↑", "saturated %", "seeds")]
        return "### Table 1's protocol\n\n" + _table(["", *head], lines) + "\n\n" + self.paired(names)

    def paired(self, names: Sequence[str]) -> str:
        """TriLoRA over the LoRA of the same width, seed by seed: FID, and the CLIP score's difference."""
        lines = []
        for other, method in PAIRS:
            cells = []
            for name in names:
                own_rows, their_rows = self._by_seed(method, name), self._by_seed(other, name)
                both = [(own_rows[seed], their_rows[seed]) for seed in own_rows if seed in their_rows]
                if not both:
                    cells += ["", ""]
                    continue
                more = interval([own["clip"] - theirs["clip"] for own, theirs in both])
                clip = f"{more.mean:+.1f}" + (f" ± {more.half:.1f}" if more.count > 1 else "")
                cells += [str(ratio([(own["fid"], theirs["fid"]) for own, theirs in both])), clip]
            if any(cells):
                lines.append([f"{_title(method)} against {_title(other)}", *cells])
        head = [f"{name}: {what}" for name in names for what in ("NFID over LoRA's ↓", "CLIP more ↑")]
        return _table(["", *head], lines)

    def _by_seed(self, method: str, name: str) -> dict[int, Row]:
        rows = [row for row in self.table_rows if (row["job"]["method"], row["job"]["how"]) == (method, name)]
        return {row["job"]["seed"]: row for row in rows}

    # the fair comparison

    def tuned(self, method: str, how: str, place: int = 0) -> dict[int, Row]:
        """Seed -> the run at the method's tuned rate, or at the one that came `place` places behind it."""
        rates = self.store.tuned(method, self.scale)
        if place >= len(rates):
            return {}
        jobs = {seed: Job("fit", method, seed, rates[place], how) for seed in self.scale.seeds}
        found = {seed: self.store.result(job) for seed, job in jobs.items()}
        return {seed: row for seed, row in found.items() if row and "failed" not in row}

    def points(self, method: str, how: str, rates: int) -> dict[int, list[Point]]:
        """Seed -> every place of its runs at that many rates, of seeds that have them all."""
        rows = [self.tuned(method, how, place) for place in range(rates)]
        whole = [seed for seed in rows[0] if all(seed in each for each in rows)]
        return {seed: [point for each in rows for point in _points(each[seed])] for seed in whole}

    def ends(self) -> str:
        """Each method after its last step."""
        lines = []
        for how in HOWS:
            for method in METHODS:
                rows = self.tuned(method, how)
                if rows:
                    last = [_at(row, self.scale.steps) for row in rows.values()]
                    first = next(iter(rows.values()))
                    told = [_title(method), how, f"{first['job']['rate']:g}", f"{first['parameters']:,}"]
                    numbers = [str(interval([point[key] for point in last])) for key in ("style", "forgotten")]
                    lines.append([*told, *numbers, str(len(rows))])
        head = ["method", "base", "rate", "parameters", "held-out loss ↓", "forgetting ↓", "seeds"]
        return _table(head, lines, "### After the last step, each method at its tuned rate")

    def bar(self) -> float:
        """The held-out loss of tuned LoRA after its last step."""
        return interval([_at(row, self.scale.steps)["style"] for row in self.tuned(BAR, PLAIN).values()]).mean

    def against(self, method: str, how: str, level: float, other: str = BAR, other_how: str = "") -> Ratio:
        """Least forgetting at equal fit over that of another method, over the seeds that both have.

        Both with the rates that `scale.kept_rates` says; one against itself trained in another way, at its tuned rate.
        """
        rates = 1 if other_how else self.scale.kept_rates
        both = [(self.points(method, how, n), self.points(other, other_how or how, n)) for n in range(rates, 0, -1)]
        own, theirs = max(both, key=lambda pair: len(set(pair[0]) & set(pair[1])))  # as many seeds, then rates, as can
        loss = level * self.bar()
        pairs = [(least(own[seed], loss), least(theirs[seed], loss)) for seed in own if seed in theirs]
        return ratio([(a, b) for a, b in pairs if a is not None and b is not None])

    def frontiers(self) -> str:
        """Forgetting at equal held-out loss over LoRA's."""
        lines = []
        for how in (PLAIN, PRESERVED):
            for method in METHODS:
                if self.tuned(method, how) and self.tuned(BAR, how) and method != BAR:
                    cells = [self.against(method, how, level) for level in LEVELS]
                    lines.append([_title(method), how, *map(str, cells), str(max(c.count for c in cells))])
        for how, other in AGAINST:
            for method in AFTER:
                if self.tuned(method, how) and self.tuned(method, other):
                    cells = [self.against(method, how, level, method, other) for level in LEVELS]
                    told = [f"{_title(method)}, over itself {other}", how]
                    lines.append([*told, *map(str, cells), str(max(c.count for c in cells))])
        head = ["method", "base", *(f"at {level:g} x" for level in LEVELS), "seeds"]
        title = f"### Forgetting at equal fit, over that of {METHODS[BAR].title} trained in the same way"
        title += f"\n\nEqual fit: a held-out loss of so many times {self.bar():.4f}, that of tuned LoRA at its end."
        return _table(head, lines, title)

    def best(self) -> str:
        """In a sentence: whether a method clears the bar."""
        if not self.tuned(BAR, PLAIN):
            return ""
        cleared = []
        for how in (PLAIN, PRESERVED):
            for method in (m for m in METHODS if METHODS[m].method == "trilora"):
                wins = [level for level in LEVELS if self._clears(method, how, level)]
                if wins:
                    cleared.append(f"{_title(method)} ({how}) at {', '.join(f'{w:g} x' for w in wins)}")
        return "Clears every LoRA's frontier by more than its interval: " + ("; ".join(cleared) or "none") + "."

    def _clears(self, method: str, how: str, level: float) -> bool:
        others = [m for m in METHODS if METHODS[m].method == "lora" and self.tuned(m, how)]
        found = [self.against(method, how, level, other) for other in others]
        found = [one for one in found if one.count > 1]
        return bool(found) and all(one.high < 1 for one in found)

    def rates(self) -> str:
        """Every rate that was tried, at the first seed."""
        fits = [row for row in self.fits if row["job"]["how"] == PLAIN and row["job"]["seed"] == self.scale.seeds[0]]
        every = sorted({row["job"]["rate"] for row in fits})
        lines = []
        for method in METHODS:
            rows = {row["job"]["rate"]: row for row in fits if row["job"]["method"] == method}
            cells = [_ending(rows[rate], self.scale) if rate in rows else "–" for rate in every]
            if rows:
                lines.append([_title(method), *cells])
        title = "### Learning rates: held-out loss / forgetting after the last step, first seed"
        return _table(["method", *(f"{rate:g}" for rate in every)], lines, title)

    def dials(self) -> str:
        """What is done to a finished adapter, and what it forgets beside plain strength and early stopping."""
        lines = []
        for method, how in itertools.product(AFTER, (PLAIN, BARE)):
            rows = [row for row in self.later if (row["job"]["method"], row["job"]["how"]) == (method, how)]
            title = _title(method) + ("" if how == PLAIN else f", {how}")
            for dial, value in dict.fromkeys((p["dial"], p["value"]) for row in rows for p in row["points"][1:]):
                lines.append([title, f"{dial} {value:g}", *self._dial(rows, dial, value)])
        head = ["method", "afterwards", "loss over as trained", "forgetting over as trained"]
        head += ["forgetting over plain strength's", "over early stopping's", "seeds"]
        return _table(head, lines, "### After training")

    def _dial(self, rows: Sequence[Row], dial: str, value: float) -> list[str]:
        pairs: dict[str, list[tuple[float, float]]] = {"style": [], "forgotten": [], "strength": [], "stopping": []}
        for row in rows:
            trained = row["points"][0]
            found = [p for p in row["points"] if (p["dial"], p.get("value")) == (dial, value) and "style" in p]
            fit = self.store.result(Job("fit", **{k: row["job"][k] for k in ("method", "seed", "rate", "how")}))
            if not found or not fit:
                continue
            for key in ("style", "forgotten"):
                pairs[key].append((found[0][key], trained[key]))
            for name, chosen in (("strength", _by_strength(fit, self.scale)), ("stopping", _by_stopping(fit))):
                other = least(chosen, found[0]["style"])
                if other is not None:
                    pairs[name].append((found[0]["forgotten"], other))
        return [*(str(ratio(values)) for values in pairs.values()), str(len(pairs["style"]))]

    def long(self) -> str:
        """Very long training: the best held-out loss, the last one, and pictures."""
        base = next((row for row in self.long_runs if row["job"]["method"] == "base"), None)
        lines = []
        for (method, rate), rows in self.long_groups().items():
            lasts = [row["points"][-1] for row in rows]
            bests = [min(row["points"], key=lambda point: point["style"]) for row in rows]
            told = [_title(method), f"{rate:g}", f"{lasts[0]['epoch']:.0f}"]
            told.append(f"{_within(bests, 'style')} at {_mean(best['epoch'] for best in bests):.0f}")
            told += [_within(lasts, key) for key in ("style", "train", "forgotten")]
            shown = list(zip(*([p for p in row["points"] if "fid" in p] for row in rows), strict=True))
            nfid = [f"{_mean(p['fid'] for p in at) / base['fid']:.3f}" for at in shown] if base else ["–"]
            saturated = [f"{100 * _mean(p['saturated'] for p in at):.2f}" for at in shown]
            lines.append([*told, " → ".join(nfid), " → ".join(saturated), str(len(rows))])
        head = ["method", "rate", "epochs", "best held-out loss at epoch", "at the end", "training loss"]
        head += ["forgetting at the end", "NFID early → end", "saturated % early → end", "seeds"]
        return _table(head, lines, "### Very long training on very few pictures")

    def long_groups(self) -> dict[tuple[str, float], list[Row]]:
        """(method, rate) -> its long runs that came to their end, a seed each."""
        groups: dict[tuple[str, float], list[Row]] = {}
        done = [row for row in self.long_runs if "points" in row and "failed" not in row]
        for row in sorted(done, key=lambda row: LONG.index(row["job"]["method"])):
            groups.setdefault((row["job"]["method"], row["job"]["rate"]), []).append(row)
        return groups

    # plots

    def plots(self, out: Path) -> None:
        """The frontiers, the learning rates and the long runs."""
        panels = [self._frontier_panel(how) for how in (PLAIN, PRESERVED)]
        _save([panel for panel in panels if panel.curves], out / "frontier.png")
        _save(self._rate_panels(), out / "rates.png")
        _save(self._long_panels(), out / "long.png")

    def _frontier_panel(self, how: str) -> Panel:
        curves = {}
        for method in METHODS:
            rows = list(self.points(method, how, self.scale.kept_rates).values())
            if rows:
                means = [tuple(_mean(values) for values in zip(*same, strict=True)) for same in zip(*rows, strict=True)]
                curves[_title(method)] = frontier(means)
        return Panel(f"Frontier, {how}", "held-out loss", "forgetting", curves)

    def _rate_panels(self) -> list[Panel]:
        fits = [row for row in self.fits if row["job"]["how"] == PLAIN and row["job"]["seed"] == self.scale.seeds[0]]
        panels = []
        for key, name in (("style", "held-out loss"), ("forgotten", "forgetting")):
            curves: dict[str, list[Point]] = {}
            for row in sorted((r for r in fits if "failed" not in r), key=lambda r: r["job"]["rate"]):
                place = (row["job"]["rate"], _at(row, self.scale.steps)[key])
                curves.setdefault(_title(row["job"]["method"]), []).append(place)
            panels.append(Panel(f"Learning rate: {name}", "learning rate", name, curves, steep=True))
        return panels if fits else []

    def _long_panels(self) -> list[Panel]:
        groups = {f"{_title(method)}, rate {rate:g}": rows for (method, rate), rows in self.long_groups().items()}
        panels = []
        for key, name in (("style", "held-out loss"), ("forgotten", "forgetting")):
            curves = {title: _mean_curve(rows, key) for title, rows in groups.items()}
            panels.append(Panel(f"Long training: {name}", "epochs", name, curves, steep=True))
        return panels if groups else []


def _quality(rows: Sequence[Row], base: Row) -> list[str]:
    if not rows:
        return [""] * 4
    nfid, clip = (interval([f(r) for r in rows]) for f in (lambda r: r["fid"] / base["fid"], lambda r: r["clip"]))
    saturated = interval([100 * row["saturated"] for row in rows])
    cut = [
        f"{one.mean:.{n}f}" + (f" ± {one.half:.{n}f}" if one.count > 1 else "")
        for one, n in ((clip, 1), (saturated, 2))
    ]
    return [str(nfid), *cut, str(len(rows))]


def _title(method: str) -> str:
    return METHODS[method].title if method in METHODS else "base"


def _mean_curve(rows: Sequence[Row], key: str) -> list[Point]:
    return [(same[0]["epoch"], _mean(p[key] for p in same)) for same in zip(*(r["points"] for r in rows), strict=True)]


def _within(points: Sequence[Row], key: str) -> str:
    """The mean of one of their numbers with its interval, in four digits."""
    found = interval([point[key] for point in points])
    return f"{found.mean:.4f}" + (f" ± {found.half:.4f}" if found.count > 1 else "")


def _ending(row: Row, scale: Scale) -> str:
    last = row["points"][-1] if "failed" in row else _at(row, scale.steps)
    return f"{last['style']:.4f} / {last['forgotten']:.4f}" if "failed" not in row else "no number any more"


def _at(row: Row, step: int) -> Row:
    return next(p for p in row["points"] if p["step"] == step and p["strength"] == 1)


def _points(row: Row) -> list[Point]:
    return [(p["style"], p["forgotten"]) for p in row["points"]]


def _by_strength(row: Row, scale: Scale) -> list[Point]:
    return [(p["style"], p["forgotten"]) for p in row["points"] if p["step"] == scale.steps]


def _by_stopping(row: Row) -> list[Point]:
    return [(p["style"], p["forgotten"]) for p in row["points"] if p["strength"] == 1]


def _mean(values: Iterable[float]) -> float:
    return interval(list(values)).mean


def _table(head: Sequence[str], lines: Sequence[Sequence[str]], title: str = "") -> str:
    if not lines:
        return ""
    rows = [head, ["---"] * len(head), *lines]
    return (f"{title}\n\n" if title else "") + "\n".join("| " + " | ".join(row) + " |" for row in rows)


def _save(panels: Sequence[Panel], path: Path) -> None:
    if panels:
        drawn(panels).save(path, optimize=True)
