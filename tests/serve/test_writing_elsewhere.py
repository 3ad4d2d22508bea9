"""Changes of an index on a server, beside a sync that runs, and by a process that is killed in the middle."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from tests.index import postgres as postgres_server
from tests.index.milvus_lite import Server as MilvusServer
from tests.serve.conftest import make_picture
from tests.serve.services import SMALL, enter_service, read_lines
from vitrieve.index.open import open_index
from vitrieve.index.written import get_audit_file, get_pictures_folder, locking_writes
from vitrieve.runtime.encoder import Encoder, load_encoder
from vitrieve.search.searcher import Searcher
from vitrieve.serve import changes
from vitrieve.serve.changes import Author, Change, Changes
from vitrieve.syncing.scan import scan_collection
from vitrieve.syncing.sync import NewIndex, open_synced, sync, sync_collection

WRITE = "a-token-to-write-here"
WRITER = {"Authorization": f"Bearer {WRITE}"}
AUTHOR = Author(token="t", address="a", request_id="r")
Start = Callable[[Path], TestClient]


@pytest.fixture(scope="module")
def encoder(tiny_encoder_folder: Path) -> Encoder:
    return load_encoder(tiny_encoder_folder, engine="onnx", num_threads=1)


@pytest.fixture(scope="module")
def postgres() -> Iterator[NewIndex]:
    server = postgres_server.Server()
    yield NewIndex(kind="pgvector", uri=server.uri)
    server.remove()


@pytest.fixture(scope="module")
def milvus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NewIndex]:
    pytest.importorskip("milvus_lite", reason="needs milvus-lite")
    server = MilvusServer(tmp_path_factory.mktemp("milvus") / "data")
    yield NewIndex(kind="milvus", uri=server.uri)
    server.kill()


@pytest.fixture
def start(encoder: Encoder) -> Iterator[Start]:
    with ExitStack() as running:
        yield lambda index: enter_service(running, index, encoder, write_token=WRITE)


def list_kept(index: Path) -> list[str]:
    return sorted(path.name for path in get_pictures_folder(index).iterdir() if path.name != ".lock")


@pytest.mark.parametrize("place", ["postgres", "milvus"])
def test_an_index_on_a_server_takes_changes_and_a_sync_at_the_same_time(
    place: str, start: Start, class_folder: Path, tmp_path: Path, encoder: Encoder, request: pytest.FixtureRequest
) -> None:
    """Two services and a sync change it at once: no change is lost, and each has its line."""
    photographs, index = tmp_path / "photographs", tmp_path / "index"
    shutil.copytree(class_folder, photographs)
    where: NewIndex = request.getfixturevalue(place)
    sync(photographs, index, encoder, store=where)
    one, other = start(index), start(index)
    assert one.put("/images/sent.png", content=make_picture(), headers=WRITER).status_code == 201
    assert other.get("/images/sent.png").content == make_picture()
    for number in range(3):
        (photographs / f"new{number}.png").write_bytes(make_picture((60, 40 + number)))
    (photographs / "class0" / "0.png").unlink()
    statuses: list[int] = []

    def change(number: int) -> None:
        client = (one, other)[number % 2]
        statuses.append(
            client.patch("/images/sent.png", json={"metadata": {f"c{number}": "x"}}, headers=WRITER).status_code
        )
        put = client.put(f"/images/sent{number}.png", content=make_picture((40, 41 + number)), headers=WRITER)
        statuses.append(put.status_code)

    threads = [threading.Thread(target=change, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    report = sync(photographs, index, encoder)
    for thread in threads:
        thread.join()
    assert sorted(statuses) == [200] * 4 + [201] * 4
    assert (report.num_embedded, report.num_removed) == (3, 1)
    store = open_index(index)
    names = {"sent.png", *(f"sent{number}.png" for number in range(4)), *(f"new{number}.png" for number in range(3))}
    assert names <= set(store.image_ids())
    assert store.count() == 20 - 1 + len(names)
    assert {f"c{number}" for number in range(4)} <= set(store.get(["sent.png"])[1][0].metadata)
    store.close()
    assert len(read_lines(index)) == 9
    assert not sync(photographs, index, encoder).is_changed  # nothing of the service's was touched
    gone = other.delete("/images/sent.png", headers=WRITER)
    assert (gone.status_code, one.get("/images/sent.png").status_code) == (200, 404)
    assert len(list_kept(index)) == 4


def test_a_sync_waits_for_a_change_and_a_folder_wins(
    start: Start, class_folder: Path, tmp_path: Path, encoder: Encoder
) -> None:
    photographs, index = tmp_path / "photographs", tmp_path / "index"
    shutil.copytree(class_folder, photographs)
    sync(photographs, index, encoder, store="exact")
    client = start(index)
    assert client.put("/images/both.png", content=make_picture(), headers=WRITER).status_code == 201
    (photographs / "both.png").write_bytes(make_picture((90, 30)))
    store = open_index(index)
    with locking_writes(index, store, seconds=1):
        syncing = threading.Thread(target=sync, args=(photographs, index, encoder))
        syncing.start()
        syncing.join(0.5)
        assert syncing.is_alive()
        assert store.get(["both.png"])[1][0].path.parent == get_pictures_folder(index)
    syncing.join()
    store.close()
    assert client.get("/images/both.png").content == make_picture((90, 30))
    refused = client.put("/images/both.png", content=make_picture(), headers=WRITER)
    assert (refused.status_code, "vitrieve sync" in refused.json()["detail"]) == (409, True)
    assert len(list_kept(index)) == 1  # what was sent is still there


KILLED = """
import os, signal, sys
from pathlib import Path
from vitrieve.runtime.encoder import load_encoder
from vitrieve.search.searcher import Searcher
from vitrieve.serve import changes
from vitrieve.serve.changes import Author, Change, Changes
from vitrieve.serve.settings import Limits

