"""More of what people do with the page in a real Chromium: words, spans, signing in, and what happened meanwhile."""

from __future__ import annotations

import re
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from tests.serve.conftest import Server
from vitrieve.feedback import store as feedback_store
from vitrieve.runtime.encoder import Encoder, load_encoder
from vitrieve.search.searcher import Searcher
from vitrieve.serve.app import create_app, create_served_app
from vitrieve.serve.collections import open_collections
from vitrieve.serve.settings import Limits, ServeSettings

playwright_api = pytest.importorskip("playwright.sync_api", reason="needs playwright")
Page = playwright_api.Page
expect = playwright_api.expect

pytestmark = pytest.mark.browser

RESULTS = "/?plus=class0%2F0.png"
READ = {"birds": "a-token-to-read-birds", "cats": "a-token-to-read-cats"}
WRITE = "a-token-to-write-birds"


@pytest.fixture(scope="module")
def encoder(aligned_folder: Path) -> Encoder:
    """An encoder with a text part."""
    return load_encoder(aligned_folder, engine="onnx", num_threads=1)


@pytest.fixture
def own(index_folder: Path, encoder: Encoder, tmp_path: Path) -> Iterator[Searcher]:
    """An index that a test may change."""
    shutil.copytree(index_folder, tmp_path / "index")
    with Searcher.open(tmp_path / "index", encoder) as searcher:
        yield searcher


@pytest.fixture
def served(own: Searcher) -> Iterator[str]:
    """The address of a service of that index."""
    server = Server(create_app(own))
    yield server.address
    server.stop()


def list_titles(page: Page) -> list[str]:
    """List the names of the results, once there are some."""
    page.locator(".found .card a.title").first.wait_for()
    return list(page.locator(".found .card a.title").all_text_contents())


def add_words(page: Page, words: str, sign: str) -> None:
    page.get_by_label("Whether it is wanted").select_option(sign)
    page.get_by_label("Words to add to this search").fill(words)
    page.get_by_role("button", name="Add", exact=True).click()


def test_words_are_added_as_wanted_and_not_wanted_and_taken_away(page: Page, served: str) -> None:
    page.goto(served)
    page.get_by_label("Words to search for").fill("dark red")
    page.keyboard.press("Enter")
    page.wait_for_url(f"{served}/?text=dark+red")
    expect(page.locator(".examples .wanted")).to_contain_text("more of “dark red”")
    assert set(list_titles(page)) == {f"Class{number}" for number in range(5)}
    before = list_titles(page)
    add_words(page, "green", "less of")
    page.wait_for_url(f"{served}/?text=dark+red&minus_text=green")
    expect(page.locator(".examples .unwanted")).to_contain_text("less of “green”")
    assert list_titles(page) != before
    add_words(page, "blue", "more of")
    page.wait_for_url(f"{served}/?text=dark+red&text=blue&minus_text=green")
    expect(page.locator(".examples .wanted")).to_have_count(2)
    page.locator(".card .sign.wanted").first.click()
    page.wait_for_url(re.compile(r"\?plus=class\d%2F\d\.png&text=dark\+red&text=blue&minus_text=green$"))
    expect(page.locator(".examples .wanted")).to_have_count(3)
    page.get_by_role("link", name="Take away “green”").click()
    expect(page.locator(".examples .unwanted")).to_have_count(0)
    page.go_back()
    expect(page.locator(".examples .unwanted")).to_have_count(1)
    page.locator(".found a.title").first.click()
    page.wait_for_url(re.compile("/compare"))
    expect(page.get_by_text("more of “blue”")).to_be_visible()
    expect(page.get_by_text("less of “green”")).to_be_visible()


def test_a_picture_gets_words_beside_it(page: Page, served: str) -> None:
    page.goto(served + RESULTS)
    add_words(page, "green", "less of")
    page.wait_for_url(f"{served}{RESULTS}&minus_text=green")
    expect(page.locator(".examples .unwanted")).to_have_count(1)
    assert "Class1" in list_titles(page)
    add_words(page, "blue", "more of")
    page.wait_for_url(re.compile(r"&text=blue&minus_text=green$"))
    expect(page.locator(".examples .wanted")).to_have_count(2)
    page.get_by_role("link", name="Take away Class0").click()
    page.wait_for_url(f"{served}/?text=blue&minus_text=green")


def set_span(page: Page, column: str, least: str = "", most: str = "") -> None:
    facet = page.locator(".facet").filter(has=page.get_by_text(column, exact=True))
    facet.get_by_label(f"{column} from").fill(least)
    facet.get_by_label(f"{column} to").fill(most)
    facet.get_by_role("button", name=f"Set the span of {column}").click()


