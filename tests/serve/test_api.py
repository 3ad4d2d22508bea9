from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient

from tests.serve.conftest import Connect
from vitrieve.search.request import Example, SearchRequest
from vitrieve.search.searcher import Searcher
from vitrieve.serve.settings import Limits


def test_search_takes_the_bytes_of_an_image_whatever_the_header_says(client: TestClient, picture: bytes) -> None:
    for header in ("image/png", "image/jpeg", "application/json", "text/plain", "multipart/form-data; boundary=x", ""):
        answer = client.post("/search?k=2", content=picture, headers={"Content-Type": header})
        assert answer.status_code == 200, answer.text
        results = answer.json()["results"]
        assert [results[0]["image_id"], len(results)] == ["class2/1.png", 2]
        assert results[0]["score"] == pytest.approx(1, abs=1e-5)
        assert results[0]["metadata"] == {"label": "Class2", "copy": "1"}


def test_search_answers_what_the_searcher_answers(client: TestClient, searcher: Searcher, picture: bytes) -> None:
    expected = searcher.answer(SearchRequest(plus=(Example(picture=picture),), k=7))
    answer = client.post("/search?k=7", content=picture).json()
    assert [(one["image_id"], one["score"]) for one in answer["results"]] == [
        (one.image_id, pytest.approx(one.score, abs=1e-6)) for one in expected.results
    ]
    assert (answer["is_match"], answer["has_more"]) == (expected.is_match, True)
    assert set(answer["timings_seconds"]) == {"decode", "encode", "search"}


def test_search_takes_a_form(client: TestClient, picture: bytes) -> None:
    fields = {"k": "3", "filter": ["copy=0|2"], "group_by": ""}
    answer = client.post("/search", files={"image": ("a.txt", picture, "text/plain")}, data=fields)
    assert answer.status_code == 200, answer.text
    assert {one["metadata"]["copy"] for one in answer.json()["results"]} <= {"0", "2"}
    assert len(answer.json()["results"]) == 3


@pytest.mark.parametrize("values", [["0", "2"], [0, 2.0]])
def test_search_takes_a_structured_condition(client: TestClient, values: list[object]) -> None:
    condition = {"column": "copy", "operator": "=", "values": values}
    answer = client.post("/search", json={"id": "class0/0.png", "filter": [condition, "copy!=0"]})
    assert answer.status_code == 200, answer.text
    assert {one["metadata"]["copy"] for one in answer.json()["results"]} == {"2"}


def test_a_structured_condition_that_is_none_is_refused(client: TestClient) -> None:
    good = {"column": "copy", "operator": "=", "values": ["0"]}
    for wrong in (
        {"operator": "~"},
        {"values": []},
        {"values": [None]},
        {"values": ["0"] * 1001},
        {"operator": "<", "values": [1, 2]},
        {"column": "c" * 5000},
        {"more": 1},
    ):
        answer = client.post("/search", json={"id": "class0/0.png", "filter": [{**good, **wrong}]})
        assert answer.status_code == 422, wrong
    answer = client.post("/search", json={"id": "class0/0.png", "filter": [good] * 17})
    assert (answer.status_code, "at most 16" in answer.text) == (422, True)


def test_search_takes_an_id_and_leaves_it_out(client: TestClient) -> None:
    answer = client.post("/search", json={"id": "class0/0.png", "k": 3}).json()
    assert "class0/0.png" not in [one["image_id"] for one in answer["results"]]


def test_search_takes_a_vector(client: TestClient, searcher: Searcher) -> None:
    vectors, _ = searcher.store.get(["class4/3.png"])
    answer = client.post("/search", json={"vector": vectors[0].tolist(), "k": 1}).json()
    assert answer["results"][0]["image_id"] == "class4/3.png"


def test_search_takes_examples_with_plus_and_minus(client: TestClient, searcher: Searcher, picture: bytes) -> None:
    examples = [
        {"id": "class0/0.png"},
        {"image": base64.b64encode(picture).decode()},
        {"id": "class1/0.png", "sign": "minus"},
    ]
    answer = client.post("/search", json={"examples": examples, "k": 20}).json()
    expected = searcher.answer(
        SearchRequest(
            plus=(Example(picture=picture), Example(image_id="class0/0.png")),
            minus=(Example(image_id="class1/0.png"),),
            k=20,
        )
    )
    assert [one["image_id"] for one in answer["results"]] == [one.image_id for one in expected.results]


