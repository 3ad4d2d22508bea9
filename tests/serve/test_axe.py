"""Every page in a real Chromium: axe finds nothing, in both themes and, in the long tests, three widths."""

from __future__ import annotations

import os

import pytest

from tests.serve.states import STATES, open_state

playwright_api = pytest.importorskip("playwright.sync_api", reason="needs playwright")
axe_api = pytest.importorskip("axe_playwright_python.sync_playwright", reason="needs axe-playwright-python")
Browser = playwright_api.Browser

pytestmark = pytest.mark.browser

WIDTHS = {"phone": 390, "tablet": 820, "desktop": 1280}
if os.environ.get("VITRIEVE_LONG_TESTS") != "1":
    WIDTHS = {"phone": WIDTHS["phone"]}  # each page takes seconds; make test-all has all of them
EVERYTHING = {"resultTypes": ["violations"], "selectors": False}  # what passes is not described: it takes time
COLORS = {**EVERYTHING, "runOnly": ["color-contrast", "link-in-text-block"]}
"""The rules of axe that depend on the colors."""


@pytest.mark.parametrize("width", WIDTHS.values(), ids=WIDTHS)
@pytest.mark.parametrize("name", STATES)
def test_axe_finds_nothing(browser: Browser, services: dict[str, str], name: str, width: int) -> None:
    """In both themes; nothing is wider than the window."""
    with browser.new_context(
        color_scheme="light",
        reduced_motion="reduce",  # or a color would be measured on its way from theme to theme
        viewport={"width": width, "height": 800},
        bypass_csp=True,
    ) as context:
        page = open_state(context, services, name)
        assert page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth") <= 0
        page.evaluate(axe_api.Axe().axe_script)
        for scheme, options in (("light", EVERYTHING), ("dark", COLORS)):
            page.emulate_media(color_scheme=scheme)
            violations = page.evaluate("(options) => axe.run(options)", options)["violations"]
            found = {one["id"]: [node["html"][:200] for node in one["nodes"][:3]] for one in violations}
            assert not found, scheme