def test_spans_of_dates_and_numbers_narrow_down(page: Page, own: Searcher, served: str) -> None:
    vectors, records = own.store.get(sorted(own.store.image_ids()))
    own.store.upsert(
        vectors,
        [
            replace(record, metadata={**record.metadata, "taken": f"2026-03-{day:02}"})
            for day, record in enumerate(records, start=1)
        ],
    )
    page.goto(served + RESULTS)
    expect(page.get_by_label("taken from")).to_have_attribute("placeholder", "2026-03-01")
    expect(page.get_by_label("taken to")).to_have_attribute("placeholder", "2026-03-20")
    set_span(page, "taken", "2026-03-07", "2026-03-12")  # two days of Class1, and the four of Class2
    page.wait_for_url(f"{served}{RESULTS}&filter=taken%3E%3D2026-03-07&filter=taken%3C%3D2026-03-12")
    assert sorted(list_titles(page)) == ["Class1"] * 2 + ["Class2"] * 4
    expect(page.get_by_label("copy from")).to_have_attribute("placeholder", "0")
    set_span(page, "copy", least="2")
    page.wait_for_url(re.compile("&filter=copy%3E%3D2$"))
    assert sorted(list_titles(page)) == ["Class1"] * 2 + ["Class2"] * 2
    page.get_by_role("link", name=re.compile("^taken<=2026-03-12")).click()
    page.wait_for_url(lambda url: "taken%3C" not in url)
    assert sorted(list_titles(page)) == [f"Class{number}" for number in (1, 1, 2, 2, 3, 3, 4, 4)]
    page.get_by_label("Where").select_option("taken")
    page.get_by_label("How to compare").select_option("is at most")
    page.get_by_label("Value").fill("2026-03-16")
    page.get_by_role("button", name="Apply").click()
    page.wait_for_url(re.compile("filter=taken%3C%3D2026-03-16"))
    assert sorted(list_titles(page)) == [f"Class{number}" for number in (1, 1, 2, 2, 3, 3)]
    expect(page.get_by_label("taken from")).to_have_value("2026-03-07")
    set_span(page, "taken", least="2026-03-09", most="2026-03-16")  # instead of both ends that were there
    page.wait_for_url(re.compile(r"&filter=copy%3E%3D2&filter=taken%3E%3D2026-03-09&filter=taken%3C%3D2026-03-16$"))
    assert sorted(list_titles(page)) == [f"Class{number}" for number in (2, 2, 3, 3)]
    set_span(page, "taken", least="yesterday")
    page.wait_for_url(re.compile(r"&filter=copy%3E%3D2&filter=taken%3E%3Dyesterday$"))
    expect(page.locator(".detail")).to_contain_text("taken>=yesterday does not fit: taken is a date column")
    page.get_by_role("link", name="Search without what is refused").click()
    page.wait_for_url(f"{served}{RESULTS}&filter=copy%3E%3D2")


@pytest.fixture
def collections(index_folder: Path, tmp_path: Path) -> Iterator[str]:
    """The address of a service of birds and cats, each with a token to read, birds with one to write, and open dogs."""
    lines = []
    for name in ("birds", "cats", "dogs"):
        shutil.copytree(index_folder, tmp_path / name)
        lines += [f"[{name}]", f'index = "{name}"']
        roles = {"read": READ.get(name), "write": WRITE if name == "birds" else None}
        given = {role: token for role, token in roles.items() if token}
        for role, token in given.items():
            (tmp_path / f"{name}-{role}").write_text(token)
        if given:
            entries = [f'{{ role = "{role}", file = "{name}-{role}" }}' for role in given]
            lines.append(f"tokens = [{', '.join(entries)}]")
    (tmp_path / "collections.toml").write_text("\n".join(lines))
    with open_collections(tmp_path / "collections.toml", engine="onnx", num_threads=1) as opened:
        settings = ServeSettings(host="127.0.0.1", port=0, limits=Limits(free_bytes=1))
        server = Server(create_served_app(opened, settings))
        yield server.address
        server.stop()


def sign_in(page: Page, token: str) -> None:
    page.get_by_label("Token").fill(token)
    page.get_by_role("button", name="Sign in").click()


