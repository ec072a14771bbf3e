"""The pack's extension in ComfyUI's page."""

import pytest
from comfy_page import ComfyPage

pytestmark = [pytest.mark.server, pytest.mark.browser]


def test_the_page_opens_with_the_pack_and_without_an_error(page: ComfyPage) -> None:
    page.screenshot("page")
    assert page.run("() => app.extensions.some((each) => each.name === 'trilora')")
