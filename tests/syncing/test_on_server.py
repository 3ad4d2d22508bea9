"""An index on a server follows a folder as one on this machine does, and nothing of a killed process stays there."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.index import postgres as postgres_server
from tests.index.milvus_lite import Server as MilvusServer
from tests.syncing.helpers import Watch, counts
from vitrieve.cli import up
from vitrieve.cli.main import main
from vitrieve.errors import ConfigError
from vitrieve.index import pgvector_server
from vitrieve.index.open import open_index
from vitrieve.index.store import StoreKind
from vitrieve.runtime.encoder import Encoder
from vitrieve.syncing.sync import NewIndex, SyncReport, SyncSettings, default_index_folder, read_place, sync


@dataclass(frozen=True, kw_only=True)
class Place:
    """A server that runs."""

    kind: StoreKind
    server: MilvusServer | postgres_server.Server

    @property
    def new(self) -> NewIndex:
        return NewIndex(kind=self.kind, uri=self.server.uri)

    @property
    def flags(self) -> list[str]:
        return ["--store", self.kind, "--uri", self.server.uri]

    def list_names(self) -> set[str]:
        """List the tables or collections of all indexes."""
        if isinstance(self.server, postgres_server.Server):
            rows = self.server.fetch("SELECT tablename FROM pg_tables WHERE tablename ~ '^vitrieve_'")
            return {str(name) for (name,) in rows}
        from pymilvus import MilvusClient

        client = MilvusClient(self.server.uri)
        try:
            return set(client.list_collections())
        finally:
            client.close()


LONG = pytest.mark.skipif(
    os.environ.get("VITRIEVE_LONG_TESTS") != "1",
    reason="kills processes and servers: VITRIEVE_LONG_TESTS=1 (make test-all)",
)


@pytest.fixture(scope="module")
def postgres() -> Iterator[Place]:
    server = postgres_server.Server()
    yield Place(kind="pgvector", server=server)
    server.remove()


@pytest.fixture(scope="module")
def milvus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    pytest.importorskip("milvus_lite", reason="needs milvus-lite")
    server = MilvusServer(tmp_path_factory.mktemp("milvus") / "data")
    yield Place(kind="milvus", server=server)
    server.kill()


@pytest.fixture(params=["postgres", "milvus"])
def place(request: pytest.FixtureRequest) -> Place:
    found: Place = request.getfixturevalue(request.param)
    return found


@pytest.fixture
def words(tiny_encoder_folder: Path, picture_folder: Path, tmp_path: Path) -> list[str]:
    """The command that syncs an index with the folder of pictures, six of which are in the top folder ``drive``."""
    spread(picture_folder)
    encoder = str(tiny_encoder_folder)
    return ["sync", str(picture_folder), "--index", str(tmp_path / "index"), "--encoder", encoder, "--num-threads", "1"]


def spread(folder: Path) -> None:
    (folder / "drive").mkdir()
    for number in range(6):
        (folder / f"{number:02}.png").rename(folder / "drive" / f"{number:02}.png")


def read(index: Path) -> dict[str, tuple[list[float], object]]:
    """Read all that an index holds, and check it."""
    store = open_index(index)
    try:
        assert store.verify() == []
        names = list(store.image_ids())
        vectors, records = store.get(names)
        assert store.count() == len(names)
        return dict(zip(names, zip(np.round(vectors, 5).tolist(), records, strict=True), strict=True))
    finally:
        store.close()


# Equal to an index on this machine


def test_sync_equals_that_of_a_local_store(
    place: Place, encoder: Encoder, picture_folder: Path, tmp_path: Path
) -> None:
    folder, off = picture_folder, tmp_path / "off"
    spread(folder)

    def both(**settings: object) -> SyncReport:
        """Sync both, and check that they hold the same and did the same."""
        local, other = (
            sync(folder, tmp_path / name, encoder, store=new, settings=SyncSettings(**settings))  # type: ignore[arg-type]
            for name, new in (("local", NewIndex(kind="exact")), ("server", place.new))
        )
        assert other == local
        assert read(tmp_path / "server") == read(tmp_path / "local")
        return other

    assert counts(both()) == (12, 0, 0, 0)
    Image.new("RGB", (40, 30), "red").save(folder / "new.png")
    Image.new("RGB", (40, 30), "blue").save(folder / "06.png")
    (folder / "07.png").unlink()
    assert counts(both()) == (2, 0, 0, 1)
    (folder / "deep").mkdir()
    (folder / "08.png").rename(folder / "deep" / "moved.png")
    shutil.copy(folder / "09.png", folder / "copy.png")
    assert counts(both()) == (0, 2, 0, 1)
    (folder / "10.png").write_bytes(b"no picture")
    assert [name for name, _ in both(max_bad_fraction=0.5).failures] == ["10.png"]
    (folder / "drive").rename(off)
    report = both(max_bad_fraction=0.5)
    assert (report.num_kept, report.num_removed, report.num_indexed) == (6, 0, 12)
    assert report.held is not None
    assert report.held.folders == ("drive",)
    off.rename(folder / "drive")
    assert counts(both(max_bad_fraction=0.5)) == (0, 0, 0, 0)
    shutil.rmtree(folder / "drive")
    assert both(max_bad_fraction=0.5, is_removal_allowed=True).num_removed == 6


def test_sync_follows_the_metadata_of_a_table(
    place: Place, encoder: Encoder, picture_folder: Path, tmp_path: Path
) -> None:
    table, index = picture_folder / "table.csv", tmp_path / "index"
    table.write_text("path,label,price\n00.png,pear,1.50\n01.png,apple,2.00\n", encoding="utf-8")
    assert counts(sync(f"table:{table}", index, encoder, store=place.new)) == (2, 0, 0, 0)
    table.write_text("path,label,price,shop\n00.png,pear,1.75,it's\n01.png,apple,2.00,\n", encoding="utf-8")
    assert counts(sync(f"table:{table}", index, encoder)) == (0, 0, 2, 0)
    store = open_index(index)
    (hits,) = store.search(encoder.encode([picture_folder / "01.png"]), 2, ["price<1.9"])
    assert [(hit.record.image_id, hit.record.metadata["shop"]) for hit in hits] == [("00.png", "it's")]
    store.close()


def test_the_index_that_is_there_says_which_server_it_is_on(
    postgres: Place, encoder: Encoder, picture_folder: Path, tmp_path: Path
) -> None:
    index, other = tmp_path / "index", NewIndex(kind="milvus", uri="http://127.0.0.1:1")
    sync(picture_folder, index, encoder, store=postgres.new)
    for new in (None, postgres.new):
        assert counts(sync(picture_folder, index, encoder, store=new or "lance")) == (0, 0, 0, 0)
    with pytest.raises(ConfigError, match=r"store pgvector at postgresql://.*, not of milvus at http://127.0.0.1:1"):
        sync(picture_folder, index, encoder, store=other)
    with pytest.raises(ConfigError, match="uri is the address of a server"):
        sync(picture_folder, tmp_path / "new", encoder, store="pgvector")
    with pytest.raises(ConfigError, match="uri is the address of a server"):
        sync(picture_folder, tmp_path / "new", encoder, store=NewIndex(kind="lance", uri="http://127.0.0.1:1"))
    assert not (tmp_path / "new").exists()


def test_up_keeps_an_index_on_a_server_apart_from_one_on_this_machine(
    postgres: Place,
    encoder: Encoder,
    tiny_encoder_folder: Path,
    picture_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("VITRIEVE_CACHE", str(tmp_path / "cache"))
    given = {"folder": picture_folder, "encoder": str(tiny_encoder_folder)}
    local, _ = up._sync(up.Arguments(**given))
    on_server, _ = up._sync(up.Arguments(**given, store="pgvector", uri=postgres.server.uri))
    assert (read_place(local), read_place(on_server)) == (NewIndex(kind="lance"), postgres.new)
    assert local == default_index_folder(picture_folder, encoder.fingerprint)
    assert read(local) == read(on_server)
    assert len(read(local)) == 12


# Servers that refuse or go away


def test_a_password_is_never_printed(
    postgres: Place,
    words: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert isinstance(postgres.server, postgres_server.Server)
    monkeypatch.setenv("PGPASSWORD", "hunter2")
    uris = {
        postgres.server.make_uri(user="locked"): "password authentication failed",
        "postgresql://me:hunter2@localhost/d": "the uri holds a password",
    }
    for uri, reason in uris.items():
        assert main([*words, "--store", "pgvector", "--uri", uri]) == 2
        printed = "".join(capsys.readouterr())
        assert "hunter2" not in printed
        (line,) = [line for line in printed.splitlines() if line.startswith("error")]
        assert reason in line
        assert not (tmp_path / "index").exists()
    assert main([*words, "--store", "milvus", "--uri", "http://root:hunter2@localhost:19530"]) == 2
    printed = "".join(capsys.readouterr())
    assert "the uri holds a password" in printed
    assert "hunter2" not in printed
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".index")]


@LONG
def test_watch_survives_its_server_and_the_loss_of_its_folder(
    postgres: Place,
    words: list[str],
    picture_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(pgvector_server, "TIMEOUT_SECONDS", 1.0)
    assert isinstance(postgres.server, postgres_server.Server)
    assert main([*words, *postgres.flags]) == 0
    with Watch(words, capsys, monkeypatch) as watch:  # the index says where it is
        watch.wait_for("watching")
        (picture_folder / "drive").rename(tmp_path / "off")
        watch.wait_for("6 of 12 images of the index have vanished")
        (tmp_path / "off").rename(picture_folder / "drive")
        postgres.server.stop()
        try:
            Image.new("RGB", (40, 30), "red").save(picture_folder / "red.png")
            watch.wait_for("not synced: the PostgreSQL server")
        finally:
            postgres.server.start()
        watch.wait_for("13 images indexed; 1 embedded\n")
        (tmp_path / "index").rename(tmp_path / "deleted")
        watch.wait_for("13 images indexed; 13 embedded\n")
    assert read_place(tmp_path / "index") == postgres.new
    assert read(tmp_path / "index") == read(tmp_path / "deleted")


# Killed processes

PAUSE = r"""
import os, sys, time
import vitrieve.artifacts, vitrieve.index.claims, vitrieve.syncing.state
from vitrieve.cli.main import main

