from __future__ import annotations

import dataclasses
import os
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vitrieve.data.records import ImageRecord
from vitrieve.embed.embeddings import Embeddings
from vitrieve.index.filter import parse_filter
from vitrieve.index.open import build_index
from vitrieve.index.store import VectorStore
from vitrieve.search.request import Example, SearchAnswer, SearchRequest, SearchResult
from vitrieve.serve.views import THUMBNAIL_PX, build_thumbnail, render_search_page, write_search_page

EVIL = "<script>alert('x')</script>"


@pytest.fixture
def store(tmp_path: Path) -> VectorStore:
    embeddings = Embeddings(
        vectors=np.ones((1, 1), dtype=np.float32),
        records=(ImageRecord(image_id="a", path=tmp_path / "a.png", label=0, split="test"),),
        failures=(),
        fingerprint="f" * 64,
        encoder_source="/somewhere/private/demo-run",
        image_size=112,
        license=f"CC BY 4.0, somebody {EVIL}",
    )
    return build_index(embeddings, tmp_path / "index", store="exact")


def make_result(path: Path, **metadata: str) -> SearchResult:
    return SearchResult(image_id=f"folder/{path.name}", score=0.875, path=path, metadata=metadata)


def ask(path: Path, results: list[SearchResult], **settings: object) -> list[tuple[SearchRequest, SearchAnswer]]:
    answer = {name: settings.pop(name) for name in ("is_match", "threshold") if name in settings}
    request = SearchRequest(plus=(Example(picture=path),), **settings)  # type: ignore[arg-type]
    return [(request, SearchAnswer(results=tuple(results), **answer))]  # type: ignore[arg-type]


def test_page_is_self_contained_and_complete(store: VectorStore, picture_folder: Path) -> None:
    results = [make_result(picture_folder / f"0{n}.png", label=f"class {n}", artist="A") for n in range(3)]
    page = render_search_page(ask(picture_folder / "00.png", results), store=store)
    sources = re.findall(r'src="([^"]{0,30})', page)
    assert len(sources) == 4
    assert all(source.startswith("data:image/jpeg;base64,") for source in sources)
    (policy,) = re.findall(r'<meta http-equiv="Content-Security-Policy" content="([^"]*)">', page)
    assert policy == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    assert page.index(policy) < page.index("<style>"), "a policy holds for what follows it"
    assert "http" not in page.replace("http-equiv", "")
    assert "url(" not in page
    assert "<script" not in page
    for text in ("class 2", "folder/02.png", "artist: A", "0.875", "demo-run", "112 px", "CC BY 4.0, somebody"):
        assert text in page
    assert "private" not in page


def test_page_escapes_every_text(store: VectorStore, picture_folder: Path) -> None:
    path = picture_folder / f"{EVIL.replace('/', '')}.png"
    (picture_folder / "00.png").rename(path)
    result = SearchResult(image_id=EVIL, score=1.0, path=path, metadata={"label": EVIL, EVIL: EVIL})
    assert "<script" not in render_search_page(ask(path, [result]), store=store)


def test_a_long_name_ends_its_line_after_an_underscore(store: VectorStore, picture_folder: Path) -> None:
    result = make_result(picture_folder / "00.png", label=f"IMG_2026_{EVIL}")
    page = render_search_page(ask(picture_folder / "00.png", [result]), store=store)
    assert '<div class="title">IMG_<wbr>2026_<wbr>&lt;script&gt;' in page


def test_page_shows_a_place_for_a_picture_that_is_gone(store: VectorStore, picture_folder: Path) -> None:
    page = render_search_page(ask(picture_folder / "00.png", [make_result(Path("/gone.png"))]), store=store)
    assert "no longer readable" in page


def test_page_names_pictures_without_metadata_after_their_files(store: VectorStore, picture_folder: Path) -> None:
    page = render_search_page(ask(picture_folder / "00.png", [make_result(picture_folder / "01.png")]), store=store)
    assert '<div class="title">01.png</div>' in page


