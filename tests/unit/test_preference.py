"""Blind studies: fair orders, nothing that tells, and a count that is right."""

import base64
import io
import json
import math
import random
import re
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from trilora.errors import DataError
from trilora.metrics.blind import Key, draw_key, page, pair
from trilora.metrics.preference import Answers, count, read_answers

NAMES = [f"p{number}" for number in range(12)]


def key(names: list[str] = NAMES, methods: tuple[str, ...] = ("ours", "theirs")) -> Key:
    return draw_key(names, methods, "Which?", seed=3)


def preferring(key: Key, method: str, pages: range, person: str = "a") -> Answers:
    return Answers(person, {number: key.pages[number][1].index(method) for number in pages})


def folder(root: Path, name: str, pictures: list[str], colour: str = "red") -> Path:
    (root / name).mkdir()
    for picture in pictures:
        told = PngInfo()
        told.add_text("prompt", f"made with {name}")
        Image.new("RGB", (40, 20), colour).save(root / name / f"{picture}.png", pnginfo=told)
    return root / name


@settings(deadline=None)
@given(st.integers(1, 40), st.sampled_from([2, 3]), st.integers(0, 999))
def test_every_order_of_the_sides_comes_up_alike(pages: int, methods: int, seed: int) -> None:
    made = draw_key([str(n) for n in range(pages)], [f"m{n}" for n in range(methods)], "?", seed)
    assert sorted(name for name, _ in made.pages) == sorted(str(n) for n in range(pages))
    orders = Counter(sides for _, sides in made.pages)
    assert max(orders.values()) - (min(orders.values()) if len(orders) == math.factorial(methods) else 0) <= 1
    assert draw_key([str(n) for n in range(pages)], [f"m{n}" for n in range(methods)], "?", seed) == made


def test_another_seed_is_another_order_and_another_study() -> None:
    one, other = draw_key(NAMES, ["a", "b"], "?", 1), draw_key(NAMES, ["a", "b"], "?", 2)
    assert one.pages != other.pages
    assert one.study != other.study


def test_a_key_comes_back_from_its_file() -> None:
    assert Key.from_json(key().to_json()) == key()
    with pytest.raises(DataError, match="no key of a study"):
        Key.from_json('{"study": "x"}')


def test_the_page_names_no_method_and_no_file(tmp_path: Path) -> None:
    pictures = pair({name: folder(tmp_path, name, ["fox_in_snow"]) for name in ("zorvexlora", "tridelta")})
    text = page(draw_key(list(pictures), ["zorvexlora", "tridelta"], "Which </script> is it?", 0), pictures, 16)
    assert not [word for word in ("zorvexlora", "tridelta", "fox", "made with", str(tmp_path)) if word in text]
    assert text.count("</script>") == 1
    assert text.count("data:image/png;base64,") == 2


def test_the_page_shows_a_picture_of_16_bits_as_it_is(tmp_path: Path) -> None:
    """Pillow alone makes white of whatever is not almost black in it."""
    (tmp_path / "a").mkdir()
    Image.new("I;16", (20, 20), 65535 // 4).save(tmp_path / "a" / "p.png")
    pictures = pair({"a": tmp_path / "a", "b": folder(tmp_path, "b", ["p"])})
    shown = re.findall(r"base64,([\w+/=]+)", page(key(["p"], ("a", "b")), pictures, 768))
    colours = {Image.open(io.BytesIO(base64.b64decode(each))).getpixel((5, 5)) for each in shown}
    assert colours == {(64, 64, 64), (255, 0, 0)}


def test_pictures_without_their_like_are_named(tmp_path: Path) -> None:
    a, b = folder(tmp_path, "a", ["1", "2"]), folder(tmp_path, "b", ["1", "3"])
    with pytest.raises(DataError, match="a has no picture named 3"):
        pair({"a": a, "b": b})
    with pytest.raises(DataError, match="two or three"):
        pair({"a": a})


def test_one_persons_interval_is_wilsons() -> None:
    """8 of 10: 0.490 to 0.943 (Wilson 1927, as in every table of it)."""
    made = key()
    choices = preferring(made, "ours", range(8)).choices | preferring(made, "theirs", range(8, 10)).choices
    found = count(made, [Answers("a", choices)])
    best = found.shares[0]
    assert (best.method, best.wins, best.share) == ("ours", 8, 0.8)
    assert (best.low, best.high) == (pytest.approx(0.4902, abs=1e-4), pytest.approx(0.9433, abs=1e-4))
    assert found.notes


def test_ties_count_for_all_alike_and_shares_add_up_to_1() -> None:
    made = key(methods=("a", "b", "c"))
    choices = preferring(made, "b", range(6)).choices | dict.fromkeys(range(6, 12), "tie")
    found = count(made, [Answers("x", choices)])
    assert {each.method: each.share for each in found.shares} == pytest.approx({"b": 4 / 6, "a": 1 / 6, "c": 1 / 6})
    assert (found.answers, found.ties) == (12, 6)


def test_people_who_disagree_widen_the_interval() -> None:
    made = key([str(n) for n in range(100)])

    def shares(each: list[int]) -> float:
        people = [
            Answers(
                f"p{n}", preferring(made, "ours", range(k)).choices | preferring(made, "theirs", range(k, 100)).choices
            )
            for n, k in enumerate(each)
        ]
        found = count(made, people).shares[0]
        assert found.low <= found.share <= found.high
        return found.high - found.low

    alike, apart = shares([60] * 12), shares([20, 100] * 6)
    assert apart > 3 * alike


def test_the_bootstrap_covers_what_the_people_prefer() -> None:
    """60 studies of 12 people, each with a taste of their own around 60 %: nine in ten intervals hold 60 %."""
    made, rng, inside = key([str(n) for n in range(30)]), random.Random(5), 0
    for _ in range(60):
        people = []
        for person in range(12):
            taste = rng.betavariate(6, 4)
            chosen = {
                page: sides.index("ours" if rng.random() < taste else "theirs")
                for page, (_, sides) in enumerate(made.pages)
            }
            people.append(Answers(str(person), chosen))
        ours = next(each for each in count(made, people).shares if each.method == "ours")
        inside += ours.low <= 0.6 <= ours.high
    assert inside >= 53


def test_answers_of_another_study_or_of_one_person_twice_are_refused(tmp_path: Path) -> None:
    made, file = key(), tmp_path / "answers.json"
    file.write_text(json.dumps({"study": made.study, "participant": "a", "answers": {"0": 1, "1": "tie"}}))
    one = read_answers(file, made)
    assert one == Answers("a", {0: 1, 1: "tie"})
    with pytest.raises(DataError, match="same person"):
        count(made, [one, one])
    with pytest.raises(DataError, match="Take key and answers of one page"):
        read_answers(file, draw_key(NAMES, ["ours", "theirs"], "Which?", seed=4))
    file.write_text(json.dumps({"study": made.study, "participant": "a", "answers": {"0": 2}}))
    with pytest.raises(DataError, match="does not offer"):
        read_answers(file, made)
