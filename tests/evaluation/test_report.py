from __future__ import annotations

import base64
import dataclasses
import io
import re
import shutil
import subprocess
import xml.etree.ElementTree as ET
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vitrieve.data.records import Dataset, ImageRecord
from vitrieve.embed.collection import EmbedSettings
from vitrieve.evaluation.analysis import MAX_QUERIES, THUMBNAIL_BYTES, THUMBNAIL_PX, encode_thumbnail
from vitrieve.evaluation.run import run_comparison

from .conftest import MakeEncoder

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
VOID = {"meta", "img", "br", "link", "input", "hr"}
MakePage = Callable[..., str]


@pytest.fixture
def make_page(dataset: Dataset, make_encoder: MakeEncoder, tmp_path: Path) -> MakePage:
    def make(*sides: int, protocols: int = 1) -> str:
        encoders = [make_encoder(f"grid-{side}&<u>", side=side) for side in sides]
        datasets = [dataset, dataclasses.replace(dataset, protocol="other", junk_key="artist")][:protocols]
        run_comparison(encoders, datasets, tmp_path / "out", settings=EmbedSettings(num_threads=1))
        return (tmp_path / "out" / "report.html").read_text(encoding="utf-8")

    return make


class Page(HTMLParser):
    """Collects tags, attributes and visible text, and checks that tags are closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("style", "script"):
            self.text += data


@pytest.mark.parametrize("sides", [(2,), (1, 4), (1, 2, 4), (1, 2, 4, 8, 16)])
def test_write_report_shows_every_part_for_any_number_of_encoders(make_page: MakePage, sides: tuple[int, ...]) -> None:
    page = Page(make_page(*sides))
    parts = ["Recall@1", "R-precision", "MAP@R", "Classes, the worst first", "Worst queries", "Random queries"]
    for part in (*parts, "16 queries", "input of 16 px", "principal components"):
        assert part in page.text
    assert all(f"grid-{side}&<u>" in page.text for side in sides)
    assert ("change of MAP@R" in page.text) == (len(sides) > 1)
    assert page.tags.count("svg") == 2 + len(sides)


def test_write_report_marks_right_and_wrong_by_symbol_too(make_page: MakePage) -> None:
    text = make_page(1)
    page = Page(text)
    assert text.count('<li class="right"') == text.count('aria-label="right">✓') > 0
    assert text.count('<li class="wrong"') == text.count('aria-label="wrong">✗') > 0
    assert page.tags.count("li") <= 2 * MAX_QUERIES * 8


def test_write_report_escapes_all_names(make_page: MakePage) -> None:
    page = Page(make_page(1, 4, protocols=2))
    assert page.tags.count("script") == 1  # the page's own
    assert not {"u", "i"} & set(page.tags)
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    assert all(value.startswith("data:image/jpeg") for name, value in page.attributes if name == "src")
    for name in ("<img src=x onerror=alert(1)>", "Crème & 'brûlée'", "Made <i>here</i>.", "<script>alert(2)</script>"):
        assert name in page.text


def test_write_report_asks_nothing_from_elsewhere(make_page: MakePage) -> None:
    text = make_page(1, 4)
    assert "default-src 'none'" in text
    assert not re.findall(r"(?:https?:)?//[a-z]", re.sub(r"base64,[\w+/=]+", "", text))
    links = [value for name, value in Page(text).attributes if name in ("href", "action", "data", "srcset")]
    assert all(link.startswith("#") for link in links)


def test_write_report_has_a_section_for_each_protocol(make_page: MakePage) -> None:
    page = Page(make_page(2, protocols=2))
    assert "colors · all" in page.text
    assert "colors · other" in page.text
    assert "images of the query's own artist are left out" in page.text
    ids = [value for name, value in page.attributes if name == "id"]
    assert [value for name, value in page.attributes if name == "href"] == [f"#{one}" for one in ids]


@pytest.mark.parametrize("sides", [(2,), (1, 4)])
def test_write_report_of_a_ground_truth_lists_queries_and_marks_junk(
    judged: Dataset, make_encoder: MakeEncoder, tmp_path: Path, sides: tuple[int, ...]
) -> None:
    encoders = [make_encoder(f"grid-{side}", side=side) for side in sides]
    run_comparison(encoders, [judged], tmp_path / "out", settings=EmbedSettings(num_threads=1))
    text = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    page = Page(text)
    for part in (
        "Queries, the worst first",
        "mAP",
        "mP@10",
        "P@1",
        "intervals over queries",
        "by trapezoids",
        "2 queries",
    ):
        assert part in page.text
    for part in ("Classes, the worst first", "MAP@R", "Recall@", "A query never finds itself", "nan"):
        assert part not in page.text
    assert text.count('<li class="junk"') == text.count('aria-label="junk">\N{EN DASH}') > 0
    assert text.count('<li class="right"') > 0
    table = text[text.index('<table class="classes') :]
    names = re.findall(r"<tr><td>(.*?)</td>", table[: table.index("</table>")])
    assert sorted(names) == ["0/&lt;b&gt;0&lt;/b&gt;.png", "1/&lt;b&gt;0&lt;/b&gt;.png"]


def test_write_report_draws_well_formed_charts(make_page: MakePage) -> None:
    charts = re.findall(r"<svg.*?</svg>", make_page(1, 4), flags=re.DOTALL)
    assert len(charts) == 4
    for chart in charts:
        root = ET.fromstring(chart)
        assert root.get("role") == "img"
        assert "nan" not in chart


def test_write_report_lists_unreadable_images(dataset: Dataset, make_encoder: MakeEncoder, tmp_path: Path) -> None:
    dataset.records[0].path.write_bytes(b"")
    settings = EmbedSettings(num_threads=1, max_bad_fraction=0.5)
    run_comparison([make_encoder("grid")], [dataset], tmp_path / "out", settings=settings)
    page = Page((tmp_path / "out" / "report.html").read_text(encoding="utf-8"))
    assert "1 image could not be read and is left out" in page.text
    assert "0/<b>0</b>.png" in page.text


def test_write_report_of_a_collapsed_encoder(dataset: Dataset, make_encoder: MakeEncoder, tmp_path: Path) -> None:
    for record in dataset.split("test"):
        Image.new("RGB", (20, 20), (90, 90, 90)).save(record.path)
    (result,) = run_comparison([make_encoder("grid")], [dataset], tmp_path / "out")
    assert set(result.metrics.values()) == {0.0}
    Page((tmp_path / "out" / "report.html").read_text(encoding="utf-8"))


def test_encode_thumbnail_is_small_even_for_noise(tmp_path: Path) -> None:
    path = tmp_path / "noise.png"
    noise = np.random.default_rng(0).integers(0, 256, (300, 200, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    uri = encode_thumbnail(ImageRecord(image_id="noise", path=path, label=0, split="test"))
    data = base64.b64decode(uri.removeprefix("data:image/jpeg;base64,"))
    assert len(data) <= THUMBNAIL_BYTES
    assert Image.open(io.BytesIO(data)).size == (THUMBNAIL_PX, THUMBNAIL_PX)


def test_encode_thumbnail_survives_a_lost_file(tmp_path: Path) -> None:
    assert encode_thumbnail(ImageRecord(image_id="gone", path=tmp_path / "gone.png", label=0, split="test")) == ""


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")
def test_report_sorts_its_classes_in_a_browser(make_page: MakePage, tmp_path: Path) -> None:
    click = "<script>const b = document.querySelectorAll('.classes button'); b[0].click(); b[0].click();</script>"
    page = tmp_path / "page.html"
    page.write_text(make_page(1, 4).replace("</body>", f"{click}</body>"), encoding="utf-8")
    words = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
    words += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
    words += [f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", page.as_uri()]
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True, timeout=60, check=True)
    table = done.stdout[done.stdout.index('<table class="classes') :]
    names = re.findall(r"<tr><td>(.*?)</td>", table[: table.index("</table>")])
    assert names == ["plum", "Crème &amp; 'brûlée'", "apple", "&lt;img src=x onerror=alert(1)&gt;"]
    assert 'aria-sort="descending"><button type="button">class' in table
