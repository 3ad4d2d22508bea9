"""Changes over HTTP: who may make them, what becomes of the index and the files, and the line that each leaves."""

from __future__ import annotations

import io
import os
import shutil
import threading
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from PIL import Image
from starlette.testclient import TestClient

from tests.serve.conftest import Server, make_picture
from tests.serve.services import SMALL, enter_service, read_lines
from tests.serve.test_openapi import BEFORE_THE_APPLICATION, CHECKS
from vitrieve.cli.main import main
from vitrieve.data.records import ImageRecord
from vitrieve.errors import ArtifactError, DiskFullError
from vitrieve.index.open import create_index, open_index
from vitrieve.index.store import StoreKind, read_info
from vitrieve.index.written import get_audit_file, get_pictures_folder
from vitrieve.runtime.encoder import load_encoder
from vitrieve.search.searcher import Searcher
from vitrieve.serve import changes
from vitrieve.serve.app import create_app
from vitrieve.serve.changes import Change, Changes
from vitrieve.serve.settings import Limits
from vitrieve.serve.writing import MAX_BATCH
from vitrieve.syncing.sync import sync

READ, WRITE = "a-token-to-read-only", "a-token-to-write-too"
WRITER = {"Authorization": f"Bearer {WRITE}"}
READER = {"Authorization": f"Bearer {READ}"}
Start = Callable[..., TestClient]


@pytest.fixture
def folder(index_folder: Path, tmp_path: Path) -> Path:
    shutil.copytree(index_folder, tmp_path / "index")
    return tmp_path / "index"


@pytest.fixture
def start(folder: Path, tiny_encoder_folder: Path) -> Iterator[Start]:
    """Start another service of the same index, as a process of its own would be."""
    with ExitStack() as running:

        def begin(index: Path = folder, limits: Limits = SMALL, write_token: str | None = WRITE) -> TestClient:
            encoder = load_encoder(tiny_encoder_folder, engine="onnx", num_threads=1)
            return enter_service(running, index, encoder, limits=limits, token=READ, write_token=write_token)

        yield begin


def find_first(client: TestClient, picture: bytes) -> dict[str, object]:
    answer = client.post("/search?k=1", content=picture, headers=READER)
    return answer.json()["results"][0]  # type: ignore[no-any-return]


def test_a_picture_comes_changes_and_goes_and_every_service_sees_it(start: Start, folder: Path) -> None:
    one, other = start(), start()
    blue, red = make_picture((50, 40)), make_picture((30, 60), "JPEG")
    put = one.put("/images/new/blue ü.png", content=blue, headers=WRITER)
    assert (put.status_code, put.json()) == (201, {"image_id": "new/blue ü.png", "status": "created", "metadata": {}})
    for client in (one, other):
        found = find_first(client, blue)
        assert found["image_id"] == "new/blue ü.png"
        assert found["score"] == pytest.approx(1.0, abs=1e-3)
        assert client.get("/images/new/blue ü.png", headers=READER).content == blue
        assert client.get("/thumbnails/new/blue ü.png", headers=READER).status_code == 200
    patched = other.patch(
        "/images/new/blue ü.png", json={"metadata": {"color": "blue", "label": "New"}}, headers=WRITER
    )
    assert patched.json()["metadata"] == {"color": "blue", "label": "New"}
    search = {"id": "class0/0.png", "filter": ["color=blue"]}
    assert [one["image_id"] for one in other.post("/search", json=search, headers=READER).json()["results"]] == [
        "new/blue ü.png"
    ]
    words = one.post("/search", json={"text": "blue", "k": 1}, headers=READER).json()
    assert words["results"][0]["image_id"] == "new/blue ü.png"
    body = {"image": b64encode(red).decode(), "metadata": {"label": None, "year": "2026"}}
    replaced = one.put("/images/new/blue ü.png", json=body, headers=WRITER)
    assert (replaced.status_code, replaced.json()["status"]) == (200, "replaced")
    assert replaced.json()["metadata"] == {"color": "blue", "year": "2026"}
    assert other.get("/images/new/blue ü.png", headers=READER).content == red
    assert len([path for path in get_pictures_folder(folder).iterdir() if path.name != ".lock"]) == 1
    gone = other.delete("/images/new/blue ü.png", headers=WRITER)
    assert gone.json() == {"image_id": "new/blue ü.png", "status": "deleted", "metadata": {}}
    for client in (one, other):
        assert client.get("/images/new/blue ü.png", headers=READER).status_code == 404
        assert client.delete("/images/new/blue ü.png", headers=WRITER).status_code == 404
    assert [path.name for path in get_pictures_folder(folder).iterdir()] == [".lock"]
    lines = read_lines(folder)
    assert [(line["what"], line["status"]) for line in lines] == [
        ("put", "created"),
        ("patch", "updated"),
        ("put", "replaced"),
        ("delete", "deleted"),
    ]
    assert [line["request_id"] for line in lines] == [
        answer.headers["x-request-id"] for answer in (put, patched, replaced, gone)
    ]
    assert {line["token"] for line in lines} != {WRITE}
    assert WRITE not in get_audit_file(folder).read_text()
    assert get_audit_file(folder).stat().st_mode & 0o077 == 0
    store = open_index(folder)
    assert store.verify() == []
    store.close()