@pytest.mark.parametrize("encode", [base64.b64encode, base64.urlsafe_b64encode])
@pytest.mark.parametrize("beginning", ["", "data:image/png;base64,"])
@pytest.mark.parametrize("num_more", [0, 1, 2])
def test_search_takes_a_picture_as_browsers_and_libraries_spell_it(
    client: TestClient, picture: bytes, encode: Callable[[bytes], bytes], beginning: str, num_more: int
) -> None:
    file = picture + b"\0" * num_more  # so that the text ends with no =, one or two
    text = encode(file).decode()
    assert ("-" in text or "_" in text) == (encode is base64.urlsafe_b64encode)
    expected = client.post("/search", content=file).json()["results"]
    lines = "\r\n".join(text[start : start + 76] for start in range(0, len(text), 76))
    for spelled in (text, text.rstrip("="), lines):
        answer = client.post("/search", json={"examples": [{"image": beginning + spelled}]})
        assert answer.status_code == 200, answer.text
        assert answer.json()["results"] == expected


def test_search_refuses_a_data_address_that_is_not_in_base64(client: TestClient, picture: bytes) -> None:
    text = base64.b64encode(picture).decode()
    for address in (f"data:image/png,{text}", "data:image/png;base64"):
        answer = client.post("/search", json={"examples": [{"image": address}]})
        assert answer.status_code == 422, address
    assert "must be in base64" in client.post("/search", json={"examples": [{"image": "data:,abc"}]}).text


def test_search_by_box_is_search_by_the_cut_out(client: TestClient, picture: bytes) -> None:
    file = io.BytesIO()
    with Image.open(io.BytesIO(picture)) as image:
        image.crop((4, 6, 20, 30)).save(file, format="PNG")
    expected = client.post("/search", content=file.getvalue()).json()["results"]
    assert client.post("/search?box=4,6,20,30", content=picture).json()["results"] == expected
    by_form = client.post("/search", files={"image": picture}, data={"box": "4,6,20,30"})
    assert by_form.json()["results"] == expected
    by_id = client.post("/search", json={"id": "class2/1.png", "box": [4, 6, 20, 30]})
    assert by_id.json()["results"] == expected


def test_search_groups(client: TestClient, picture: bytes) -> None:
    answer = client.post("/search?group_by=label&k=10", content=picture).json()
    assert [one["metadata"]["label"] for one in answer["results"]].count("Class2") == 1
    assert len(answer["results"]) == 5
    assert [len(one["others"]) for one in answer["results"]] == [3] * 5


def test_pages_do_not_overlap(client: TestClient, picture: bytes) -> None:
    everything = client.post("/search?k=20", content=picture).json()["results"]
    pages = [client.post(f"/search?k=6&offset={offset}", content=picture).json() for offset in (0, 6, 12, 18)]
    assert [one for page in pages for one in page["results"]] == everything
    assert [page["has_more"] for page in pages] == [True, True, True, False]


def test_the_last_page_that_may_be_asked_for_has_no_more(connect: Connect, picture: bytes) -> None:
    client = connect(Limits(offset=10))
    pages = [client.post(f"/search?k=5&offset={offset}", content=picture) for offset in (0, 5, 10, 15)]
    assert [page.status_code for page in pages] == [200, 200, 200, 422]
    assert [page.json()["has_more"] for page in pages[:3]] == [True, True, False]  # and five more are there
    by_body = [{"id": "class0/0.png", "k": k, "offset": offset} for k, offset in ((5, 5), (6, 5), (8, 10))]
    assert [client.post("/search?k=1", json=one).json()["has_more"] for one in by_body] == [True, False, False]


def test_json_wins_over_the_address(client: TestClient) -> None:
    assert len(client.post("/search?k=2", json={"id": "class0/0.png", "k": 4}).json()["results"]) == 4
    assert len(client.post("/search?k=2", json={"id": "class0/0.png"}).json()["results"]) == 2