index, encoder, place, picture = map(Path, sys.argv[1:])
end = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)
searcher = Searcher.open(index, load_encoder(encoder, engine="onnx", num_threads=1))
made = Changes(searcher, Limits(free_bytes=1))
if str(place) == "before the change":
    type(searcher.store).upsert = type(searcher.store).delete = end
elif str(place) == "before the line":
    changes._append = end
elif str(place) == "in the line":
    write = os.write
    os.write = lambda file, data: (write(file, data[:20]), end()) if data.startswith(b'{"time"') else write(file, data)
elif str(place) == "behind the line":
    Changes._end = end
author = Author(token="t", address="a", request_id="killed")
image = picture.read_bytes() if picture.exists() else None
kind = "put" if image else str(picture)
change = Change(kind=kind, image_id="a.png", image=image, metadata=None if kind == "delete" else {"n": "2"})
made.make(change, made.encode(change), author)
"""


@pytest.mark.parametrize(
    ("place", "kind", "is_made"),
    [
        ("before the change", "put", False),
        ("before the change", "delete", False),
        ("before the line", "put", True),
        ("before the line", "patch", True),
        ("in the line", "delete", True),
        ("in the line", "put", True),
        ("behind the line", "put", True),
    ],
)
def test_a_killed_process_leaves_no_change_without_its_line(
    place: str,
    kind: str,
    is_made: bool,
    index_folder: Path,
    tiny_encoder_folder: Path,
    encoder: Encoder,
    start: Start,
    tmp_path: Path,
) -> None:
    """A real process is killed; the next service finds out what became of the change, and no file is left over."""
    index, new = tmp_path / "index", tmp_path / "new.png"
    shutil.copytree(index_folder, index)
    new.write_bytes(make_picture((70, 50)))
    with Searcher.open(index, encoder) as searcher:
        made = Changes(searcher, SMALL)
        change = Change(kind="put", image_id="a.png", image=make_picture(), metadata={"n": "1"})
        made.make(change, made.encode(change), AUTHOR)
    words = [str(index), str(tiny_encoder_folder), place, str(new) if kind == "put" else kind]
    killed = subprocess.run([sys.executable, "-c", KILLED, *words], capture_output=True, text=True, timeout=300)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    client = start(index)
    for _ in range(6000):  # the service is ready before it has ended what the killed process began
        if ".intent" not in list_kept(index):
            break
        time.sleep(0.01)
    lines = [line for line in get_audit_file(index).read_text().splitlines() if line.endswith("}")]
    first, second = map(json.loads, lines)
    assert first["request_id"] == "r"
    assert (second["what"], second["image_id"], second["request_id"]) == (kind, "a.png", "killed")
    done = {"put": "replaced", "patch": "updated", "delete": "deleted"}[kind]
    assert second["status"] == (done if is_made else "not made")
    assert ("is_found_later" in second) == (place != "behind the line")
    answer = client.get("/images/a.png")
    if kind == "delete" and is_made:
        assert (answer.status_code, list_kept(index)) == (404, [])
    else:
        expected = make_picture((70, 50)) if kind == "put" and is_made else make_picture()
        assert answer.content == expected
        assert len(list_kept(index)) == 1
        numbers = {"n": "1"} if not is_made else {"n": "2"}
        put = client.patch("/images/a.png", json={"metadata": {}}, headers=WRITER)
        assert put.json()["metadata"] == numbers
        assert json.loads(get_audit_file(index).read_text().splitlines()[-1])["status"] == "updated"


def test_a_store_that_fails_leaves_a_change_that_the_next_one_ends(
    index_folder: Path, encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The failure came before or after the rows were written: the line says which it was."""
    index = tmp_path / "index"
    shutil.copytree(index_folder, index)
    with Searcher.open(index, encoder) as searcher:
        made = Changes(searcher, SMALL)

        def put(name: str) -> None:
            change = Change(kind="put", image_id=name, image=make_picture())
            made.make(change, made.encode(change), AUTHOR)

        def fail_before(*_: object) -> None:
            raise OSError("the store is away")

        def fail_behind(vectors: object, records: object) -> None:
            upsert(vectors, records)  # type: ignore[arg-type]
            raise OSError("the answer was lost")

        upsert = searcher.store.upsert
        for name, fail in (("before.png", fail_before), ("behind.png", fail_behind)):
            monkeypatch.setattr(searcher.store, "upsert", fail)
            with pytest.raises(OSError, match="the"):
                put(name)
            monkeypatch.setattr(searcher.store, "upsert", upsert)
        put("last.png")
    assert [(line["image_id"], line["status"]) for line in read_lines(index)] == [
        ("before.png", "not made"),
        ("behind.png", "created"),
        ("last.png", "created"),
    ]
    assert len(list_kept(index)) == 2