def test_a_file_of_somebody_else_is_never_touched(start: Start, folder: Path, class_folder: Path) -> None:
    client = start()
    own = class_folder / "class0" / "0.png"
    before = own.read_bytes()
    assert client.put("/images/class0/0.png", content=make_picture(), headers=WRITER).json()["status"] == "replaced"
    assert client.get("/images/class0/0.png", headers=READER).content == make_picture()
    assert client.delete("/images/class0/0.png", headers=WRITER).status_code == 200
    assert client.delete("/images/class0/1.png", headers=WRITER).status_code == 200
    assert own.read_bytes() == before
    assert (class_folder / "class0" / "1.png").exists()


@pytest.mark.parametrize("image_id", ["../../escape.png", "/etc/passwd", "a\nb", "..", "x" * 3000, "ä/ö ü.png"])
def test_no_name_becomes_a_path(image_id: str, start: Start, folder: Path) -> None:
    client = start()
    around = sorted(path.name for path in folder.parent.iterdir())
    answer = client.put("/images", params={"image_id": image_id}, content=make_picture(), headers=WRITER)
    assert answer.status_code == 201
    assert answer.json()["image_id"] == image_id
    assert sorted(path.name for path in folder.parent.iterdir()) == sorted(
        [*around, "index.pictures", "index.audit.jsonl"]
    )
    kept = [path.name for path in get_pictures_folder(folder).iterdir() if path.name != ".lock"]
    assert len(kept) == 1
    assert set(kept[0]) <= set("0123456789abcdef-")
    assert client.get("/images", params={"image_id": image_id}, headers=READER).content == make_picture()
    assert client.delete("/images", params={"image_id": image_id}, headers=WRITER).status_code == 200


def test_only_the_token_for_writing_changes_anything(start: Start, folder: Path) -> None:
    client = start()
    picture = make_picture()

    def ask(headers: dict[str, str], client: TestClient = client) -> list[int]:
        return [
            client.put("/images/a.png", content=picture, headers=headers).status_code,
            client.patch("/images/class0/0.png", json={"metadata": {}}, headers=headers).status_code,
            client.delete("/images/class0/0.png", headers=headers).status_code,
            client.post("/images:batch", json={"changes": []}, headers=headers).status_code,
        ]

    assert ask({}) == [401] * 4
    assert ask({"Authorization": "Bearer wrong"}) == [401] * 4
    assert ask(READER) == [403] * 4
    signed_in = client.post("/login", files={"token": (None, READ), "after": (None, "/")}, follow_redirects=False)
    assert signed_in.status_code == 303
    assert 200 not in ask({})  # the cookie of a page opens nothing
    client.cookies.clear()
    assert ask({**WRITER, "Origin": "https://evil.example"}) == [403] * 4
    assert client.post("/search", content=picture, headers=WRITER).status_code == 200  # it reads, too
    assert not get_audit_file(folder).exists()
    assert ask(READER, start(write_token=None)) == [403] * 4


@pytest.mark.parametrize(
    ("method", "path", "content", "status", "part"),
    [
        ("PUT", "/images/a.png", b"", 422, "empty"),
        ("PUT", "/images/a.png", b"no picture", 422, "no readable picture"),
        ("PUT", "/images/a.png", b'{"metadata": {}}', 422, "image"),
        ("PUT", "/images/a.png", b'{"image": "eA==", "path": "/etc/passwd"}', 422, "path"),
        ("PUT", "/images/a%00.png", make_picture(), 422, "NUL"),
        ("PATCH", "/images/class0/0.png", b'{"metadata": {"": "x"}}', 422, "need a name"),
        ("PATCH", "/images/class0/0.png", b'{"metadata": {"a": 1}}', 422, "metadata"),
        ("PATCH", "/images/class0/0.png", b"{}", 422, "metadata"),
        ("PATCH", "/images/none.png", b'{"metadata": {"a": "1"}}', 404, "no image"),
        ("POST", "/images:batch", b'{"changes": []}', 422, "changes"),
    ],
)
def test_what_does_not_fit_is_refused_and_changes_nothing(
    method: str, path: str, content: bytes, status: int, part: str, start: Start, folder: Path
) -> None:
    client = start()
    answer = client.request(method, path, content=content, headers=WRITER)
    assert (answer.status_code, part in answer.json()["detail"]) == (status, True), answer.text
    assert not get_audit_file(folder).exists()
    assert client.get("/readyz", headers=READER).json()["num_images"] == 20