BAD_REQUESTS: list[tuple[str, object, int, str]] = [
    ("", b"", 422, "body is empty"),
    ("", b"no picture", 422, "content decides"),
    ("", b'{"id": ', 422, "JSON"),
    ("", {}, 422, "example"),
    ("", {"id": "class0/0.png", "top": 3}, 422, "top"),
    ("", {"id": "nobody.png"}, 404, "nobody.png"),
    ("", {"id": "class0/0.png", "vector": [1.0]}, 422, "shape"),
    ("", {"vector": [1.0, 2.0]}, 422, "shape"),
    ("", {"vector": []}, 422, "vector"),
    ("", {"vector": ["a"]}, 422, "vector"),
    ("", b'{"vector": [NaN]}', 422, "vector"),
    ("", b'{"vector": [1e400]}', 422, "vector"),
    ("", {"examples": [{}]}, 422, "exactly one"),
    ("", {"examples": [{"id": "class0/0.png", "sign": "minus"}]}, 422, "wanted"),
    ("", {"examples": [{"id": "class0/0.png"}] * 17}, 422, "at most 16"),
    ("", {"examples": [{"image": "?"}]}, 422, "empty"),
    ("", {"examples": [{"image": "bm8gcGljdHVyZQ=="}]}, 422, "picture"),
    ("", {"vector": [0.5] * 64, "box": [0, 0, 4, 4]}, 422, "not to a vector"),
    ("", {"id": "class0/0.png", "box": [5, 5, 5, 9]}, 422, "box"),
    ("", {"id": "class0/0.png", "box": [500, 500, 600, 600]}, 422, "box"),
    ("", {"id": "class0/0.png", "filter": ["nonsense"]}, 422, "no filter"),
    ("", {"id": "class0/0.png", "filter": ["no_such=1"]}, 422, "no_such"),
    ("", {"id": "class0/0.png", "filter": ["copy=0"] * 17}, 422, "at most 16"),
    ("", {"id": "class0/0.png", "group_by": "no_such"}, 422, "no_such"),
    ("", {"id": "class0/0.png", "reranking": "magic"}, 422, "reranking"),
    ("?k=0", {"id": "class0/0.png"}, 422, "k"),
    ("?k=201", {"id": "class0/0.png"}, 422, "at most 200"),
    ("?k=ten", {"id": "class0/0.png"}, 422, "k"),
    ("?offset=-1", {"id": "class0/0.png"}, 422, "offset"),
    ("?offset=10001", {"id": "class0/0.png"}, 422, "at most 10,000"),
    ("?box=1,2,3", {"id": "class0/0.png"}, 422, "no box"),
    ("?box=0,0,nan,9", {"id": "class0/0.png"}, 422, "no box"),
    ("?box=0,0,1e300,9", {"id": "class0/0.png"}, 422, "no box"),
]


@pytest.mark.parametrize(("query", "body", "status", "part"), BAD_REQUESTS)
def test_bad_requests_are_refused_with_a_reason(
    client: TestClient, query: str, body: object, status: int, part: str
) -> None:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    answer = client.post(f"/search{query}", content=content)
    assert answer.status_code == status, answer.text
    assert part in answer.json()["detail"]
    assert set(answer.json()) == {"detail"}


@pytest.mark.parametrize(
    ("files", "data", "part"),
    [
        ({"picture": b"x"}, {}, "unknown form fields"),
        ({"image": b"no picture"}, {}, "content decides"),
        ({"image": b""}, {}, "example"),
        ({}, {"top": "3"}, "unknown form fields"),
        ({"image": b"x"}, {"k": "many"}, "k"),
    ],
)
def test_bad_forms_are_refused_with_a_reason(
    client: TestClient, files: dict[str, bytes], data: dict[str, str], part: str
) -> None:
    parts = {name: ("a", content) for name, content in files.items()} or {"image": ("", b"")}
    answer = client.post("/search", files=parts, data=data)
    assert answer.status_code == 422, answer.text
    assert part in answer.json()["detail"]


def test_refusals_name_no_path_of_the_server(client: TestClient, class_folder: Path) -> None:
    answer = client.post("/search", json={"id": "class0/0.png", "box": [500, 500, 600, 600]})
    assert str(class_folder) not in answer.text
    assert str(class_folder) not in client.get("/readyz").text


def test_image_is_the_file(client: TestClient, class_folder: Path) -> None:
    answer = client.get("/images/class3/2.png")
    assert answer.content == (class_folder / "class3/2.png").read_bytes()
    assert answer.headers["content-type"] == "image/png"
    assert "sandbox" in answer.headers["content-security-policy"]
    assert answer.headers["x-content-type-options"] == "nosniff"


