"""Writers of one table of PostgreSQL on several hosts: real processes, each with a folder of the index of its own."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest
from fastapi import HTTPException

from tests.index.postgres import Server as Postgres
from tests.serve.conftest import make_picture
from tests.serve.services import SMALL, read_lines
from vitrieve.artifacts import MANIFEST_NAME
from vitrieve.errors import ArtifactError
from vitrieve.index.open import open_index
from vitrieve.index.pgvector_server import Server
from vitrieve.index.written import get_pictures_folder, locking_writes
from vitrieve.runtime.encoder import Encoder, load_encoder
from vitrieve.search.searcher import Searcher
from vitrieve.serve.changes import Author, Change, Changes
from vitrieve.serve.settings import Limits
from vitrieve.syncing import state
from vitrieve.syncing.sync import NewIndex, sync

WATCHDOG_SECONDS = 300
TOKEN = "a-token-to-write-here"
WRITER = {"Authorization": f"Bearer {TOKEN}"}
AUTHOR = Author(token="t", address="a", request_id="r")
NUM_ROUNDS = 6


@pytest.fixture(scope="module")
def encoder(tiny_encoder_folder: Path) -> Encoder:
    return load_encoder(tiny_encoder_folder, engine="onnx", num_threads=1)


@pytest.fixture(scope="module")
def postgres() -> Iterator[Postgres]:
    server = Postgres()
    yield server
    server.remove()


@pytest.fixture
def photographs(class_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(class_folder, tmp_path / "photographs"))


@pytest.fixture
def hosts(postgres: Postgres, photographs: Path, tmp_path: Path, encoder: Encoder) -> list[Path]:
    """Three folders of one index, as on three hosts: two have nothing but its manifest, the third is synced."""
    folders = [tmp_path / "one" / "index", tmp_path / "other" / "goods", tmp_path / "syncing" / "photographs"]
    sync(photographs, folders[2], encoder, store=NewIndex(kind="pgvector", uri=postgres.uri))
    for folder in folders[:2]:
        folder.mkdir(parents=True)
        shutil.copy(folders[2] / MANIFEST_NAME, folder)
    return folders


SERVICE = """
import sys
from vitrieve.runtime.encoder import load_encoder
from vitrieve.search.searcher import Searcher
from vitrieve.serve.server import serve
from vitrieve.serve.settings import Limits, ServeSettings

index, encoder, token = sys.argv[1:]
limits = Limits(free_bytes=1, request_seconds=600.0)
settings = ServeSettings(host="127.0.0.1", port=0, write_token=token, limits=limits)
with Searcher.open(index, load_encoder(encoder, engine="onnx", num_threads=1)) as searcher:
    serve(searcher, settings, announce=lambda address: print(address, flush=True))
"""


def start_service(running: ExitStack, index: Path, encoder: Path) -> httpx.Client:
    """Start a service in a process of its own, which ends with ``running``."""
    command = [sys.executable, "-c", SERVICE, str(index), str(encoder), TOKEN]
    process = running.enter_context(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
    running.callback(process.terminate)
    assert process.stdout is not None
    address = process.stdout.readline().strip()
    assert address, process.wait(WATCHDOG_SECONDS)
    return running.enter_context(httpx.Client(base_url=address, headers=WRITER, timeout=WATCHDOG_SECONDS))


def test_services_and_a_sync_of_several_hosts_lose_no_change(
    hosts: list[Path], photographs: Path, tiny_encoder_folder: Path, encoder: Encoder
) -> None:
    """Both services add columns to one image, which each reads and writes back; both are sent pictures meanwhile."""
    for number in range(3):
        (photographs / f"new{number}.png").write_bytes(make_picture((60, 40 + number)))
    (photographs / "class0" / "0.png").unlink()
    with ExitStack() as running:
        clients = [start_service(running, index, tiny_encoder_folder) for index in hosts[:2]]
        assert clients[0].put("/images/sent.png", content=make_picture()).status_code == 201
        command = [sys.executable, "-m", "vitrieve", "sync", "--data", str(photographs), "--index", str(hosts[2])]
        syncing = running.enter_context(subprocess.Popen(command, stderr=subprocess.PIPE, text=True))

        def change(host: int) -> list[int]:
            statuses = []
            for turn in range(NUM_ROUNDS):
                column = {"metadata": {f"{'ab'[host]}{turn}": "x"}}
                statuses.append(clients[host].patch("/images/sent.png", json=column).status_code)
                put = clients[host].put(f"/images/{host}-{turn}.png", content=make_picture((40 + host, 41 + turn)))
                statuses.append(put.status_code)
            return statuses

        with ThreadPoolExecutor(2) as threads:
            statuses = [status for one in threads.map(change, range(2)) for status in one]
        _, told = syncing.communicate(timeout=WATCHDOG_SECONDS)
        assert syncing.returncode == 0, told
        assert sorted(statuses) == [200] * 2 * NUM_ROUNDS + [201] * 2 * NUM_ROUNDS
    store = open_index(hosts[0])
    sent = {"sent.png", *(f"{host}-{turn}.png" for host in range(2) for turn in range(NUM_ROUNDS))}
    new = {f"new{number}.png" for number in range(3)}
    assert sent | new <= set(store.image_ids())
    assert store.count() == 20 - 1 + len(sent) + len(new)
    columns = {f"{host}{turn}" for host in "ab" for turn in range(NUM_ROUNDS)}
    assert columns <= set(store.get(["sent.png"])[1][0].metadata)
    assert store.verify() == []
    store.close()
    assert [len(read_lines(index)) for index in hosts[:2]] == [1 + 2 * NUM_ROUNDS, 2 * NUM_ROUNDS]
    # What another host's service was sent is not the sync's, which has no folder of such pictures.
    assert not sync(photographs, hosts[2], encoder).is_changed
    assert not get_pictures_folder(hosts[2]).exists()


HOLDER = """
import sys, time
from pathlib import Path
from vitrieve.index.open import open_index
from vitrieve.index.written import locking_writes
index = Path(sys.argv[1])
with locking_writes(index, open_index(index), seconds=60):
    print("held", flush=True)
    time.sleep(600)
