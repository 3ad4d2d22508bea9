"""The map in the service: its page and data under the rules of the others, and a search from it in Chromium."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from tests.conftest import PATIENCE_MS
from tests.serve.conftest import Server
from tests.serve.test_map_page import draw_lasso
from vitrieve.mapping.collection_map import map_collection
from vitrieve.runtime.encoder import Encoder, load_encoder
from vitrieve.search.searcher import Searcher
from vitrieve.serve.app import create_app
from vitrieve.serve.settings import ProxySettings

pytest.importorskip("openTSNE", reason="needs vitrieve[map]")
playwright_api = pytest.importorskip("playwright.sync_api", reason="needs playwright")
Browser, expect = playwright_api.Browser, playwright_api.expect

HTML = {"Accept": "text/html"}


@pytest.fixture(scope="module")
def encoder(tiny_encoder_folder: Path) -> Encoder:
    return load_encoder(tiny_encoder_folder, engine="onnx", num_threads=1)


@pytest.fixture
def mapped(index_folder: Path, encoder: Encoder, tmp_path: Path) -> Iterator[Searcher]:
    """An index of its own, which may be changed, and its map."""
    shutil.copytree(index_folder, tmp_path / "index")
    map_collection(tmp_path / "index")
    with Searcher.open(tmp_path / "index", encoder) as searcher:
        yield searcher


def test_without_a_map_the_page_says_how_to_make_one(client: TestClient) -> None:
    answer = client.get("/map", headers=HTML)
    assert answer.status_code == 404
    assert "vitrieve map --index INDEX" in answer.text
    assert client.get("/map/data").json()["detail"].startswith("The command vitrieve map")
    assert 'href="/map"' not in client.get("/").text


def test_the_map_has_the_rules_of_the_other_pages(mapped: Searcher) -> None:
    with TestClient(create_app(mapped), follow_redirects=False) as client:
        assert 'href="/map"' in client.get("/").text
        page = client.get("/map", headers=HTML)
        assert page.status_code == 200
        assert "style=" not in page.text
        assert "onclick" not in page.text
        assert "Map of 20 pictures" in page.text
        assert 'href="/?plus=class0%2F0.png"' in page.text
        assert page.headers["content-security-policy"].startswith("default-src 'none'; script-src 'self'")
        data = client.get("/map/data")
        assert len(data.json()["ids"]) == 20
        assert data.headers["cache-control"] == "private, no-cache"
        assert client.get("/map/data", headers={"If-None-Match": data.headers["etag"]}).status_code == 304

        mapped.store.delete(["class0/0.png"])
        assert "The collection has 19 pictures by now" in client.get("/map", headers=HTML).text
        assert mapped.folder is not None
        map_collection(mapped.folder)
        assert "Map of 19 pictures" in client.get("/map", headers=HTML).text
        assert client.get("/map/data", headers={"If-None-Match": data.headers["etag"]}).status_code == 200
        assert "data-fingerprint" in client.get("/map", headers=HTML).text
        (mapped.folder / "map.parquet").write_bytes(b"damaged")
        assert client.get("/map", headers=HTML).status_code == 404


def test_the_map_asks_for_the_token(mapped: Searcher) -> None:
    with TestClient(create_app(mapped, token="t" * 32), follow_redirects=False) as client:
        for path in ("/map", "/map/data"):
            assert client.get(path).status_code == 401
            assert client.get(path, headers={"Authorization": f"Bearer {'t' * 32}"}).status_code == 200


def test_the_map_stays_behind_the_prefix_of_a_proxy(mapped: Searcher) -> None:
    proxy = ProxySettings(root_path="/pictures")
    with TestClient(create_app(mapped, proxy=proxy), follow_redirects=False) as client:
        page = client.get("/pictures/map", headers=HTML).text
    assert 'data-source="/pictures/map/data"' in page
    assert not re.findall(r'(?:href|src)="/(?!pictures/)[^"]*"', page)


@pytest.mark.browser
def test_from_the_map_to_a_search_and_back(browser: Browser, mapped: Searcher) -> None:
    server = Server(create_app(mapped))
    try:
        page, faults = browser.new_page(), []
        page.set_default_timeout(PATIENCE_MS)
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("console", lambda one: faults.append(one.text) if "Content Security" in one.text else None)
        page.goto(server.address)
        page.get_by_role("link", name=re.compile("as a map")).click()
        page.wait_for_selector("#map[data-ready]")
        expect(page.locator("#map-thumbnails img").first).to_be_visible()
        page.get_by_role("button", name="Lasso").click()
        draw_lasso(page)
        expect(page.locator("#map-cards li")).to_have_count(20)
        page.get_by_label("Tags, with commas").fill("seen\u060c old, ")
        page.get_by_label("Your name").fill("Eva")
        page.get_by_role("button", name="Tag them").press("Enter")
        told = page.locator("#map-told")
        expect(told).to_have_text("20 tagged “seen”, “old”.")
        listed = page.request.get(f"{server.address}/feedback").json()["corrections"]
        assert [(one["tags"], one["who"]) for one in listed] == [(["seen", "old"], "Eva")] * 20
        gone = mapped.store.get(["class1/0.png"])
        mapped.store.delete(["class1/0.png"])
        page.get_by_label("Tags, with commas").fill("new")
        page.get_by_role("button", name="Tag them").press("Enter")
        expect(told).to_have_text("19 tagged “new”. Not tagged, because the collection no longer has them: 1.")
        mapped.store.upsert(*gone)
        page.get_by_role("link", name="Search for what is like 16 of these").click()
        page.wait_for_url(re.compile(r"/\?plus=.*&plus="))
        expect(page.locator(".found .card").first).to_be_visible()
        page.go_back()
        page.wait_for_selector("#map[data-ready]")
        page.locator("#map-groups summary").first.press("Enter")
        page.locator("#map-groups details a").first.press("Enter")
        expect(page.locator(".found .card").first).to_be_visible()
        assert not faults
        page.close()
    finally:
        server.stop()