out = os.dup(1)  # a command leads the descriptor elsewhere

def pause(*_, **__):
    os.write(out, b"paused\n")
    time.sleep(600)

def after(call):
    def run(*words, **named):
        call(*words, **named)
        pause()
    return run

moment, kind = sys.argv[1:3]
if moment == "made":
    store = __import__(f"vitrieve.index.{kind}", fromlist=["*"])
    store.write_manifest = pause
if moment == "beside":
    store = __import__(f"vitrieve.index.{kind}", fromlist=["*"])
    store.write_manifest = after(store.write_manifest)
if moment == "before exchange":
    vitrieve.artifacts.exchange_folders = pause
if moment == "after exchange":
    vitrieve.artifacts.exchange_folders = after(vitrieve.artifacts.exchange_folders)
if moment == "unwritten":
    vitrieve.syncing.state.StateFile.write = pause
sys.exit(main(sys.argv[3:]))
"""


def kill_at(moment: str, place: Place, words: list[str]) -> None:
    """Run a command in a process of its own, and kill -9 it at a moment."""
    process = subprocess.Popen(
        [sys.executable, "-c", PAUSE, moment, place.kind, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    line = process.stdout.readline()
    process.kill()
    _, errors = process.communicate()
    assert line == b"paused\n", errors.decode()


def list_hidden(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name.startswith("."))


@LONG
@pytest.mark.parametrize("moment", ["made", "beside"])
def test_what_a_killed_sync_made_goes_at_the_next_start(
    moment: str, place: Place, words: list[str], tmp_path: Path
) -> None:
    before = place.list_names()
    kill_at(moment, place, [*words, *place.flags])
    assert len(place.list_names() - before) == 2  # the images, and what stands beside them
    assert not (tmp_path / "index").exists()
    assert len(list_hidden(tmp_path)) == 2  # a folder, and a claim
    killed = place.list_names() - before
    assert main([*words, *place.flags]) == 0
    assert len(place.list_names() - before) == 2
    assert not place.list_names() & killed
    assert list_hidden(tmp_path) == []
    assert len(read(tmp_path / "index")) == 12


@LONG
def test_a_killed_sync_goes_on(place: Place, words: list[str], tmp_path: Path) -> None:
    kill_at("unwritten", place, [*words, *place.flags])
    assert len(read(tmp_path / "index")) == 12  # in the store, but nothing says of which content
    assert main(words) == 0
    index, local = str(tmp_path / "index"), str(tmp_path / "local")
    assert main([local if word == index else word for word in words]) == 0
    assert read(tmp_path / "index") == read(tmp_path / "local")


@LONG
@pytest.mark.parametrize("moment", ["before exchange", "after exchange"])
def test_what_a_killed_replacement_left_goes_at_the_next_start(
    moment: str, place: Place, words: list[str], encoder: Encoder, tiny_encoder_folder: Path, tmp_path: Path
) -> None:
    before = place.list_names()
    assert main([*words, *place.flags]) == 0
    old = place.list_names() - before
    data = ["--data", words[1], "--encoder", str(tiny_encoder_folder)]
    assert main(["embed", *data, "--out", str(tmp_path / "embeddings")]) == 0
    build = ["index", "--embeddings", str(tmp_path / "embeddings"), "--out", str(tmp_path / "index"), *place.flags]
    kill_at(moment, place, [*build, "--overwrite"])
    assert len(place.list_names() - before) == 4
    assert len(read(tmp_path / "index")) == 12  # the old one or the new one
    assert main([*words, "--adopt"]) == 0
    assert len(place.list_names() - before) == 2
    assert (old <= place.list_names()) == (moment == "before exchange")
    assert [name for name in list_hidden(tmp_path) if name.endswith(".claim")] == []
    assert len(read(tmp_path / "index")) == 12


@LONG
def test_what_cannot_be_removed_now_goes_later(
    postgres: Place, words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert isinstance(postgres.server, postgres_server.Server)
    before = postgres.list_names()
    kill_at("made", postgres, [*words, *postgres.flags])
    postgres.server.stop()
    try:
        assert main(words) == 0  # an index on this machine does not need the server
        told = capsys.readouterr().err
    finally:
        postgres.server.start()
    assert "of an index that is gone, stays on its PostgreSQL server" in told
    assert len(postgres.list_names() - before) == 2
    assert main(words) == 0
    assert postgres.list_names() == before
    assert list_hidden(tmp_path) == []
