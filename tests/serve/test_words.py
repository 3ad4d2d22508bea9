"""Words over HTTP and on the page."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from html import unescape
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from tests.serve.test_pages import HTML, find_titles
from vitrieve.runtime.encoder import load_encoder
from vitrieve.search.searcher import Searcher
from vitrieve.serve.app import create_app


@pytest.fixture(scope="module")
def speaking(index_folder: Path, aligned_folder: Path) -> Iterator[TestClient]:
    """The service with an encoder that has a text part."""
    searcher = Searcher.open(index_folder, load_encoder(aligned_folder, engine="onnx", num_threads=1))
    with TestClient(create_app(searcher)) as client:
        while client.get("/readyz").status_code == 503:
            time.sleep(0.01)
        yield client


def test_words_as_json_and_as_a_form_find_the_same(speaking: TestClient) -> None:
    found = speaking.post("/search", json={"text": "dark red", "k": 3}).json()
    assert found["ways"] == ["text_encoder", "words"]
    assert len(found["results"]) == 3
    assert speaking.post("/search?k=3", files={"text": (None, "dark red")}).json()["results"] == found["results"]
    examples = [{"text": "dark red"}, {"id": "class1/0.png"}, {"text": "green", "sign": "minus"}]
    mixed = speaking.post("/search", json={"examples": examples, "filter": ["label=Class2"]}).json()
    assert mixed["ways"] == ["pictures", "text_encoder", "words"]
    assert {result["metadata"]["label"] for result in mixed["results"]} == {"Class2"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("red " * 300, "at most 1,000"),
        ("红苹果", "does not know the script"),
        ("a" * 10_000, "at most 1,000"),
    ],
)
def test_texts_that_cannot_be_searched_for_are_refused(text: str, message: str, speaking: TestClient) -> None:
    answer = speaking.post("/search", json={"text": text})
    assert answer.status_code == 422
    assert message in answer.json()["detail"]


def test_words_alone_where_the_encoder_has_no_text_part(client: TestClient) -> None:
    found = client.post("/search", json={"text": "class2", "k": 50}).json()
    assert found["ways"] == ["words"]
    assert {result["metadata"]["label"] for result in found["results"]} == {"Class2"}
    assert client.post("/search?k=50", files={"text": (None, "class2")}).json()["results"] == found["results"]
    page = client.get("/?text=class2").text
    assert len(find_titles(page)) == min(20, len(found["results"]))
    assert "by words ·" in page
    assert set(re.findall(r"the bar goes from ([0-9.]+) to 1", page)) == {"0"}
    filled = [float(width) for width in re.findall(r'class="fill" width="([0-9.]+)"', page)]
    assert filled == [round(100 * one["score"], 1) for one in found["results"][: len(filled)]]
    nothing = client.get("/?text=zebra")
    assert (nothing.status_code, "has one of these words" in nothing.text) == (200, True)
    assert client.post("/search", json={"text": "zebra"}).json()["results"] == []
    refused = client.get("/?text=%2A%2A", headers=HTML)
    assert (refused.status_code, "no word to look for" in refused.text) == (422, True)


def test_the_text_field_comes_first_and_leads_to_results(speaking: TestClient) -> None:
    start = speaking.get("/").text
    assert start.index('type="search"') < start.index('type="file"')
    page = speaking.get("/?text=dark+red").text
    assert len(find_titles(page)) == 20
    assert "“dark red”" in page
    assert "by meaning" in page or "by words and meaning" in page


@pytest.mark.parametrize(
    ("query", "headline"),
    [
        ("text=class2", "Best matches for “class2”"),
        ("text=class2&page=2&k=2", "Best matches for “class2”, page 2"),
        ("text=class2&minus_text=class1", "Best matches for “class2”"),
        ("text=class2&text=class1", "Best matches for these words"),
        ("text=class2&plus=class1%2F0.png", "Most like it"),
        ("plus=class1%2F0.png", "Most like it"),
        ("text=" + "class2+" * 20, f"Best matches for “{('class2 ' * 20)[:59]}…”"),
    ],
)
def test_headline_of_words_says_that_they_match(client: TestClient, query: str, headline: str) -> None:
    assert re.findall(r"<h1[^>]*>([^<]*)</h1>", client.get(f"/?{query}").text) == [headline]


def test_words_are_added_and_taken_away(speaking: TestClient) -> None:
    added = speaking.get("/?text=dark+red&words=green&sign=minus", headers=HTML, follow_redirects=False)
    assert added.headers["location"] == "/?text=dark+red&minus_text=green"
    page = speaking.get(added.headers["location"]).text
    assert len(re.findall(r"<b>less of</b> “green”", page)) == 1
    removed = [unescape(address) for address in re.findall(r'class="chip sign" href="([^"]+)"', page)]
    assert "/?text=dark+red" in removed
    compare = unescape(re.findall(r'href="(/compare[^"]+)"', page)[0])
    assert "more of “dark red”" in speaking.get(compare).text


def test_a_result_of_words_is_shown_beside_them(speaking: TestClient) -> None:
    page = speaking.get("/compare?text=dark+red&image_id=class1%2F0.png").text
    assert "more of “dark red”" in page
    assert "compare/overlay" not in page  # words have no patches
    overlay = speaking.get("/compare/overlay?text=dark+red&image_id=class1%2F0.png")
    assert overlay.status_code == 422


def test_markup_in_words_is_escaped(speaking: TestClient) -> None:
    page = speaking.get("/?text=" + "%3Cb%3Ered%20red%3C/b%3E").text
    assert "<b>red" not in page
