"""The browser that ComfyUI's page is tested in."""

import shutil

from devkit import DevError

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
)  # fmt: skip
"""It runs in containers, without a graphics card, and calls nobody."""


def find() -> str:
    """The path of a Chromium.

    Raises:
        DevError: there is none.
    """
    for name in NAMES:
        if path := shutil.which(name):
            return path
    raise DevError(
        "No Chromium, in which the page is tested. Install it and run the same command again. On Debian: apt-get "
        "install chromium; elsewhere Google Chrome does as well."
    )
