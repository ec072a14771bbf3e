"""A blind study from folders to a share: made, answered in a real Chromium, saved, counted."""

import argparse
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from PIL import Image
from playwright.sync_api import Browser, Page

from trilora.headless import study

COLOURS = {"plainlora": (212, 42, 46), "tridelta": (44, 104, 222), "barebase": (46, 158, 74)}
PAGES = 5


@pytest.fixture
def window(browser: Browser) -> Iterator[Page]:
    """A page of a fresh browser profile; an error in its script fails the test."""
    page = browser.new_context(accept_downloads=True, viewport={"width": 1280, "height": 860}).new_page()
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    yield page
    page.context.close()
    assert errors == []


@pytest.fixture
def trilora(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """`trilora("count", ...)`: what `python -m trilora study count ...` prints."""

    def run(*words: object) -> str:
        parser = argparse.ArgumentParser()
        study.arguments(parser)
        capsys.readouterr()
        study.run(parser.parse_args([str(word) for word in words]))
        return capsys.readouterr().out

    return run


@pytest.fixture
def made(tmp_path: Path, trilora: Callable[..., str]) -> Callable[..., Path]:
    """A study's page of two or three methods, each a colour of its own."""

    def make(count: int = 2) -> Path:
        for method in list(COLOURS)[:count]:
            (tmp_path / method).mkdir()
            for number in range(PAGES):
                picture = Image.new("RGB", (96, 96), COLOURS[method])
                picture.paste("white", (8 + 12 * number, 40, 20 + 12 * number, 56))
                picture.save(tmp_path / method / f"fox_{number}.png")
        folders = [tmp_path / method for method in list(COLOURS)[:count]]
        (tmp_path / "plainlora" / "fox_0.txt").write_text("a fox at dawn", encoding="utf-8")
        more = ["--question", "Which <b> is closer?", "--seed", 5, "--show-prompts"]
        trilora("make", *folders, "--out", tmp_path / "study.html", *more)
        return tmp_path / "study.html"

    return make


def colour(page: Page, side: int) -> tuple[int, ...]:
    """A corner's colour of the picture that is really shown on a side."""
    script = """(picture) => { const c = document.createElement("canvas").getContext("2d");
                c.drawImage(picture, 0, 0); return [...c.getImageData(2, 2, 1, 1).data].slice(0, 3) }"""
    page.wait_for_function("n => document.querySelectorAll('#choices img')[n]?.complete", arg=side)
    return tuple(page.locator("#choices img").nth(side).evaluate(script))


def side_of(page: Page, method: str) -> int:
    return [colour(page, n) for n in range(page.locator("#choices img").count())].index(COLOURS[method])


def saved(page: Page, folder: Path) -> Path:
    with page.expect_download() as download:
        page.get_by_role("button", name="Save answers").click()
    file = folder / download.value.suggested_filename
    download.value.save_as(file)
    return file


def test_a_study_is_answered_by_mouse_and_keyboard_and_counted(
    window: Page, made: Callable[..., Path], trilora: Callable[..., str], tmp_path: Path
) -> None:
    """Three pages for one method by click, key and keyboard focus; a tie; and one for the other method."""
    window.goto(made().as_uri())
    assert window.locator("h1").first.inner_text() == "Which <b> is closer?"
    window.locator("#choices button").nth(side_of(window, "tridelta")).click()
    assert "2 of 5" in window.locator("#place").inner_text()
    window.keyboard.press(str(side_of(window, "tridelta") + 1))
    window.locator("#choices button").nth(side_of(window, "tridelta")).focus()
    window.keyboard.press("Enter")
    window.keyboard.press("0")
    window.locator("#choices button").nth(side_of(window, "plainlora")).click()
    (tmp_path / "answers").mkdir()
    file = saved(window, tmp_path / "answers")
    out = json.loads(trilora("count", tmp_path / "study.key.json", file, "--json"))
    assert [(each["method"], each["wins"]) for each in out["shares"]] == [("tridelta", 3), ("plainlora", 1)]
    assert out["shares"][0]["share"] == pytest.approx(0.7)
    assert (out["answers"], out["ties"]) == (5, 1)
    assert "tridelta" in trilora("count", tmp_path / "study.key.json", tmp_path / "answers")


def test_nothing_on_the_page_or_in_its_source_tells_the_method(window: Page, made: Callable[..., Path]) -> None:
    page = made(3)
    window.goto(page.as_uri())
    assert window.locator("#choices img").count() == 3
    seen = window.content() + page.read_text(encoding="utf-8") + window.title()
    assert not [word for word in (*COLOURS, "fox_", str(page.parent)) if word in seen]


def test_a_prompt_is_shown_with_its_pictures_alone(window: Page, made: Callable[..., Path]) -> None:
    window.goto(made().as_uri())
    shown = []
    for _ in range(PAGES):
        shown.append(window.locator("#prompt").inner_text() if window.locator("#prompt").is_visible() else "")
        window.keyboard.press("1")
    assert sorted(shown) == [""] * (PAGES - 1) + ["a fox at dawn"]


def test_answers_outlast_a_reload_and_can_be_changed(window: Page, made: Callable[..., Path], tmp_path: Path) -> None:
    window.goto(made().as_uri())
    window.keyboard.press("1")
    window.keyboard.press("2")
    window.reload()
    assert "3 of 5" in window.locator("#place").inner_text()
    window.keyboard.press("ArrowLeft")
    assert window.locator("#choices button").nth(1).get_attribute("aria-pressed") == "true"
    window.keyboard.press("1")
    for key in "121":
        window.keyboard.press(key)
    answers = json.loads(saved(window, tmp_path).read_text(encoding="utf-8"))
    assert answers["answers"] == {"0": 0, "1": 0, "2": 0, "3": 1, "4": 0}


def test_a_page_can_not_be_passed_over_and_other_keys_do_nothing(window: Page, made: Callable[..., Path]) -> None:
    window.goto(made().as_uri())
    for key in ("ArrowRight", "3", "9", "x", "Control+1"):
        window.keyboard.press(key)
    assert "1 of 5" in window.locator("#place").inner_text()
    assert window.get_by_role("button", name="Next").is_disabled()


@pytest.mark.parametrize("size", [(1280, 860), (390, 800)])
def test_all_pictures_and_buttons_fit_the_window(
    window: Page, made: Callable[..., Path], size: tuple[int, int]
) -> None:
    """On a desk without scrolling; on a phone nothing sticks out at the side."""
    window.set_viewport_size({"width": size[0], "height": size[1]})
    window.goto(made().as_uri())
    colour(window, 1)
    wide, high = window.evaluate("[document.documentElement.scrollWidth, document.documentElement.scrollHeight]")
    assert wide <= size[0]
    assert size[0] < 500 or high <= size[1]
