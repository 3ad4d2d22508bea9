"""The page of duplicates in a real Chromium: what it shows, and that it loads nothing."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from vitrieve.cli.main import main

playwright_api = pytest.importorskip("playwright.sync_api", reason="needs playwright")
expect = playwright_api.expect
HOSTILE = 'a,"b"\'<img src=x onerror=alert(1)>.png'

pytestmark = pytest.mark.browser


def test_the_page_of_duplicates_shows_every_group_and_loads_nothing(page: Any, album: Path, tmp_path: Path) -> None:
    shutil.move(album / "more" / "same_file.png", album / "more" / HOSTILE)
    shutil.copy(album / "1.png", album / "1 again.png")
    html = tmp_path / "page.html"
    assert main(["duplicates", str(album), "--level", "exact", "--html", str(html)]) == 0
    requests: list[str] = []
    page.on("request", lambda request: requests.append(request.url))
    page.goto(html.as_uri())
    expect(page.get_by_role("heading", level=1)).to_have_text("2 groups in 13 pictures")
    groups = page.locator(".group")
    expect(groups.get_by_role("heading")).to_have_text(["3 pictures · exact", "2 pictures · exact"])
    expect(groups.nth(0).locator(".keep")).to_have_text("keep: more/same_pixels.bmp")
    expect(groups.nth(1).locator(".keep")).to_have_text("keep: 1 again.png")
    names = [picture.get_attribute("alt") for picture in page.locator("img").all()]
    assert names == ["more/same_pixels.bmp", "0.png", f"more/{HOSTILE}", "1 again.png", "1.png"]
    assert page.evaluate("[...document.images].every((one) => one.complete && one.naturalWidth > 1)")
    expect(page.get_by_text(f"more/{HOSTILE}", exact=True)).to_be_visible()
    page.get_by_text("1 picture could not be read").click()
    expect(page.get_by_text("broken.jpg")).to_be_visible()
    assert [url for url in requests if not url.startswith("data:")] == [html.as_uri()]


def test_the_page_says_that_there_are_none(page: Any, album: Path, tmp_path: Path) -> None:
    shutil.rmtree(album / "more")
    assert main(["duplicates", str(album), "--level", "exact", "--html", str(tmp_path / "page.html")]) == 0
    page.goto((tmp_path / "page.html").as_uri())
    expect(page.get_by_role("heading", level=1)).to_have_text("0 groups in 9 pictures")
    expect(page.get_by_text("No picture is there twice.")).to_be_visible()
    expect(page.locator("img")).to_have_count(0)
