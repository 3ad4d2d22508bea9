"""An index that is replaced, deleted or damaged under a running service."""

from __future__ import annotations

import gc
import os
import shutil
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from tests.serve.services import SMALL
from tests.serve.test_pages import HTML, read_forms
from vitrieve.data.records import ImageRecord
from vitrieve.embed.embeddings import Embeddings
from vitrieve.index.open import build_index
from vitrieve.index.store import StoreKind
from vitrieve.runtime.encoder import Encoder, load_encoder
from vitrieve.search.searcher import Searcher
from vitrieve.serve import service
from vitrieve.serve.app import create_app

WAIT_SECONDS = 300


@pytest.fixture(params=["exact", "lance"])
def store_kind(request: pytest.FixtureRequest) -> StoreKind:
    return request.param  # type: ignore[no-any-return]


def build(folder: Path, encoder: Encoder, pictures: Path, kind: StoreKind, name: str) -> None:
    paths = sorted(pictures.rglob("*.png"))[:6]
    records = [
        ImageRecord(image_id=f"{name}{row}.png", path=path, label=0, split="test", metadata={name: "yes"})
        for row, path in enumerate(paths)
    ]
    embeddings = Embeddings(
        vectors=encoder.encode([path_to_picture(path) for path in paths]),
        records=tuple(records),
        failures=(),
        fingerprint=encoder.fingerprint,
        encoder_source=encoder.source,
        image_size=encoder.preprocessing.image_size,
        license="",
    )
    build_index(embeddings, folder, store=kind, overwrite=True).close()


def path_to_picture(path: Path):  # type: ignore[no-untyped-def]
    from vitrieve.data.decode import decode_image

    return decode_image(path.read_bytes())