def test_a_batch_makes_what_can_be_made_in_order(start: Start, folder: Path) -> None:
    client = start()
    picture = b64encode(make_picture()).decode()
    asked = [
        {"do": "put", "image_id": "a.png", "image": picture, "metadata": {"n": "1"}},
        {"do": "put", "image_id": "b.png", "image": b64encode(b"none").decode()},
        {"do": "patch", "image_id": "a.png", "metadata": {"n": "2"}},
        {"do": "delete", "image_id": "no.png"},
        {"do": "put", "image_id": "c.png"},
        {"do": "delete", "image_id": "class4/3.png"},
    ]
    answer = client.post("/images:batch", json={"changes": asked}, headers=WRITER).json()
    assert [one["status"] for one in answer["results"]] == [
        *("created", "refused", "updated", "refused", "refused", "deleted")
    ]
    assert answer["num_refused"] == 3
    assert client.get("/readyz", headers=READER).json()["num_images"] == 20
    assert [line["image_id"] for line in read_lines(folder)] == ["a.png", "a.png", "class4/3.png"]


def test_a_batch_of_many_columns_is_made(start: Start) -> None:
    metadata = {f"column {number}": "10:30" for number in range(20)}
    asked = [{"do": "patch", "image_id": "class0/0.png", "metadata": metadata} for _ in range(MAX_BATCH)]
    answer = start().post("/images:batch", json={"changes": asked}, headers=WRITER)
    assert (answer.status_code, answer.json()["num_refused"]) == (200, 0)


def test_a_batch_that_fails_in_the_middle_says_what_was_made(start: Start, folder: Path) -> None:
    client = start(limits=Limits(free_bytes=2**62))
    patch = {"do": "patch", "image_id": "class0/0.png", "metadata": {"n": "1"}}
    unknown = {"do": "delete", "image_id": "no.png"}
    put = {"do": "put", "image_id": "a.png", "image": b64encode(make_picture()).decode()}
    later = {"do": "delete", "image_id": "class4/3.png"}
    answer = client.post("/images:batch", json={"changes": [patch, unknown, put, later, unknown]}, headers=WRITER)
    assert answer.status_code == 200, answer.text
    results = answer.json()["results"]
    assert [one["status"] for one in results] == ["updated", "refused", "refused", "not_tried", "not_tried"]
    assert [one["image_id"] for one in results[2:]] == ["a.png", "class4/3.png", "no.png"]
    assert "disk is nearly full" in results[2]["detail"]
    assert "'a.png' met a failure of the server" in results[3]["detail"]
    assert answer.json()["num_refused"] == 4
    assert [line["image_id"] for line in read_lines(folder)] == ["class0/0.png"]
    whole = client.post("/images:batch", json={"changes": [unknown, put, patch]}, headers=WRITER)
    assert whole.status_code == 507, "nothing was made before it"
    assert len(read_lines(folder)) == 1