def test_thumbnail_is_small(client: TestClient) -> None:
    answer = client.get("/thumbnails/class3/2.png?side_px=160")
    assert answer.headers["content-type"] == "image/jpeg"
    with Image.open(io.BytesIO(answer.content)) as image:
        assert image.format == "JPEG"
        assert image.size == (36, 40)  # a small picture is not enlarged
    assert client.get("/thumbnails/class3/2.png?side_px=161").status_code == 422
    assert client.get("/thumbnails/nothing.png").status_code == 404


def test_explain_gives_a_picture_or_the_matches(client: TestClient, picture: bytes) -> None:
    for answer in (
        client.get("/explain?id=class0/0.png&image_id=class0/1.png"),
        client.post("/explain?image_id=class0/1.png", content=picture),
    ):
        assert answer.headers["content-type"] == "image/jpeg", answer.text
        with Image.open(io.BytesIO(answer.content)) as image:
            assert image.width > image.height
    same = client.get("/explain?id=class0/0.png&image_id=class0/0.png&format=json").json()
    assert same["matches"]
    assert all(match["query_point"] == match["result_point"] for match in same["matches"])
    assert client.get("/explain?id=class0/0.png&image_id=nobody").status_code == 404
    assert client.get("/explain?id=nobody&image_id=class0/0.png").status_code == 404
    vector = {"vector": np.ones(64).tolist()}
    assert client.post("/explain?image_id=class0/1.png", json=vector).status_code == 422


def test_columns_are_told_with_their_kinds(client: TestClient) -> None:
    assert client.get("/columns").json() == {"columns": {"copy": "number", "label": "text"}}


@pytest.mark.parametrize(
    "condition",
    [
        "copy>=abc",
        {"column": "copy", "operator": ">=", "values": ["abc"]},
        {"column": "copy", "operator": "=", "values": [True]},
    ],
)
def test_a_condition_that_does_not_fit_its_column_is_refused(client: TestClient, condition: object) -> None:
    answer = client.post("/search", json={"id": "class0/0.png", "filter": [condition]})
    assert answer.status_code == 422
    assert "does not fit: copy is a number column; write for example copy" in answer.json()["detail"]


def test_ready_says_what_is_searched(client: TestClient, searcher: Searcher) -> None:
    ready = client.get("/readyz").json()
    assert (ready["num_images"], ready["columns"]) == (20, ["copy", "label"])
    assert ready["embedding_dim"] == searcher.encoder.embedding_dim
    assert client.get("/healthz").json() == {"status": "ok"}


def test_metrics_count_requests_and_stages(client: TestClient, picture: bytes) -> None:
    client.post("/search", content=picture)
    client.get("/images/never/there.png")
    client.get("/no/such/page/at/all")
    text = client.get("/metrics").text
    assert 'vitrieve_requests_total{method="POST",route="/search",status="200"} 1.0' in text
    assert 'route="/images/{image_id:path}",status="404"} 1.0' in text
    assert 'route="unmatched",status="404"} 1.0' in text
    assert 'vitrieve_stage_seconds_count{stage="encode"} 1.0' in text
    assert "no/such/page" not in text  # or strangers could fill the memory with names


def test_every_answer_has_the_security_headers(client: TestClient, picture: bytes) -> None:
    answers = [
        client.get("/"),
        client.get("/healthz"),
        client.post("/search", content=picture),
        client.get("/static/page.js"),
        client.get("/nowhere"),
        client.post("/search", content=b"bad"),
    ]
    for answer in answers:
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert "default-src 'none'" in answer.headers["content-security-policy"]
        assert answer.headers["x-frame-options"] == "DENY"
        assert len(answer.headers["x-request-id"]) == 16
        assert "access-control-allow-origin" not in answer.headers
        assert "unsafe" not in answer.headers["content-security-policy"]


def test_a_fault_of_ours_is_answered_without_its_cause(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("the secret cause")

    monkeypatch.setattr(client.app.state.service.bodies, "receive", fail)
    answer = client.post("/search", content=b"x")
    assert answer.status_code == 500
    assert "secret cause" not in answer.text
    assert answer.headers["x-request-id"] in answer.json()["detail"]
    assert answer.headers["x-frame-options"] == "DENY"
