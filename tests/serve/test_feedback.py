"""Feedback over HTTP: what is kept, what is refused, and what the token guards."""

from __future__ import annotations

import json
import os
import re
import shutil
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from unicodedata import normalize

import pytest
from starlette.testclient import TestClient

from vitrieve.cli.main import main
from vitrieve.feedback import store as feedback_store
from vitrieve.feedback.pairs import read_pairs
from vitrieve.runtime.encoder import load_encoder
from vitrieve.search.searcher import Searcher
from vitrieve.serve import pages
from vitrieve.serve.app import create_app
from vitrieve.serve.settings import COMMAS

TOKEN = "a-token-of-enough-length"


@pytest.fixture
def own_searcher(index_folder: Path, tiny_encoder_folder: Path, tmp_path: Path) -> Searcher:
    shutil.copytree(index_folder, tmp_path / "index")
    return Searcher.open(tmp_path / "index", load_encoder(tiny_encoder_folder, engine="onnx", num_threads=1))


@pytest.fixture
def client(own_searcher: Searcher) -> TestClient:
    return TestClient(create_app(own_searcher, token=TOKEN), headers={"Authorization": f"Bearer {TOKEN}"})


def test_feedback_is_kept_counted_and_exported(
    client: TestClient, own_searcher: Searcher, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second, third = list(own_searcher.store.image_ids())[:3]
    pair = {"image_id": second, "query_id": first, "who": "Eva"}
    assert client.post("/feedback", json={"kind": "right", **pair}).json() == {"num_since_training": 1}
    assert client.post("/feedback", json={"kind": "wrong", **pair}).json() == {"num_since_training": 1}
    tagged = {"kind": "tagged", "image_id": third, "tags": [" red ", "red"], "label": "apple"}
    assert client.post("/feedback", json=tagged).json() == {"num_since_training": 2}
    listed = client.get("/feedback").json()
    assert listed["num_corrections"] == 2
    assert listed["num_since_training"] == 2
    wrong, tags = listed["corrections"]
    assert (wrong["kind"], wrong["image_id"], wrong["query_id"], wrong["who"]) == ("wrong", second, first, "Eva")
    assert wrong["fingerprint"] == own_searcher.store.info.fingerprint
    assert wrong["at"].endswith("+00:00")
    assert tags["tags"] == ["red"]
    assert tags["label"] == "apple"
    assert client.get("/feedback", params={"offset": 1, "limit": 1}).json()["corrections"] == [tags]
    assert main(["feedback", "--index", str(tmp_path / "index"), "--out", str(tmp_path / "f.parquet")]) == 0
    assert "2 corrections (1 tagged, 1 wrong), 2 of them since the last training" in capsys.readouterr().out
    assert [one.kind for one in read_pairs(tmp_path / "f.parquet")] == ["wrong", "tagged"]
    assert client.post("/feedback", json={"kind": "taken_back", **pair}).json() == {"num_since_training": 1}


def test_export_without_feedback_is_told(
    own_searcher: Searcher, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["feedback", "--index", str(tmp_path / "index"), "--out", str(tmp_path / "f.parquet")]) == 2
    assert "has no feedback yet" in capsys.readouterr().err
    assert not (tmp_path / "f.parquet").exists()


def test_token_is_needed(own_searcher: Searcher) -> None:
    client = TestClient(create_app(own_searcher, token=TOKEN))
    assert client.get("/feedback").status_code == 401
    assert client.post("/feedback", json={"kind": "right", "image_id": "a", "query_id": "b"}).status_code == 401


@pytest.mark.parametrize(
    ("body", "status", "part"),
    [
        ({"kind": "right", "image_id": "gone.png", "query": "x"}, 404, "no image 'gone.png'"),
        ({"kind": "right", "image_id": "FIRST", "query_id": "gone.png"}, 404, "no image 'gone.png'"),
        ({"kind": "right", "image_id": "FIRST"}, 422, "right needs the query"),
        ({"kind": "maybe", "image_id": "FIRST"}, 422, "kind"),
        ({"kind": "tagged", "image_id": "FIRST", "tags": ["x" * 101]}, 422, "tags"),
        ({"kind": "tagged", "image_id": "FIRST", "tags": ["x"] * 21}, 422, "tags"),
        ({"kind": "tagged", "image_id": "FIRST", "label": "a\nb"}, 422, "cannot be printed"),
        ({"kind": "tagged", "image_id": "FIRST", "tags": ["red, ripe"]}, 422, "'red, ripe' has a comma"),
        ({"kind": "right", "image_id": "FIRST", "query": "x", "fingerprint": "other"}, 409, "another encoder (other…)"),
        ({"kind": "right", "image_id": "FIRST", "query": "x", "more": 1}, 422, "more"),
        ({"kind": "right", "image_id": "x" * 70_000, "query": "x"}, 413, "64,000 bytes|65,536 bytes"),
    ],
)
def test_bad_feedback_is_refused(
    client: TestClient, own_searcher: Searcher, body: dict[str, object], status: int, part: str
) -> None:
    first = next(own_searcher.store.image_ids())
    answer = client.post("/feedback", json={**body, "image_id": str(body["image_id"]).replace("FIRST", first)})
    assert answer.status_code == status
    assert any(one in answer.json()["detail"] for one in part.split("|"))
    assert client.get("/feedback").json()["num_corrections"] == 0


def test_feedback_is_off_for_a_read_only_index(
    client: TestClient, own_searcher: Searcher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = next(own_searcher.store.image_ids())
    may = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path / "index" and may(path, mode))
    answer = client.post("/feedback", json={"kind": "right", "image_id": first, "query": "x"})
    assert answer.status_code == 409
    assert "feedback is off: the folder of the index is read-only" in answer.text
    assert str(tmp_path) not in answer.text
    assert client.get("/feedback").json()["num_corrections"] == 0


def test_a_first_tag_that_is_refused_leaves_feedback_on(client: TestClient, own_searcher: Searcher) -> None:
    first, second = list(own_searcher.store.image_ids())[:2]
    refused = client.post("/feedback/tags", json={"image_ids": [first], "tags": [" "]})
    assert (refused.status_code, "none of them empty" in refused.json()["detail"]) == (422, True)
    assert client.get("/feedback").json()["num_corrections"] == 0
    assert "0 corrections since the last training" in client.get("/", params={"plus": second}).text


def find_said(page: str) -> dict[str, list[dict[str, object]]]:
    """Read what a page of results says was said, by image."""
    found: dict[str, list[dict[str, object]]] = {}

    class Reader(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            values = dict(attrs)
            if values.get("data-said"):
                found[str(values["data-image-id"])] = json.loads(str(values["data-said"]))

    Reader().feed(page)
    return found


def test_page_shows_what_was_said_of_this_query(client: TestClient, own_searcher: Searcher) -> None:
    first, second, third = list(own_searcher.store.image_ids())[:3]
    hostile = "\"'><script>alert(1)</script>"
    for body in (
        {"kind": "right", "image_id": second, "query_id": first, "who": hostile},
        {"kind": "wrong", "image_id": second, "query_id": first},
        {"kind": "wrong", "image_id": third, "query": "a red one"},
        {"kind": "tagged", "image_id": third, "tags": [hostile], "label": "pear"},
    ):
        assert client.post("/feedback", json=body).status_code == 200
    page = client.get("/", params={"plus": first, "k": 40}).text
    assert "4 corrections since the last training" in page
    assert "<script>alert" not in page
    said = find_said(page)
    assert [(one["who"], one["kind"]) for one in said[second]] == [(hostile, "right"), ("", "wrong")]
    assert said[third] == [{"who": "", "kind": "tagged", "tags": [hostile], "label": "pear"}]
    assert set(map(len, said.values())) == {0, 1, 2}
    in_words = find_said(client.get("/", params={"text": "a red one", "plus": third, "k": 40}).text)
    assert not in_words or not in_words.get(second), "of another query"


def test_what_is_said_of_one_search_counts_for_no_other(
    own_searcher: Searcher, aligned_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second, third = list(own_searcher.store.image_ids())[:3]
    monkeypatch.setattr(pages, "MAX_NAME", 60)
    long = {"text": ["dark red", "dark blue", "light green", "bright yellow", "dark green", "light blue"]}
    searches: list[dict[str, str | list[str]]] = [
        {"plus": first},
        {"plus": first, "box": "2,2,20,20"},
        {"plus": first, "box": "2,2,20,30"},
        {"plus": first, "minus": second},
        {"plus": first, "minus_text": "green"},
        {"plus": [first, second]},
        {"plus": [first, second], "minus": third},
        {"text": "dark red"},
        {"text": "dark red", "minus_text": "green"},
        {"text": "dark red", "minus": first},
        long,
        {**long, "minus_text": "green"},
    ]
    with Searcher.open(tmp_path / "index", load_encoder(aligned_folder, engine="onnx", num_threads=1)) as searcher:
        client = TestClient(create_app(searcher))

        def find_query(search: dict[str, str | list[str]]) -> dict[str, str]:
            page = client.get("/", params=search).text
            (line,) = [line for line in page.splitlines() if 'id="feedback"' in line]
            query_id, query = (re.findall(f' data-{name}="([^"]*)"', line) for name in ("query-id", "query"))
            return {"query_id": query_id[0], "query": query[0]}

        queries = [find_query(search) for search in searches]
        assert len({tuple(query.values()) for query in queries}) == len(searches)
        assert max(len(query["query"]) for query in queries) == 60
        assert queries[0] == {"query_id": first, "query": ""}
        assert queries[8] == {"query_id": "", "query": "dark red, less of green"}
        assert find_query({"text": "dark red", "filter": "copy>=0"}) == queries[7]
        for query in queries:
            body = {"kind": "wrong", "image_id": third, **query}
            assert client.post("/feedback", json=body).status_code == 200
        assert client.get("/feedback").json()["num_corrections"] == len(searches)


def test_tags_are_added_to_several_images_at_once(client: TestClient, own_searcher: Searcher) -> None:
    first, second = list(own_searcher.store.image_ids())[:2]
    old = {"kind": "tagged", "image_id": first, "tags": ["round"], "label": "apple", "who": "Eva"}
    client.post("/feedback", json=old)
    body = {"image_ids": [first, second, first], "tags": [" red ", "round"], "who": "Eva"}
    assert client.post("/feedback/tags", json=body).json() == {"num_since_training": 2, "gone": []}
    listed = {one["image_id"]: one for one in client.get("/feedback").json()["corrections"]}
    assert (listed[first]["tags"], listed[first]["label"]) == (["round", "red"], "apple")
    assert (listed[second]["tags"], listed[second]["label"]) == (["red", "round"], "")
    for change, status, part in (
        ({"image_ids": ["gone.png", "ä.png"]}, 404, "no image 'gone.png'"),
        ({"image_ids": []}, 422, "image_ids"),
        ({"image_ids": [first] * 1001}, 422, "image_ids"),
        ({"tags": ["a\nb"]}, 422, "cannot be printed"),
        *(({"tags": ["good", f"red{comma} ripe"]}, 422, "has a comma") for comma in COMMAS),
        ({"tags": [f"tag {number}" for number in range(19)]}, 422, "21 tags; give at most 20"),
        ({"fingerprint": "other"}, 409, "another encoder"),
    ):
        answer = client.post("/feedback/tags", json=body | change)
        assert answer.status_code == status
        assert part in answer.json()["detail"]
        after = {one["image_id"]: one for one in client.get("/feedback").json()["corrections"]}
        assert after == listed, "nothing of a request that is refused is kept"


def test_tags_are_given_to_those_images_that_are_left(client: TestClient, own_searcher: Searcher) -> None:
    names = list(own_searcher.store.image_ids())
    vectors, (record,) = own_searcher.store.get([names[0]])
    own_searcher.store.upsert(vectors, [replace(record, image_id="ä.png")])
    own_searcher.store.delete([names[3], names[7]])
    asked = [*names, normalize("NFD", "ä.png"), "ö.png"]
    answer = client.post("/feedback/tags", json={"image_ids": asked, "tags": ["red"]})
    assert answer.json() == {"num_since_training": len(names) - 1, "gone": [names[3], names[7], "ö.png"]}
    tagged = [one["image_id"] for one in client.get("/feedback").json()["corrections"]]
    assert tagged == [name for name in [*names, "ä.png"] if name not in (names[3], names[7])]


def test_feedback_for_an_image_that_went_is_refused_and_what_was_said_stays(
    client: TestClient, own_searcher: Searcher
) -> None:
    first, second = list(own_searcher.store.image_ids())[:2]
    pair = {"kind": "right", "image_id": second, "query_id": first}
    assert client.post("/feedback", json=pair).status_code == 200
    own_searcher.store.delete([second])
    answer = client.post("/feedback", json=pair | {"kind": "taken_back"})
    assert answer.status_code == 404
    assert answer.json()["detail"] == f"the index has no image {second!r}."
    assert [one["image_id"] for one in client.get("/feedback").json()["corrections"]] == [second]
    assert client.get("/", params={"plus": first}).status_code == 200


def test_two_people_say_something_at_once(client: TestClient, own_searcher: Searcher) -> None:
    first, *others = list(own_searcher.store.image_ids())[:9]

    def say(who: str) -> list[int]:
        bodies = [{"kind": "right", "image_id": name, "query_id": first, "who": who} for name in others]
        return [client.post("/feedback", json=body).status_code for body in bodies]

    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(say, ("Eva", "Max"))) == [[200] * 8] * 2
    listed = client.get("/feedback").json()["corrections"]
    assert sorted((one["who"], one["image_id"]) for one in listed) == sorted(
        (who, name) for who in ("Eva", "Max") for name in others
    )


def test_feedback_that_another_process_holds_or_that_is_damaged_is_told(
    client: TestClient, own_searcher: Searcher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = list(own_searcher.store.image_ids())[:2]
    pair = {"kind": "right", "image_id": second, "query_id": first}
    tags = {"image_ids": [second], "tags": ["red"]}
    assert client.post("/feedback", json=pair).status_code == 200
    monkeypatch.setattr(feedback_store, "WAIT_SECONDS", 0.05)
    path = tmp_path / "index.feedback.sqlite"
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        for answer in (client.post("/feedback", json=pair), client.post("/feedback/tags", json=tags)):
            assert answer.status_code == 503
            assert "the feedback cannot be used now: another process is writing it" in answer.json()["detail"]
            assert str(tmp_path) not in answer.text
            assert int(answer.headers["Retry-After"]) > 0
        other.rollback()
    assert client.post("/feedback", json=pair | {"who": "Eva"}).json() == {"num_since_training": 2}
    path.write_bytes(b"no database" * 100)
    for answer in (client.post("/feedback", json=pair), client.get("/feedback")):
        assert answer.status_code == 503
        assert "or its database is damaged" in answer.json()["detail"]
    assert client.get("/", params={"plus": first}).status_code == 200


def test_two_services_tag_one_image_at_once(client: TestClient, own_searcher: Searcher, tmp_path: Path) -> None:
    """Nothing that two services know of each other is in memory: what holds for them holds for processes."""
    with Searcher.open(tmp_path / "index", own_searcher.encoder) as searcher:
        other = TestClient(create_app(searcher, token=TOKEN), headers={"Authorization": f"Bearer {TOKEN}"})
        first, *_ = own_searcher.store.image_ids()

        def tag(service: TestClient) -> list[int]:
            name = "one" if service is client else "other"
            bodies = [{"image_ids": [first], "tags": [f"{name}{turn}"], "who": "Eva"} for turn in range(10)]
            return [service.post("/feedback/tags", json=body).status_code for body in bodies]

        with ThreadPoolExecutor(2) as pool:
            assert list(pool.map(tag, (client, other))) == [[200] * 10] * 2
    (said,) = client.get("/feedback").json()["corrections"]
    assert sorted(said["tags"]) == sorted(f"{name}{turn}" for name in ("one", "other") for turn in range(10))