@pytest.mark.parametrize(
    ("error", "part"),
    [
        (MemoryError(), "memory"),
        (ArtifactError("/a/path is damaged"), "the index is gone, damaged"),
        (DiskFullError("/a/path cannot be written"), "the disk is full"),
        (OSError(5, "Input/output error", "/a/path"), "the server failed; its log says why"),
    ],
)
def test_whatever_fails_in_a_batch_is_told_after_what_was_made(
    error: Exception, part: str, start: Start, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, begin = start(), Changes.encode

    def fail(self: Changes, change: Change) -> np.ndarray | None:
        if change.image_id == "class0/1.png":
            raise error
        return begin(self, change)

    monkeypatch.setattr(Changes, "encode", fail)
    asked = [{"do": "delete", "image_id": f"class0/{number}.png"} for number in range(3)]
    answer = client.post("/images:batch", json={"changes": asked}, headers=WRITER)
    assert [one["status"] for one in answer.json()["results"]] == ["deleted", "refused", "not_tried"], answer.text
    assert part in answer.json()["results"][1]["detail"]
    assert "/a/path" not in answer.text
    assert [line["image_id"] for line in read_lines(folder)] == ["class0/0.png"]


def test_the_bounds_of_changes(start: Start, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    client = start(limits=Limits(writes_per_minute=3, free_bytes=1))
    tries = [client.patch("/images/class0/0.png", json={"metadata": {"n": str(n)}}, headers=WRITER) for n in range(4)]
    assert [answer.status_code for answer in tries] == [200, 200, 200, 429]
    assert 1 <= int(tries[-1].headers["retry-after"]) <= 21
    full = start(limits=Limits(free_bytes=2**62))
    assert full.put("/images/a.png", content=make_picture(), headers=WRITER).status_code == 507
    assert full.patch("/images/class0/0.png", json={"metadata": {"m": "1"}}, headers=WRITER).status_code == 200
    monkeypatch.setattr(changes, "MAX_COLUMNS", 4)
    assert full.patch("/images/class0/0.png", json={"metadata": {"o": "1"}}, headers=WRITER).status_code == 422
    assert full.patch("/images/class0/0.png", json={"metadata": {"m": "2"}}, headers=WRITER).status_code == 200
    monkeypatch.setattr(changes, "AUDIT_BYTES", 10)
    assert full.patch("/images/class0/0.png", json={"metadata": {"m": "3"}}, headers=WRITER).status_code == 200
    assert len(read_lines(folder)) == 1
    assert get_audit_file(folder).with_name("index.audit.jsonl.1").exists()


def test_a_batch_of_more_than_a_minute_s_changes_is_refused_for_good(start: Start) -> None:
    """To be told to come again would be wrong: there is never room for it."""
    client = start(limits=Limits(writes_per_minute=3, free_bytes=1))
    changes = [{"do": "delete", "image_id": f"class0/{number}.png"} for number in range(4)]
    refused = client.post("/images:batch", json={"changes": changes}, headers=WRITER)
    assert (refused.status_code, "at most 3" in refused.json()["detail"]) == (422, True), refused.text
    whole = client.post("/images:batch", json={"changes": changes[:3]}, headers=WRITER)
    assert (whole.status_code, whole.json()["num_refused"]) == (200, 0)


def test_without_a_record_nothing_is_changed(start: Start, folder: Path) -> None:
    client = start()
    get_audit_file(folder).mkdir()
    answer = client.delete("/images/class0/0.png", headers=WRITER)
    assert (answer.status_code, "record of changes" in answer.json()["detail"]) == (409, True)
    assert client.get("/images/class0/0.png", headers=READER).status_code == 200


def test_changes_of_many_at_once_lose_nothing(start: Start, folder: Path) -> None:
    clients = [start() for _ in range(2)]
    statuses: list[int] = []

    def change(number: int) -> None:
        body = {"metadata": {f"column{number}": str(number)}}
        answer = clients[number % 2].patch("/images/class1/1.png", json=body, headers=WRITER)
        statuses.append(answer.status_code)

    threads = [threading.Thread(target=change, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert statuses == [200] * 12
    store = open_index(folder)
    (record,) = store.get(["class1/1.png"])[1]
    assert {f"column{number}": str(number) for number in range(12)}.items() <= dict(record.metadata).items()
    store.close()
    assert len(read_lines(folder)) == 12


@pytest.mark.parametrize("kind", ["exact", "lance"])
def test_sync_leaves_alone_what_was_sent_and_owns_the_rest(
    kind: StoreKind, start: Start, class_folder: Path, tiny_encoder_folder: Path, tmp_path: Path
) -> None:
    photographs, index = tmp_path / "photographs", tmp_path / "followed"
    shutil.copytree(class_folder, photographs)
    encoder = load_encoder(tiny_encoder_folder, engine="onnx", num_threads=1)
    sync(photographs, index, encoder, store=kind)
    client = start(index)
    assert client.put("/images/sent.png", content=make_picture(), headers=WRITER).status_code == 201
    for answer in (
        client.put("/images/class0/0.png", content=make_picture(), headers=WRITER),
        client.delete("/images/class0/0.png", headers=WRITER),
        client.patch("/images/class0/0.png", json={"metadata": {"a": "b"}}, headers=WRITER),
    ):
        assert (answer.status_code, "vitrieve sync" in answer.json()["detail"]) == (409, True)
    (photographs / "class0" / "0.png").unlink()
    (photographs / "another.png").write_bytes(make_picture((80, 80)))
    report = sync(photographs, index, encoder)
    assert (report.num_removed, report.num_embedded, report.num_indexed) == (1, 1, 21)
    assert client.patch("/images/sent.png", json={"metadata": {"a": "b"}}, headers=WRITER).status_code == 200
    assert not sync(photographs, index, encoder).is_changed
    assert client.get("/images/sent.png", headers=READER).content == make_picture()
    assert client.get("/images/another.png", headers=READER).status_code == 200
    file = io.BytesIO()
    Image.linear_gradient("L").convert("RGB").save(file, format="PNG")
    gradient = file.getvalue()
    assert find_first(client, gradient)["score"] != pytest.approx(1.0, abs=1e-3)
    replaced = client.put("/images/sent.png", content=gradient, headers=WRITER)
    assert (replaced.json()["status"], replaced.json()["metadata"]) == ("replaced", {"a": "b"})
    found = find_first(client, gradient)
    assert (found["image_id"], found["score"]) == ("sent.png", pytest.approx(1.0, abs=1e-3))
    assert client.delete("/images/sent.png", headers=WRITER).json()["status"] == "deleted"
    assert client.get("/images/sent.png", headers=READER).status_code == 404
    assert client.get("/images/another.png", headers=READER).status_code == 200


def test_an_empty_index_fills_and_keeps_its_encoder(
    folder: Path, start: Start, tiny_encoder_folder: Path, tmp_path: Path
) -> None:
    info, _ = read_info(folder)
    create_index(info, tmp_path / "empty").close()
    client = start(tmp_path / "empty")
    assert client.put("/images/a.png", content=make_picture(), headers=WRITER).status_code == 201
    store = open_index(tmp_path / "empty")
    vectors, records = store.get(["a.png"])
    encoder = load_encoder(tiny_encoder_folder, engine="onnx", num_threads=1)
    np.testing.assert_allclose(vectors, encoder.encode([make_picture()]), atol=1e-6)
    assert isinstance(records[0], ImageRecord)
    assert store.info.fingerprint == encoder.fingerprint
    store.close()


@pytest.mark.parametrize(
    ("path", "method"),
    [
        *(("/images/{image_id}", method) for method in ("PUT", "PATCH", "DELETE")),
        *(("/images", method) for method in ("PUT", "PATCH", "DELETE")),
        ("/images:batch", "POST"),
    ],
)
@pytest.mark.parametrize("mode", list(schemathesis.GenerationMode), ids=lambda mode: mode.value)
def test_no_answer_is_undocumented(
    path: str, method: str, mode: schemathesis.GenerationMode, writing_server: Server
) -> None:
    schema = schemathesis.openapi.from_url(f"{writing_server.address}/openapi.json", headers=WRITER)
    operation = schema[path][method]

    @given(case=operation.as_strategy(generation_mode=mode))
    @settings(max_examples=15, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))
    def check(case: schemathesis.Case) -> None:
        answer = case.call(headers=WRITER)
        if answer.status_code == 400 and answer.content == BEFORE_THE_APPLICATION:
            return
        case.validate_response(answer, checks=CHECKS)

    if mode == schemathesis.GenerationMode.NEGATIVE and (path, method) == ("/images/{image_id}", "DELETE"):
        pytest.skip("no value could break the document: it takes any text")
    check()


@pytest.fixture(scope="module")
def writing_server(
    index_folder: Path, tiny_encoder_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("written") / "index"
    shutil.copytree(index_folder, folder)
    searcher = Searcher.open(folder, load_encoder(tiny_encoder_folder, engine="onnx", num_threads=1))
    limits = Limits(writes_per_minute=100_000, free_bytes=1)
    server = Server(create_app(searcher, limits=limits, token=READ, write_token=WRITE))
    yield server
    server.stop()
    searcher.close()


@pytest.mark.parametrize(
    ("words", "variable", "part"),
    [
        (["--write-token", "short"], "", "write token has 5 characters"),
        ([], "short", "write token has 5 characters"),
        (["--write-token", "x" * 20, "--token", "x" * 20], "", "two that differ"),
        (["--write-token", "x" * 20, "--map-path", "/a=/b"], "", "do not go together"),
    ],
)
def test_wrong_tokens_are_told(
    words: list[str], variable: str, part: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(os.environ, "VITRIEVE_WRITE_TOKEN", variable)
    monkeypatch.delenv("VITRIEVE_TOKEN", raising=False)
    assert main(["serve", "--index", "/nowhere", *words]) == 2
    assert part in capsys.readouterr().err
