"""What is particular to pgvector: servers that refuse, go away or come back, roles, the graph, and what is in SQL."""

from __future__ import annotations

import os
import shutil
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import psycopg
import pytest

from tests.index import test_streamed
from tests.index.conformance import check_hits, fill, make_info, make_many, make_record
from tests.index.postgres import Server
from vitrieve.cli.main import main
from vitrieve.embed.embeddings import Embeddings
from vitrieve.errors import ArtifactError, ConfigError, DataError, FingerprintError, InputError
from vitrieve.feedback.events import Correction, find_last_words
from vitrieve.index import folder, pgvector, pgvector_feedback, pgvector_server
from vitrieve.index.feedback import open_feedback
from vitrieve.index.filter import Condition
from vitrieve.index.open import build_index, create_index, open_index
from vitrieve.index.pgvector import PgvectorStore
from vitrieve.index.pgvector_rows import Tables
from vitrieve.index.pgvector_server import connected, lock_name
from vitrieve.index.store import IndexKind, IndexSettings, read_info

WATCHDOG_SECONDS = 300


def make_store(
    uri: str, folder: Path, index_kind: IndexKind = "ivf_hnsw_sq", *, overwrite: bool = False
) -> PgvectorStore:
    settings = IndexSettings(index_kind=index_kind, uri=uri)
    store = create_index(make_info("pgvector"), folder, settings=settings, overwrite=overwrite)
    assert isinstance(store, PgvectorStore)
    return store


@pytest.fixture
def made(postgres: Server, tmp_path: Path) -> Iterator[PgvectorStore]:
    store = make_store(postgres.uri, tmp_path / "index")
    yield store
    store.close()


@pytest.fixture
def database(postgres: Server) -> Iterator[str]:
    """An empty database, without the extension."""
    postgres.execute("CREATE DATABASE bare")
    yield "bare"
    postgres.execute("DROP DATABASE bare WITH (FORCE)")


def list_tables(server: Server) -> set[str]:
    return {str(name) for (name,) in server.fetch("SELECT relname FROM pg_class WHERE relname ~ '^vitrieve_'")}


# The graph