def test_a_person_signs_in_to_one_collection_after_another(page: Page, collections: str, class_folder: Path) -> None:
    shared = f"{collections}/c/birds{RESULTS}&k=12"
    page.goto(collections)
    expect(page.locator(".collections .title")).to_have_text(["dogs"])
    page.goto(shared)
    expect(page.get_by_role("heading", name="This collection needs a token")).to_be_visible()
    for wrong in ("a-token-of-nobody", READ["cats"], WRITE):  # a browser never holds the one to write
        sign_in(page, wrong)
        expect(page.get_by_label("Token")).to_have_value("")  # of the next page: the one before has told the same
        expect(page.get_by_role("alert").filter(has_text="That is not the token.")).to_be_visible()
    sign_in(page, READ["birds"])
    page.wait_for_url(shared)
    expect(page.locator(".found .card")).to_have_count(12)
    page.set_input_files("[data-file] >> nth=0", class_folder / "class3" / "2.png")
    page.wait_for_url(re.compile(r"/c/birds/\?upload="))
    assert list_titles(page)[0] == "Class3"
    page.get_by_role("link", name="All collections").click()
    expect(page.locator(".collections .title")).to_have_text(["birds", "dogs"])
    page.get_by_role("link", name="Sign in to another").click()
    expect(page.get_by_role("heading", name="This service needs a token")).to_be_visible()
    sign_in(page, READ["cats"])
    expect(page.locator(".collections .title")).to_have_text(["birds", "cats", "dogs"])
    page.get_by_role("link", name="cats").click()
    page.wait_for_url(f"{collections}/c/cats/")
    expect(page.get_by_role("heading", name="Find the same thing again")).to_be_visible()
    page.goto(shared)
    expect(page.locator(".found .card")).to_have_count(12)


CHANGE = """async ([address, token]) => {
    const headers = { "Content-Type": "application/json", ...(token && { Authorization: `Bearer ${token}` }) };
    const body = JSON.stringify({ metadata: { label: "Sparrow" } });
    return (await fetch(address, { method: "PATCH", headers, body })).status;
}"""


def test_who_reads_sees_what_who_writes_has_changed_and_changes_nothing(page: Page, collections: str) -> None:
    page.goto(f"{collections}/c/birds{RESULTS}")
    sign_in(page, READ["birds"])
    page.locator(".found .card").first.wait_for()
    changed = str(page.locator(".found .card").first.get_attribute("data-image-id"))
    address = f"{collections}/c/birds/images/{changed}"
    assert page.evaluate(CHANGE, [address, ""]) == 401  # the cookie of a page opens no change
    assert page.evaluate(CHANGE, [address, READ["birds"]]) == 403
    assert "Sparrow" not in list_titles(page)
    headers = {"Authorization": f"Bearer {WRITE}"}
    answer = httpx.patch(address, json={"metadata": {"label": "Sparrow"}}, headers=headers)
    assert answer.status_code == 200, answer.text
    page.reload()
    expect(page.locator(".found .card a.title").first).to_have_text("Sparrow")


def test_feedback_on_a_picture_that_went_meanwhile_is_told(page: Page, own: Searcher, served: str) -> None:
    page.goto(served + RESULTS)
    card = page.locator(".card").first
    image_id = str(card.get_attribute("data-image-id"))
    own.store.delete([image_id])
    message = re.compile(f"the index has no image '{re.escape(image_id)}'", re.IGNORECASE)
    wrong = card.get_by_role("button", name="Wrong")
    wrong.click()
    expect(page.get_by_role("alert")).to_have_text(message)
    expect(wrong).to_have_attribute("aria-pressed", "false")
    card.locator("[data-choose]").check()
    page.locator(".card [data-choose]").nth(1).check()
    other = str(page.locator(".card").nth(1).get_attribute("data-image-id"))
    page.locator("#tag-chosen input").fill("ripe")
    page.locator("#tag-chosen button").click()
    not_tagged = "Not tagged, because the collection no longer has them: "
    expect(page.get_by_role("alert")).to_have_text(f"{not_tagged}1 of 2.")
    expect(page.locator("#num-corrections")).to_have_text("1 correction since the last training")
    expect(card.locator(".said")).to_be_hidden()
    expect(page.locator(".card .said").nth(1)).to_have_text("ripe")
    assert [one["image_id"] for one in httpx.get(f"{served}/feedback").json()["corrections"]] == [other]
    own.store.delete([other])
    page.locator("#tag-chosen input").fill("ripe")
    page.locator("#tag-chosen button").click()
    expect(page.get_by_role("alert")).to_have_text(f"{not_tagged}2 of 2.")
    page.reload()
    assert image_id not in [one.get_attribute("data-image-id") for one in page.locator(".card").all()]


def test_feedback_that_another_writer_holds_is_told_and_can_be_given_again(
    page: Page, own: Searcher, served: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert own.folder is not None
    monkeypatch.setattr(feedback_store, "WAIT_SECONDS", 0.05)
    page.goto(served + RESULTS)
    right = page.locator(".card").first.get_by_role("button", name="Right")
    right.click()
    expect(right).to_have_attribute("aria-pressed", "true")
    right = page.locator(".card").nth(1).get_by_role("button", name="Right")
    with closing(sqlite3.connect(own.folder.with_name("index.feedback.sqlite"), isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        right.click()
        expect(page.get_by_role("alert")).to_contain_text("another process is writing it")
        expect(right).to_have_attribute("aria-pressed", "false")
        other.rollback()
    right.click()
    expect(right).to_have_attribute("aria-pressed", "true")
    expect(page.get_by_role("alert")).to_be_hidden()
    expect(page.locator("#num-corrections")).to_have_text("2 corrections since the last training")
