"""The page of duplicates in a real Chromium: what it shows, and that it loads nothing."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from vitrieve.cli.main import main
from vitrieve.curation.audit import AuditReport, LabelError, OverlappingClasses
from vitrieve.curation.pages import write_audit_page
from vitrieve.data.records import ImageRecord

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


@pytest.fixture
def audit_page(album: Path, tmp_path: Path) -> Path:
    """The page of an audit with eight labels that are contradicted, and twelve pairs of classes that overlap."""
    names = [f"{number}.png" for number in range(8)]
    report = AuditReport(
        name="album",
        num_images=len(names),
        label_errors=tuple(
            LabelError(image_id=name, label="a long name of a class", suggested_label="b", score=0.9, evidence="0.png")
            for name in names
        ),
        duplicates_across_splits=(),
        duplicates_across_classes=(),
        overlapping_classes=tuple(OverlappingClasses(labels=("a", f"b{n}"), overlap=0.5) for n in range(12)),
        odd={},
        unreadable=(),
        threshold=None,
        calibration=None,
        notes=(),
        label_names=("a long name of a class", "b"),
        records={name: ImageRecord(image_id=name, path=album / name, label=0, split="train") for name in names},
    )
    write_audit_page(report, tmp_path / "audit.html")
    return tmp_path / "audit.html"


@pytest.mark.parametrize(("scheme", "width"), [("light", 1200), ("dark", 390)])
def test_everybody_can_work_through_an_audit(page: Any, audit_page: Path, scheme: str, width: int) -> None:
    axe_api = pytest.importorskip("axe_playwright_python.sync_playwright", reason="needs axe-playwright-python")
    page.emulate_media(color_scheme=scheme)
    page.set_viewport_size({"width": width, "height": 800})
    page.goto(audit_page.as_uri())
    results = axe_api.Axe().run(page)
    assert results.violations_count == 0, results.generate_report()
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_the_page_of_an_audit_says_what_its_numbers_are_and_keeps_the_button_in_sight(
    page: Any, audit_page: Path
) -> None:
    page.goto(audit_page.as_uri())
    expect(page.get_by_text("the number is 1 where the other class is sure")).to_be_visible()
    expect(page.locator(".finding .small").first).to_have_text("0.9")
    expect(page.get_by_text("a · b9", exact=True)).to_be_visible()
    expect(page.get_by_text("a · b10", exact=True)).to_be_hidden()
    page.get_by_text("2 more", exact=True).click()
    expect(page.get_by_text("a · b10", exact=True)).to_be_visible()
    page.locator(".finding").last.get_by_label("Decision").select_option("drop")
    expect(page.get_by_role("button", name="Save decisions (1)")).to_be_in_viewport()