def test_page_takes_scores_outside_zero_to_one(store: VectorStore, picture_folder: Path) -> None:
    path = picture_folder / "00.png"
    results = [SearchResult(image_id="a", score=score, path=path, metadata={}) for score in (1.0000001, -0.25)]
    page = render_search_page(ask(path, results), store=store)
    assert 'class="fill" width="100.0"' in page
    assert 'class="fill" width="0.0"' in page
    assert "-0.250" in page


def test_write_search_page_makes_its_folder(store: VectorStore, tmp_path: Path, picture_folder: Path) -> None:
    write_search_page(tmp_path / "new" / "page.html", ask(picture_folder / "00.png", []), store=store)
    assert (tmp_path / "new" / "page.html").read_text(encoding="utf-8").startswith("<!doctype html>")


def test_thumbnail_is_small_and_shows_the_box(tmp_path: Path) -> None:
    import base64
    import io

    picture = Image.new("RGB", (2000, 1000), "white")
    picture.paste("black", (0, 0, 1000, 1000))
    picture.save(tmp_path / "a.png")
    data = build_thumbnail(tmp_path / "a.png", (0, 0, 1000, 1000))
    assert data is not None
    with Image.open(io.BytesIO(base64.b64decode(data.partition(",")[2]))) as thumbnail:
        assert thumbnail.size == (THUMBNAIL_PX, THUMBNAIL_PX)
        assert thumbnail.convert("L").getextrema()[1] < 20


def test_page_spells_a_query_whose_name_is_no_text(tmp_path: Path, store: VectorStore) -> None:
    query = tmp_path / os.fsdecode(b"caf\xe9.png")
    write_search_page(tmp_path / "page.html", ask(query, []), store=store)
    assert r"caf\udce9.png" in (tmp_path / "page.html").read_text(encoding="utf-8")


def test_page_shows_every_example_the_filter_and_what_stands_behind(store: VectorStore, picture_folder: Path) -> None:
    others = tuple(make_result(picture_folder / f"0{n}.png") for n in range(4, 10))
    first = dataclasses.replace(make_result(picture_folder / "03.png"), others=others)
    request = SearchRequest(
        plus=(Example(picture=picture_folder / "00.png", box=(1, 1, 30, 30)), Example(vector=np.ones(1))),
        minus=(Example(picture=(picture_folder / "01.png").read_bytes()),),
        filter=parse_filter(["label=apple|pear"]),
        group_by="label",
        offset=20,
    )
    page = render_search_page([(request, SearchAnswer(results=(first,)))], store=store)
    for text in (
        "00.png",
        "a vector",
        "a picture",
        "not wanted",
        "a region",
        "label=apple|pear",
        "each label",
        "+6",
    ):
        assert text in page
    assert 'start="21"' in page
    assert page.count("data:image/jpeg;base64,") == 2 + 1 + 4


def test_headline_of_words_calls_nothing_similar(store: VectorStore, picture_folder: Path) -> None:
    path = picture_folder / "00.png"
    answer = SearchAnswer(results=(make_result(path),), ways=("words",))
    in_words = SearchRequest(plus=(Example(text="red"),)), answer
    by_picture = SearchRequest(plus=(Example(text="red"), Example(picture=path))), answer
    for searches, headline in (
        ([in_words, in_words], "Best matches"),
        ([by_picture], "Most similar pictures"),
        ([in_words, by_picture], "Most similar pictures"),
    ):
        assert f"<h1>{headline}</h1>" in render_search_page(searches, store=store)


def test_page_says_that_nothing_matches(store: VectorStore, picture_folder: Path) -> None:
    path = picture_folder / "00.png"
    results = [make_result(path)]
    assert "Probably not" in render_search_page(ask(path, results, is_match=False, threshold=0.912), store=store)
    assert "0.912" in render_search_page(ask(path, results, is_match=False, threshold=0.912), store=store)
    for is_match in (True, None):
        assert "Probably not" not in render_search_page(
            ask(path, results, is_match=is_match, threshold=0.9), store=store
        )
    assert "None passes the filter" in render_search_page(ask(path, [], filter=parse_filter(["a=b"])), store=store)