"""


def test_writers_wait_for_one_on_another_host_until_it_ends_or_is_killed(
    hosts: list[Path], photographs: Path, encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A writer is refused with its message after its limit; what the killed one held is free at once."""
    change = Change(kind="put", image_id="sent.png", image=make_picture())
    command = [sys.executable, "-c", HOLDER, str(hosts[0])]
    with ExitStack() as running:
        holder = running.enter_context(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
        running.callback(holder.kill)
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        searcher = running.enter_context(Searcher.open(hosts[1], encoder))
        changes = Changes(searcher, Limits(free_bytes=1, request_seconds=0.2))
        vector = changes.encode(change)
        with pytest.raises(HTTPException, match=r"503: other changes of the index have not ended; try again later\."):
            changes.make(change, vector, AUTHOR)
        (photographs / "class0" / "0.png").unlink()
        with monkeypatch.context() as patched:
            patched.setattr(state, "WRITES_SECONDS", 0.2)
            with pytest.raises(ArtifactError, match=r"another service or sync has not ended its change of the index"):
                sync(photographs, hosts[2], encoder)
        with ThreadPoolExecutor(1) as threads:
            waiting = threads.submit(Changes(searcher, SMALL).make, change, vector, AUTHOR)
            assert not waiting.done()
            holder.send_signal(signal.SIGKILL)
            assert waiting.result(WATCHDOG_SECONDS).status == "created"
    assert sync(photographs, hosts[2], encoder).num_removed == 1
    store = open_index(hosts[2])
    assert store.count() == 20
    store.close()


REPLACER = """
import sys
from pathlib import Path
from vitrieve.index.open import create_index
from vitrieve.index.store import IndexSettings, read_info
index = Path(sys.argv[1])
info, manifest = read_info(index)
create_index(info, index, settings=IndexSettings(uri=manifest["uri"]), overwrite=True).close()
"""


def test_an_index_that_is_made_anew_on_one_host_waits_for_a_change_on_another(
    hosts: list[Path], postgres: Postgres
) -> None:
    """The old table goes when the change is done; a later change on the other host is told that it is gone."""
    store = open_index(hosts[1])
    command = [sys.executable, "-c", REPLACER, str(hosts[0])]
    with locking_writes(hosts[1], store, seconds=60):
        replacing = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        while postgres.fetch("SELECT FROM pg_locks WHERE locktype = 'advisory' AND NOT granted") == []:
            assert replacing.poll() is None
            time.sleep(0.05)
        assert store.delete(["class0/0.png"]) == 1  # the table is still there
    _, told = replacing.communicate(timeout=WATCHDOG_SECONDS)
    assert replacing.returncode == 0, told
    with pytest.raises(ArtifactError, match="lacks a table of the index"):
        store.delete(["class0/1.png"])
    store.close()


def test_a_lost_lock_costs_no_change_and_is_told(
    hosts: list[Path], postgres: Postgres, encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server ends all connections in the middle of a change: it is made on new ones."""
    with ExitStack() as running:
        searcher = running.enter_context(Searcher.open(hosts[0], encoder))
        changing = Server.changing

        def end_all(server: Server):  # type: ignore[no-untyped-def]
            monkeypatch.setattr(Server, "changing", changing)
            postgres.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name='vitrieve'")
            return changing(server)

        monkeypatch.setattr(Server, "changing", end_all)
        made = Changes(searcher, SMALL)
        put = Change(kind="put", image_id="sent.png", image=make_picture())
        with pytest.raises(ArtifactError, match="was lost during a change, so another writer may have changed it"):
            made.make(put, made.encode(put), AUTHOR)
        assert [line["status"] for line in read_lines(hosts[0])] == ["created"]
        assert made.make(Change(kind="delete", image_id="sent.png"), None, AUTHOR).status == "deleted"


def test_a_lock_outlasts_what_the_server_lets_a_connection_idle(hosts: list[Path], postgres: Postgres) -> None:
    postgres.execute("ALTER SYSTEM SET idle_session_timeout = '100ms'")
    postgres.execute("SELECT pg_reload_conf()")
    time.sleep(0.2)
    try:
        store = open_index(hosts[0])
        with locking_writes(hosts[0], store, seconds=5):
            time.sleep(0.5)
        store.close()
    finally:
        postgres.execute("ALTER SYSTEM RESET idle_session_timeout")
        postgres.execute("SELECT pg_reload_conf()")
