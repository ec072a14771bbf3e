"""ComfyUI's page in a real Chromium, against the real server with the pack in it."""

import uuid
from collections.abc import Callable, Iterator

import pytest
from comfy_page import ComfyPage
from playwright.sync_api import Browser, BrowserContext, sync_playwright

from devkit import DevError
from devkit.browser import FLAGS, find
from devkit.server import Server


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Chromium. One a module: while Playwright runs, nothing else in this thread can have an event loop."""
    try:
        path = find()
    except DevError as error:
        pytest.fail(str(error))
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def context(browser: Browser, comfy_server: Server) -> Iterator[BrowserContext]:
    """Tabs of one module share their cache, which is most of what a page takes to load."""
    with browser.new_context(viewport={"width": 1300, "height": 1000}) as context:
        yield context


@pytest.fixture
def open_page(context: BrowserContext, comfy_server: Server) -> Iterator[Callable[[], ComfyPage]]:
    """Opens tabs with the same workflow; any console error in any of them fails the test."""
    opened: list[ComfyPage] = []
    workflow = str(uuid.uuid4())
    with context.new_page() as blank:
        blank.goto(f"{comfy_server.url}/system_stats")
        blank.evaluate("() => localStorage.clear()")  # else the tab of the test before comes back

    def open_one() -> ComfyPage:
        opened.append(ComfyPage(context.new_page(), comfy_server, workflow))
        return opened[-1].open()

    yield open_one
    for each in opened:
        each.page.close()
    errors = [error for each in opened for error in each.errors]
    assert not errors, "\n".join(errors)


@pytest.fixture
def page(open_page: Callable[[], ComfyPage]) -> ComfyPage:
    """One tab."""
    return open_page()