@pytest.mark.parametrize("way", ["around", "link", "linked folder"])
def test_what_was_sent_stays_the_services_by_whichever_way_the_index_is_named(
    way: str, start: Start, class_folder: Path, tmp_path: Path, encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A service that names the index from its own folder or by a link, and a sync that names it whole."""
    photographs, index = tmp_path / "photographs", tmp_path / "index"
    shutil.copytree(class_folder, photographs)
    sync(photographs, index, encoder, store="exact")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    if way == "around":
        named = Path("..") / "index"
    elif way == "link":
        named = tmp_path / "elsewhere" / "linked"
        named.symlink_to(index)
    else:
        (tmp_path / "elsewhere" / "linked").symlink_to(tmp_path)
        named = tmp_path / "elsewhere" / "linked" / "index"
    client = start(named)
    assert client.put("/images/sent.png", content=make_picture(), headers=WRITER).status_code == 201
    assert sync(photographs, index, encoder).num_removed == 0
    assert client.get("/images/sent.png").content == make_picture()
    other = start(index)
    replaced = other.put("/images/sent.png", content=make_picture((30, 70)), headers=WRITER)
    assert (replaced.status_code, len(list_kept(index)), len(read_lines(index))) == (200, 1, 2)
    assert client.delete("/images/sent.png", headers=WRITER).status_code == 200
    assert list_kept(index) == []


def test_a_picture_that_a_service_removes_during_a_sync_does_not_end_the_sync(
    start: Start, class_folder: Path, tmp_path: Path, encoder: Encoder
) -> None:
    photographs, index = tmp_path / "photographs", tmp_path / "index"
    shutil.copytree(class_folder, photographs)
    sync(photographs, index, encoder, store="exact")
    client = start(index)
    for name in ("stays.png", "goes.png"):
        assert client.put(f"/images/{name}", content=make_picture(), headers=WRITER).status_code == 201
    (photographs / "class0" / "0.png").unlink()
    collection = scan_collection(str(photographs), index)
    with open_synced(collection, index, encoder) as synced:  # hours may pass from here on, where much is new
        assert client.delete("/images/goes.png", headers=WRITER).status_code == 200
        report = sync_collection(synced, encoder, collection)
    assert (report.num_removed, report.num_indexed) == (1, 20)
    assert client.get("/images/stays.png").content == make_picture()


def test_a_line_that_a_full_disk_cuts_is_written_whole_later(
    index_folder: Path, encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The system writes what has room, without an error; the next attempt is told of the full disk."""
    index = tmp_path / "index"
    shutil.copytree(index_folder, index)
    write, room = os.write, [50]

    def write_into_the_room(file: int, data: bytes) -> int:
        if not data.startswith((b'{"time"', b"what")) and b'"request_id"' not in data:
            return write(file, data)
        if not room[0]:
            raise OSError(errno.ENOSPC, "No space left on device")
        written = write(file, data[: room[0]])
        room[0] -= written
        return written

    with Searcher.open(index, encoder) as searcher:
        made = Changes(searcher, SMALL)
        with monkeypatch.context() as patched:
            patched.setattr(os, "write", write_into_the_room)
            with pytest.raises(OSError, match="No space left"):
                made.make(Change(kind="delete", image_id="class0/0.png"), None, AUTHOR)
        made.make(Change(kind="delete", image_id="class0/1.png"), None, AUTHOR)
    cut, *lines = get_audit_file(index).read_text().splitlines()
    assert len(cut) == 50
    told = [(line["image_id"], line["status"], line.get("is_found_later")) for line in map(json.loads, lines)]
    assert told == [("class0/0.png", "deleted", True), ("class0/1.png", "deleted", None)]


def test_a_picture_stays_whose_metadata_another_host_changes_before_its_end_is_noted(
    index_folder: Path, encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process that put it fails after the rows were written; then the other host writes the record anew."""
    index = tmp_path / "index"
    shutil.copytree(index_folder, index)
    with Searcher.open(index, encoder) as searcher:
        made = Changes(searcher, SMALL)
        put = Change(kind="put", image_id="a.png", image=make_picture())

        def fail(*_: object) -> None:
            raise OSError("killed")

        with monkeypatch.context() as patched:
            patched.setattr(changes, "_append", fail)
            with pytest.raises(OSError, match="killed"):
                made.make(put, made.encode(put), AUTHOR)
        vectors, (record,) = searcher.store.get(["a.png"])
        searcher.store.upsert(vectors, [replace(record, metadata={"n": "of the other host"})])
        made.settle()
    assert record.path.read_bytes() == make_picture()
    assert read_lines(index)[-1]["status"] == "created"
