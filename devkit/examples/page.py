"""The front end, which alone turns ComfyUI's API form into what it shows: opened in Chromium, with a layout of ours."""

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from playwright.sync_api import Page, sync_playwright

from devkit.browser import FLAGS, find
from devkit.server import Server

from . import Example

READY = "window.app && window.app.graph && window.app.extensionManager && document.querySelector('canvas')"
LAYOUT = (Path(__file__).parent / "layout.js").read_text(encoding="utf-8")
SIZES = {  # least width and height, in either renderer and after a run; the page's own counts where it is larger
    "MarkdownNote": (320, 330),
    "CheckpointLoaderSimple": (0, 158),
    "CLIPTextEncode": (300, 110),
    "EmptyLatentImage": (0, 118),
    "KSampler": (0, 262),
    "PairConditioningSetProperties": (0, 194),
    "PreviewAny": (300, 160),
    "PreviewImage": (380, 420),
    "SaveImage": (320, 340),
    "VAEDecode": (0, 54),
    "TriLoRAApply": (0, 138),
    "TriLoRACompare": (560, 960),
    "TriLoRADataset": (320, 840),
    "TriLoRADemoModel": (0, 126),
    "TriLoRADemoPictures": (0, 218),
    "TriLoRAEvaluate": (340, 300),
    "TriLoRALoad": (320, 420),
    "TriLoRAMerge": (0, 300),
    "TriLoRARepair": (360, 1100),
    "TriLoRASave": (0, 142),
    "TriLoRASchedule": (320, 460),
    "TriLoRASpectrum": (420, 330),
    "TriLoRAStrength": (320, 500),
    "TriLoRATrain": (360, 1040),
}


@contextmanager
def opened(server: Server, width: int = 1900, height: int = 1050) -> Iterator[Page]:
    """ComfyUI's page, ready for work."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find(), args=FLAGS)
        page = browser.new_page(viewport={"width": width, "height": height})
        page.goto(server.url)
        page.wait_for_function(READY, timeout=120_000)
        page.wait_for_timeout(3000)
        yield page
        browser.close()


def converted(page: Page, name: str, example: Example) -> dict[str, Any]:
    """The workflow as the page saves it, laid out."""
    groups = [
        {"title": group.title, "columns": [[placed(example, one) for one in column] for column in group.columns]}
        for group in example.groups
    ]
    given = {"prompt": example.prompt(), "name": name, "groups": groups, "sizes": SIZES}
    workflow = page.evaluate(LAYOUT, given)
    return {**workflow, "id": str(uuid.uuid5(uuid.NAMESPACE_URL, name)), "revision": 0, "extra": {}}


def placed(example: Example, name: str) -> dict[str, Any]:
    """A node's number, or a note's text."""
    return {"note": example.notes[name]} if name in example.notes else {"id": int(example.numbers[name])}