@pytest.fixture
def client(
    tmp_path: Path,
    tiny_encoder_folder: Path,
    class_folder: Path,
    store_kind: StoreKind,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[TestClient]:
    monkeypatch.setattr(service, "REOPEN_PAUSE_SECONDS", 0.0)
    encoder = load_encoder(tiny_encoder_folder, engine="onnx", num_threads=1)
    build(tmp_path / "index", encoder, class_folder, store_kind, "old")
    searcher = Searcher.open(tmp_path / "index", encoder, engine="torch", num_threads=1)
    with TestClient(create_app(searcher, limits=SMALL), raise_server_exceptions=False) as client:
        wait_until_ready(client)
        yield client
    searcher.store.close()


def wait_until_ready(client: TestClient) -> dict[str, object]:
    until = time.monotonic() + WAIT_SECONDS
    while (answer := client.get("/readyz")).status_code == 503 and time.monotonic() < until:
        time.sleep(0.01)
    assert answer.status_code == 200, answer.text
    return answer.json()  # type: ignore[no-any-return]


def check_unavailable(client: TestClient, picture: bytes, folder: Path) -> None:
    for answer in (
        client.get("/readyz"),
        client.get("/"),
        client.get("/images/old0.png"),
        client.get("/thumbnails/old1.png"),
        client.post("/search", content=picture),
        client.post("/search", json={"id": "old0.png"}),
    ):
        assert answer.status_code == 503, answer.text
        assert answer.headers["Retry-After"]
        assert str(folder) not in answer.text
    assert client.get("/healthz").status_code == 200


@pytest.mark.parametrize("image_size", [32, 48])
def test_trap_a_replaced_index_is_loaded_and_never_mixed_with_the_old_one(
    client: TestClient,
    picture: bytes,
    store_kind: StoreKind,
    image_size: int,
    tmp_path: Path,
    tiny_encoder_folder: Path,
    class_folder: Path,
) -> None:
    """At another input size the encoder is another one: its fingerprint says so."""
    encoder = load_encoder(tiny_encoder_folder, image_size=image_size, engine="torch", num_threads=1)
    build(tmp_path / "index", encoder, class_folder, store_kind, "new")
    answer = client.post("/search?k=3", content=picture)
    assert answer.status_code == 200, answer.text
    assert {result["image_id"][:3] for result in answer.json()["results"]} == {"new"}
    ready = wait_until_ready(client)
    assert (ready["encoder_fingerprint"], ready["columns"]) == (encoder.fingerprint, ["new"])
    found = client.post("/search?k=3", content=picture).json()["results"]
    assert {result["image_id"][:3] for result in found} == {"new"}
    assert client.get("/thumbnails/old1.png").status_code == 404


def test_trap_an_index_that_is_gone_is_told_and_found_again(client: TestClient, picture: bytes, tmp_path: Path) -> None:
    (tmp_path / "index").rename(tmp_path / "elsewhere")
    check_unavailable(client, picture, tmp_path)
    for path in ("/", "/compare"):  # the forms of the page choose results as its address does
        answer = client.get(f"{path}?plus=old0.png&image_id=old1.png&k=48&filter=old%3Dyes", headers=HTML)
        assert answer.status_code == 503
        for form in read_forms(answer.text):
            assert form.fields[:2] == [("filter", "old=yes"), ("k", "48")]
    (tmp_path / "elsewhere").rename(tmp_path / "index")
    assert wait_until_ready(client)["num_images"] == 6
    assert client.post("/search", content=picture).status_code == 200


def test_an_index_restored_from_a_copy_is_loaded(client: TestClient, picture: bytes, tmp_path: Path) -> None:
    shutil.copytree(tmp_path / "index", tmp_path / "copy")
    shutil.rmtree(tmp_path / "index")
    check_unavailable(client, picture, tmp_path)
    (tmp_path / "copy").rename(tmp_path / "index")
    os.utime(tmp_path / "index" / "manifest.json", ns=(0, 0))
    assert wait_until_ready(client)["num_images"] == 6


def test_under_load_no_request_fails_while_the_index_is_replaced(
    client: TestClient,
    picture: bytes,
    store_kind: StoreKind,
    tmp_path: Path,
    tiny_encoder_folder: Path,
    class_folder: Path,
) -> None:
    """The encoder changes twice and the index five times, and every answer is that of one index."""
    names = ["old", "one", "two", "six", "ten", "end"]
    is_over, seen = threading.Event(), set[frozenset[str]]()

    def ask(number: int) -> list[tuple[int, frozenset[str]]]:
        answers = []
        while not is_over.is_set():
            if number % 2:
                answer = client.post("/search?k=3", content=picture)
                found = frozenset(result["image_id"][:3] for result in answer.json().get("results", ()))
            else:
                answer = client.get("/readyz")
                found = frozenset(answer.json().get("columns", ()))
            answers.append((answer.status_code, found))
            seen.add(found)
        return answers

    with ThreadPoolExecutor(4) as pool:
        asking = [pool.submit(ask, number) for number in range(4)]
        try:
            wait_until(lambda: frozenset(["old"]) in seen)
            for number, name in enumerate(names[1:]):
                image_size = 48 if number in (1, 2) else 32
                encoder = load_encoder(tiny_encoder_folder, image_size=image_size, engine="torch", num_threads=1)
                build(tmp_path / "index", encoder, class_folder, store_kind, name)
                wait_until(lambda name=name: frozenset([name]) in seen)  # by those who ask
        finally:
            is_over.set()
        answers = [answer for one in asking for answer in one.result()]
    assert {status for status, _ in answers} == {200}
    assert {found for _, found in answers} == {frozenset([name]) for name in names}


def wait_until(is_true: Callable[[], bool]) -> None:
    until = time.monotonic() + WAIT_SECONDS
    while not is_true():
        assert time.monotonic() < until
        time.sleep(0.01)


def wait_for_columns(client: TestClient, name: str) -> None:
    wait_until(lambda: client.get("/readyz").json().get("columns") == [name])


def test_the_copy_of_an_index_that_was_replaced_is_let_go(
    tmp_path: Path, tiny_encoder_folder: Path, class_folder: Path, store_kind: StoreKind
) -> None:
    """The copy in memory of the index before must not stay for as long as the service runs."""
    encoder = load_encoder(tiny_encoder_folder, engine="onnx", num_threads=1)
    build(tmp_path / "index", encoder, class_folder, store_kind, "old")
    searcher = Searcher.open(tmp_path / "index", encoder, num_threads=1)
    with TestClient(create_app(searcher, limits=SMALL)) as client:
        wait_until_ready(client)
        copy = _find_copy(searcher.store)
        assert copy() is not None
        build(tmp_path / "index", encoder, class_folder, store_kind, "new")
        wait_for_columns(client, "new")

        def is_let_go() -> bool:
            gc.collect()
            return copy() is None

        wait_until(is_let_go)  # a thread that has answered may still hold it
    searcher.close()


def test_a_searcher_of_two_services_is_replaced_in_both(
    tmp_path: Path, tiny_encoder_folder: Path, class_folder: Path, store_kind: StoreKind, picture: bytes
) -> None:
    """The first that notices closes what both were given; the other one opens the new index all the same."""
    encoder = load_encoder(tiny_encoder_folder, engine="onnx", num_threads=1)
    build(tmp_path / "index", encoder, class_folder, store_kind, "old")
    with (
        Searcher.open(tmp_path / "index", encoder, num_threads=1) as searcher,
        TestClient(create_app(searcher, limits=SMALL)) as one,
        TestClient(create_app(searcher, limits=SMALL)) as other,
    ):
        for client in (one, other):
            wait_until_ready(client)
        build(tmp_path / "index", encoder, class_folder, store_kind, "new")
        for client in (one, other):
            answer = client.post("/search?k=3", content=picture)
            assert answer.status_code == 200, answer.text
            assert {result["image_id"][:3] for result in answer.json()["results"]} == {"new"}
            wait_for_columns(client, "new")


def _find_copy(store: Any) -> weakref.ref[object]:
    if store.info.kind == "exact":
        return weakref.ref(store._current[1].parts[0].segment.vectors)
    return weakref.ref(store._copy._loaded[1])