def test_graph_is_searched_with_and_without_a_filter(
    postgres: Server, made: PgvectorStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A filter has the search of the graph go on; where too few images pass it, all of those are compared."""
    monkeypatch.setattr(pgvector, "MIN_INDEXED_ROWS", 1_000)
    model = fill(made, 3_000)
    made.optimize()
    # So few rows are read faster one after the other, and the planner knows it.
    monkeypatch.setenv("PGOPTIONS", "-c enable_seqscan=off")
    store = open_index(made._folder)
    asked: list[tuple[bool, int]] = []
    find = pgvector.Search._find_candidates

    def spy(*args: object, is_graph: bool) -> list[object]:
        rows = find(*args, is_graph=is_graph)  # type: ignore[arg-type]
        asked.append((is_graph, len(rows)))
        return rows

    monkeypatch.setattr(pgvector.Search, "_find_candidates", spy)
    queries = make_many(20, seed=3)[0]
    found = store.search(queries, 10)
    assert asked == [(True, 64)] * 20
    right = sum(
        len({hit.record.image_id for hit in hits} & set(nearest(model, query, 10)))
        for query, hits in zip(queries, found, strict=True)
    )
    assert right >= 190
    asked.clear()
    for hits in store.search(queries, 10, ["label=3"]):
        assert {hit.record.label % 10 for hit in hits} == {3}
        assert len(hits) == 10
    assert asked == [(True, 64)] * 20  # without going on, some ten of the first 128 would pass
    asked.clear()
    few = Condition(column="price", operator="<", values=(2.0,))  # eight images of 3,000
    check_hits(model, queries[0], 10, (few,), store.search(queries[:1], 10, few)[0])
    assert asked == [(True, 8), (False, 8)]
    store.close()  # its server process then tells what it counted
    graph = read_info(made._folder)[1]["table"] + "_graph"
    ((num_scans,),) = postgres.fetch(f"SELECT idx_scan FROM pg_stat_user_indexes WHERE indexrelname = '{graph}'")
    assert int(str(num_scans)) == 41


def nearest(model: object, query: np.ndarray, k: int) -> list[str]:
    images = model.images  # type: ignore[attr-defined]
    return sorted(images, key=lambda name: (-float(images[name][0] @ query), name))[:k]


def test_queries_of_any_length_are_answered(made: PgvectorStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """A half-precision number ends at 65,504."""
    monkeypatch.setattr(pgvector, "MIN_INDEXED_ROWS", 10)
    fill(made, 50)
    made.optimize()
    query = make_many(1, seed=1)[0]
    names = [[hit.record.image_id for hit in made.search(query * scale, 5)[0]] for scale in (1, 1e6, 1e-6)]
    assert names[0] == names[1] == names[2]
    assert len(made.search(query * 0, 5)[0]) == 5


def test_vectors_too_long_for_a_graph_are_compared_whole(postgres: Server, tmp_path: Path) -> None:
    info = make_info("pgvector", embedding_dim=4_001)
    with pytest.raises(ConfigError, match="4000 dimensions at most, not 4001"):
        create_index(info, tmp_path / "index", settings=IndexSettings(uri=postgres.uri))
    assert not (tmp_path / "index").exists()
    store = create_index(info, tmp_path / "index", settings=IndexSettings(index_kind="flat", uri=postgres.uri))
    vectors, records = make_many(5, width=4_001)
    store.upsert(vectors, records)
    assert store.search(vectors[:1], 1)[0][0].record == records[0]
    store.close()


# What is in SQL


def test_names_and_values_of_any_spelling_are_parameters(made: PgvectorStore) -> None:
    long = "a" * 70  # PostgreSQL cuts names at 63 bytes
    names = [long + "1", long + "2", "text_1_", 'x"; DROP TABLE images; --', "%s", "{}", "ü" * 40]
    values = ["' OR TRUE --", "%(a)s", "\\", '"', "$1", "NULL", "{a,b}"]
    vectors = make_many(2)[0]
    metadata = dict(zip(names, values, strict=True))
    made.upsert(vectors, [make_record("one", metadata), make_record("two", {name: "other" for name in names})])
    assert made.get(["one"])[1][0].metadata == metadata
    for name, value in metadata.items():
        for operator in ("=", "<=", ">="):
            condition = Condition(column=name, operator=operator, values=(value,))  # type: ignore[arg-type]
            assert "one" in [hit.record.image_id for hit in made.search(vectors[:1], 2, condition)[0]]
        other = Condition(column=name, operator="!=", values=(value, "or this"))
        assert [hit.record.image_id for hit in made.search(vectors[:1], 2, other)[0]] == ["two"]


def test_text_that_postgresql_cannot_hold_is_found_nowhere(made: PgvectorStore) -> None:
    fill(made, 3)
    for text in ("a\0b", "\ud800"):
        assert made.delete([text]) == 0
        with pytest.raises(DataError, match="not in the index"):
            made.get([text])
    made.upsert(make_many(1)[0], [make_record("text", {"label": "pear"})])
    assert made.count(Condition(column="label", operator="=", values=("a\0b", "pear"))) == 1
    with pytest.raises(InputError, match="NUL"):
        made.count(Condition(column="label", operator=">", values=("a\0b",)))


def test_an_image_that_fits_no_row_changes_nothing(made: PgvectorStore) -> None:
    fill(made, 3)
    name = np.random.default_rng(0).bytes(3_000).hex()  # an index of PostgreSQL takes names of 2.7 kB
    vectors, records = make_many(4, seed=1)
    with pytest.raises(DataError, match="does not fit a row"):
        made.upsert(vectors, [*records[:3], make_record(name, {})])
    assert made.count() == 3
    with pytest.raises(DataError, match="does not fit a row"):
        made.upsert(vectors[:1], [make_record("new", {str(number): "1" for number in range(900)})])
    assert made.columns() == ("label", "price")
    assert made.verify() == []


# Addresses, passwords, TLS


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("localhost", "no address"),
        ("http://localhost", "no address"),
        ("postgresql://me:hun%zzter2@localhost/d", "no address"),
        ("postgresql://localhost/?nonsense=hunter2", "no address"),
        ("postgresql://me:hunter2@localhost/d", "PGPASSWORD"),
        ("postgresql://me@localhost/d?password=hunter2", "PGPASSWORD"),
    ],
)
def test_address_is_refused_and_not_repeated(uri: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        make_store(uri, tmp_path / "index")
    assert "hun" not in str(caught.value)


def test_password_comes_from_the_environment(
    postgres: Server, database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    postgres.execute("CREATE EXTENSION vector", database)
    postgres.execute("CREATE SCHEMA AUTHORIZATION locked", database)
    uri = postgres.make_uri(database, "locked")
    for password, reason in ((None, "no password supplied"), ("wrong", "password authentication failed")):
        if password is not None:
            monkeypatch.setenv("PGPASSWORD", password)
        with pytest.raises(ArtifactError, match=reason) as caught:
            make_store(uri, tmp_path / str(password))
        assert "wrong" not in str(caught.value)
    monkeypatch.setenv("PGPASSWORD", "right")
    store = make_store(uri, tmp_path / "index")
    fill(store, 3)
    assert "right" not in "".join(path.read_text() for path in (tmp_path / "index").iterdir())
    assert read_info(tmp_path / "index")[1]["schema"] == "locked"
    monkeypatch.setenv("PGPASSWORD", "wrong")
    with pytest.raises(ArtifactError, match="password authentication failed"):
        open_index(tmp_path / "index")
    assert store.count() == 3  # over the connection that it has
    store.close()


def test_tls_that_is_asked_for_is_not_left_out(
    postgres: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server of the tests has no TLS; libpq must refuse it, and not go on without."""
    uri = f"postgresql://postgres@127.0.0.1:{postgres.port}/postgres"
    make_store(uri, tmp_path / "plain").close()
    monkeypatch.setenv("PGSSLMODE", "require")
    with pytest.raises(ArtifactError, match="SSL"):
        open_index(tmp_path / "plain")
    monkeypatch.delenv("PGSSLMODE")
    with pytest.raises(ArtifactError, match="SSL"):
        make_store(f"{uri}?sslmode=require", tmp_path / "index")


# Servers and databases that do not suit


def test_missing_extension_is_made_or_named(postgres: Server, database: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no extension vector \(permission denied.*CREATE EXTENSION vector"):
        make_store(postgres.make_uri(database, "guest"), tmp_path / "guest")
    make_store(postgres.make_uri(database), tmp_path / "index").close()
    postgres.execute("DROP EXTENSION vector CASCADE", database)
    with pytest.raises(ConfigError, match="no extension vector;"):
        open_index(tmp_path / "index")


def test_old_extension_is_named(postgres: Server, database: str, tmp_path: Path) -> None:
    postgres.execute("CREATE EXTENSION vector", database)
    postgres.execute("UPDATE pg_extension SET extversion = '0.7.4' WHERE extname = 'vector'", database)
    with pytest.raises(ConfigError, match=r"pgvector 0\.7\.4; this store needs 0\.8 or newer"):
        make_store(postgres.make_uri(database), tmp_path / "index")


def test_database_that_holds_no_unicode_is_named(postgres: Server, tmp_path: Path) -> None:
    postgres.execute("CREATE DATABASE latin ENCODING 'LATIN1' TEMPLATE template0")
    try:
        with pytest.raises(ConfigError, match="encoding LATIN1"):
            make_store(postgres.make_uri("latin"), tmp_path / "index")
    finally:
        postgres.execute("DROP DATABASE latin WITH (FORCE)")


def test_role_that_may_make_no_table_is_told(postgres: Server, made: PgvectorStore, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="permission denied for schema public"):
        make_store(postgres.make_uri(user="guest"), tmp_path / "guest")


def test_reader_needs_only_select(postgres: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The address names no user, so that the environment does."""
    monkeypatch.setenv("PGUSER", "postgres")
    store = make_store(f"postgresql:///postgres?host={postgres.folder}&port={postgres.port}", tmp_path / "index")
    model = fill(store, 10)
    store.close()
    monkeypatch.setenv("PGUSER", "guest")
    with pytest.raises(ArtifactError, match="permission denied for table"):
        open_index(tmp_path / "index")
    table = read_info(tmp_path / "index")[1]["table"]
    postgres.execute(f"GRANT SELECT ON {table}, {table}_about TO guest")
    reader = open_index(tmp_path / "index")
    query = make_many(1, seed=2)[0]
    check_hits(model, query[0], 3, (), reader.search(query, 3)[0])
    assert reader.count("label=3") == 1
    with pytest.raises(ArtifactError, match="permission denied for table"):
        reader.delete(["000001.png"])
    reader.close()


@contextmanager
def greeting_as(version: str) -> Iterator[str]:
    """Give the address of a PostgreSQL of which there is only the greeting: its version is in that."""

    def message(kind: bytes, body: bytes) -> bytes:
        return kind + struct.pack(">i", len(body) + 4) + body

    parameters = {"server_version": version, "client_encoding": "UTF8", "standard_conforming_strings": "on"}
    greeting = message(b"R", struct.pack(">i", 0))
    greeting += b"".join(message(b"S", f"{name}\0{value}\0".encode()) for name, value in parameters.items())
    greeting += message(b"Z", b"I")

    def greet() -> None:
        connection, _ = listener.accept()
        with connection:
            connection.recv(4096)
            connection.sendall(greeting)
            while connection.recv(4096):
                continue

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=greet)
        thread.start()
        uri = f"postgresql://me@127.0.0.1:{listener.getsockname()[1]}/d?sslmode=disable&gssencmode=disable"
        yield uri
        thread.join()


def test_old_server_is_named(tmp_path: Path) -> None:
    message = r"runs PostgreSQL 12; the store pgvector needs 13 or newer"
    with greeting_as("12.22") as uri, pytest.raises(ConfigError, match=message):
        make_store(uri, tmp_path / "index")


def test_the_command_tells_an_old_server_and_a_missing_extension_and_leaves_nothing(
    postgres: Server, database: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    test_streamed.make_embeddings(tmp_path / "embeddings", 30, 8)
    with greeting_as("12.22") as old:
        places = ((old, "PostgreSQL 12; the store pgvector needs 13"), (postgres.make_uri(database, "guest"), "vector"))
        for uri, part in places:
            words = ["index", "--embeddings", tmp_path / "embeddings", "--out", tmp_path / "index"]
            assert main([*map(str, words), "--store", "pgvector", "--uri", uri]) == 2
            (message,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
            assert part in message
            assert not (tmp_path / "index").exists()
    assert "CREATE EXTENSION vector" in message
    postgres.execute("CREATE EXTENSION vector", database)
    postgres.execute("GRANT CREATE ON SCHEMA public TO guest", database)
    assert main([*map(str, words), "--store", "pgvector", "--uri", uri]) == 0
    open_index(tmp_path / "index").close()


def test_client_that_is_not_installed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("vitrieve.index.pgvector")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(ConfigError, match=r"pip install 'vitrieve\[pgvector\]'"):
        make_store("postgresql://localhost/d", tmp_path / "index")


def test_table_of_another_encoder_is_refused(postgres: Server, made: PgvectorStore) -> None:
    fill(made, 5)
    about = read_info(made._folder)[1]["table"] + "_about"
    postgres.execute(f"UPDATE {about} SET fingerprint = repeat('0', 64)")
    vectors, records = make_many(1)
    for call in (
        lambda: open_index(made._folder),
        made.count,
        lambda: made.search(vectors, 1),
        lambda: made.upsert(vectors, records),
    ):
        with pytest.raises(FingerprintError, match="another encoder"):
            call()


def test_table_that_is_gone_is_named(postgres: Server, made: PgvectorStore) -> None:
    PgvectorStore.release(postgres.uri, made._tables.name)
    with pytest.raises(ArtifactError, match="lacks a table of the index"):
        open_index(made._folder)


def test_table_that_was_changed_by_other_means_is_found(postgres: Server, made: PgvectorStore) -> None:
    fill(made, 5)
    table = read_info(made._folder)[1]["table"]
    postgres.execute(f"UPDATE {table} SET text_1_label = 'x' WHERE image_id = '000001.png'")
    (fault,) = made.verify()
    assert "of the columns label do not agree" in fault
    postgres.execute(f"DELETE FROM {table} WHERE image_id = '000001.png'")
    assert "holds 4 images, and 5 were counted" in made.verify()[0]
    postgres.execute(f"UPDATE {table} SET vector = (SELECT vector + vector FROM {table} LIMIT 1)")
    assert made.verify()[0] == "4 vectors are not L2-normalized."


# What is left on the server


def test_an_index_that_is_replaced_leaves_no_table_behind(
    postgres: Server, made: PgvectorStore, tmp_path: Path
) -> None:
    before = list_tables(postgres)
    again = make_store(postgres.uri, tmp_path / "index", overwrite=True)
    after = list_tables(postgres)
    assert len(before - after) == len(after - before) == 3  # both tables, and the index of one
    create_index(make_info("exact"), tmp_path / "index", overwrite=True).close()
    assert list_tables(postgres) == before & after
    again.close()


def test_an_index_that_cannot_take_its_place_leaves_no_table_behind(
    postgres: Server, made: PgvectorStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = list_tables(postgres)
    with monkeypatch.context() as patch:
        patch.setattr(PgvectorStore, "verify", lambda _: ["a page is torn"])
        with pytest.raises(ArtifactError, match="torn"):
            make_store(postgres.uri, made._folder, overwrite=True)
    assert list_tables(postgres) == before
    monkeypatch.setattr(folder, "WAIT_SECONDS", 0.05)
    with folder.writing(made._folder), pytest.raises(ArtifactError, match="being written"):
        make_store(postgres.uri, made._folder, overwrite=True)
    assert list_tables(postgres) == before
    assert made.count() == 0


def test_an_index_that_fails_leaves_no_table_behind(
    postgres: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = list_tables(postgres)

    def fail(*_: object) -> None:
        raise OSError("no room")

    settings = IndexSettings(uri=postgres.uri)
    for owner, name in ((Tables, "write_about"), (pgvector, "write_manifest")):
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, fail)
            with pytest.raises(OSError, match="no room"):
                build_index(make_embeddings(), tmp_path / name, store="pgvector", settings=settings)
        assert list_tables(postgres) == before


def make_embeddings() -> Embeddings:
    vectors, records = make_many(10)
    return Embeddings(
        vectors=vectors,
        records=tuple(records),
        failures=(),
        fingerprint="f" * 64,
        encoder_source="some-weights",
        image_size=32,
        license="",
    )


# Several writers, and servers that go away


def test_two_writers_at_once_lose_nothing(made: PgvectorStore, tmp_path: Path) -> None:
    """Their folders are copies, so that only the server can keep them apart; they change the same images."""
    shutil.copytree(tmp_path / "index", tmp_path / "copy")
    vectors, records = make_many(60)

    def write(folder: Path, first: int) -> None:
        store = open_index(folder)
        for step in range(20):
            rows = [(first + step + number) % 60 for number in range(20)]
            texts = {str(first): str(step), f"column {step}": "x"}
            store.upsert(vectors[rows], [make_record(records[row].image_id, texts) for row in rows])
            store.delete([records[(first + 3 * step) % 60].image_id])
        store.close()

    threads = [
        threading.Thread(target=write, args=(tmp_path / name, first)) for name, first in (("index", 0), ("copy", 30))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert made.verify() == []
    assert made.count() == len(list(made.image_ids()))
    assert made.columns() == tuple(sorted(["0", "30", *(f"column {step}" for step in range(20))]))
    assert made.upsert(vectors, records) is None
    assert made.get([record.image_id for record in records])[1] == records


def test_a_writer_that_waits_too_long_is_told(
    postgres: Server, made: PgvectorStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(made, 3)
    about = read_info(made._folder)[1]["table"] + "_about"
    monkeypatch.setattr(pgvector_server, "WAIT_MILLISECONDS", 50)
    with psycopg.connect(postgres.uri) as other:
        other.execute(f"SELECT FROM {about} FOR UPDATE")  # type: ignore[arg-type]
        with pytest.raises(ArtifactError, match="is being changed by another process"):
            made.delete(["000000.png"])
        assert made.count() == 3  # readers do not wait
    assert made.delete(["000000.png"]) == 1


@pytest.mark.parametrize("end", ["stop", "kill"])
def test_a_search_goes_on_when_its_server_is_started_again(
    end: str, postgres: Server, made: PgvectorStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = fill(made, 50)
    query = make_many(1, seed=5)[0]
    find = pgvector.Search.find
    calls: list[int] = []

    def interrupt(*args: object, **settings: bool) -> object:
        calls.append(1)
        if len(calls) == 1:  # in the middle of the transaction
            getattr(postgres, end)()
            postgres.start()
        return find(*args, **settings)  # type: ignore[arg-type]

    monkeypatch.setattr(pgvector.Search, "find", interrupt)
    check_hits(model, query[0], 7, (), made.search(query, 7)[0])
    assert len(calls) == 2


def test_a_change_whose_server_is_killed_is_not_there(
    postgres: Server, made: PgvectorStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(made, 10)
    vectors, records = make_many(20, seed=4)
    write = Tables.write_about

    def kill(*args: object) -> None:
        write(*args)  # type: ignore[arg-type]
        postgres.kill()
        postgres.start()

    with monkeypatch.context() as patch:
        patch.setattr(Tables, "write_about", kill)
        with pytest.raises(ArtifactError, match="refused or did not answer"):
            made.upsert(vectors, records)
    assert made.count() == 10
    assert made.verify() == []
    made.upsert(vectors, records)
    assert made.count() == 20


def test_a_server_that_is_away_is_named_and_found_again(
    postgres: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pgvector_server, "TIMEOUT_SECONDS", 2.0)  # in which a busy machine makes a connection
    store = make_store(postgres.uri, tmp_path / "index")
    postgres.stop()
    try:
        for call in (store.count, lambda: open_index(tmp_path / "index")):
            with pytest.raises(ArtifactError, match=f"{postgres.folder}.*No such file") as caught:
                call()
            assert "\n" not in str(caught.value)
    finally:
        postgres.start()
    monkeypatch.undo()
    other = open_index(tmp_path / "index")
    assert other.count() == 0
    other.close()
    store.close()


def test_store_that_came_through_a_fork_is_refused(made: PgvectorStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getpid", lambda: 1)
    with pytest.raises(ArtifactError, match="fork"):
        made.count()


# The commands


def test_commands_make_search_and_follow(
    postgres: Server,
    tiny_encoder_folder: Path,
    picture_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    embeddings, index = str(tmp_path / "embeddings"), str(tmp_path / "index")
    data = ["--data", str(picture_folder), "--encoder", str(tiny_encoder_folder)]
    assert main(["embed", *data, "--out", embeddings]) == 0
    words = ["index", "--embeddings", embeddings, "--out", index, "--store", "pgvector", "--uri", postgres.uri]
    assert main(words) == 0
    assert main(["index", "--verify", "--index", index]) == 0
    capsys.readouterr()
    assert main(["search", "--index", index, str(picture_folder / "03.png")]) == 0
    assert "03.png" in capsys.readouterr().out.splitlines()[0]
    (picture_folder / "03.png").unlink()
    assert main(["sync", *data[:2], "--index", index, "--adopt", "--allow-removals"]) == 0
    store = open_index(index)
    assert store.count() == 11
    store.close()


def test_feedback_is_kept_in_the_database_of_the_index(made: PgvectorStore, postgres: Server, tmp_path: Path) -> None:
    said = [
        Correction(kind="right", image_id=f"{number}.jpg", query="'; ä", at="2026-11-29T08:00:00+00:00")
        for number in range(12)
    ]
    folder = tmp_path / "index"
    assert open_feedback(folder).read() == []
    threads = [threading.Thread(target=open_feedback(folder).add, args=(one,)) for one in said]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(open_feedback(folder).read(), key=lambda one: said.index(one)) == said
    made.close()
    tables = list_tables(postgres)
    for _ in range(2):
        make_store(postgres.uri, folder, overwrite=True).close()
        assert len(open_feedback(folder).read()) == 12, "it outlives an index that is made anew"
    assert len(list_tables(postgres)) == len(tables), "and the table of the one before does not"


def test_feedback_belongs_to_the_index_and_not_to_the_name_of_its_folder(
    made: PgvectorStore, postgres: Server, tmp_path: Path
) -> None:
    """Another host calls the folder otherwise, and shares what is said; another index in a folder of the same name
    shares nothing."""
    elsewhere = tmp_path / "another name"
    shutil.copytree(tmp_path / "index", elsewhere)
    for name, place in (("a", tmp_path / "index"), ("b", elsewhere)):
        open_feedback(place).add(Correction(kind="wrong", image_id=name, query="q", at="2026-11-29T08:00:00+00:00"))
    for place in (tmp_path / "index", elsewhere):
        assert [one.image_id for one in open_feedback(place).read()] == ["a", "b"]
    namesake = tmp_path / "second" / "index"
    namesake.parent.mkdir()
    make_store(postgres.uri, namesake).close()
    assert open_feedback(namesake).read() == []
    made.snapshot(tmp_path / "copy")
    assert open_feedback(tmp_path / "copy").read() == []


TAGGER = """
import sys
from vitrieve.feedback.events import Correction, find_last_words
from vitrieve.index.feedback import open_feedback
folder, writer = sys.argv[1:]

def join(history, word):
    said = find_last_words(history)
    tags = (*(said[0].tags if said else ()), word)
    return [Correction(kind="tagged", image_id="a", tags=tags, at="2026-11-29T08:00:00+00:00")]

print("ready", flush=True)
sys.stdin.readline()  # all begin together
for turn in range(5):
    open_feedback(folder).add_to(lambda history: join(history, f"{writer}{turn}"))
"""


def test_tags_that_processes_join_at_once_are_all_kept(
    postgres: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each reads the tags of before and writes them with its own."""
    folder = tmp_path / "tagged"
    make_store(postgres.uri, folder).close()
    with ExitStack() as running:
        writers = []
        for writer in "abc":
            command = [sys.executable, "-c", TAGGER, str(folder), writer]
            process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            writers.append(running.enter_context(process))
            running.callback(process.kill)
        for one in writers:
            assert one.stdout is not None
            assert one.stdout.readline() == "ready\n"
        for one in writers:
            assert one.stdin is not None
            one.stdin.write("\n")
            one.stdin.flush()
        assert [one.wait(WATCHDOG_SECONDS) for one in writers] == [0, 0, 0]
    (said,) = find_last_words(open_feedback(folder).read())
    assert sorted(said.tags) == [f"{writer}{turn}" for writer in "abc" for turn in range(5)]
    monkeypatch.setattr(pgvector_feedback, "WAIT_SECONDS", 0.05)
    correction = replace(said, tags=("d",))
    with connected(postgres.uri) as other:
        lock_name(other, pgvector_feedback.TABLE)
        with pytest.raises(ArtifactError, match="is being changed by another process"):
            open_feedback(folder).add(correction)
    open_feedback(folder).add(correction)
