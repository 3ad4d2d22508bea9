"""Encrypted servers: whose certificate is trusted, and what is said where it is not."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("cryptography", reason="needs cryptography, which moto brings")

from tests.index.conformance import make_info, make_many
from tests.index.milvus_lite import Server as MilvusServer
from tests.index.postgres import Server as PostgresServer
from tests.index.tls import Authority, TlsFront
from vitrieve.errors import ArtifactError, ConfigError
from vitrieve.index import milvus
from vitrieve.index.milvus import TLS_VARIABLES
from vitrieve.index.open import create_index, open_index
from vitrieve.index.store import IndexSettings


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tls")


@pytest.fixture(scope="module")
def authority(folder: Path) -> Authority:
    return Authority(folder, "authority")


@pytest.fixture(scope="module")
def stranger(folder: Path) -> Authority:
    """An authority that has signed nothing."""
    return Authority(folder, "stranger")


@pytest.fixture(scope="module")
def milvus_server(folder: Path) -> Iterator[MilvusServer]:
    pytest.importorskip("milvus_lite", reason="needs milvus-lite")
    server = MilvusServer(folder / "data")
    yield server
    server.kill()


def test_postgresql_is_trusted_by_its_certificate(
    postgres: PostgresServer,
    authority: Authority,
    stranger: Authority,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    front = TlsFront(postgres.port, authority.issue("postgres"), is_postgres=True)
    try:
        uri = f"postgresql://postgres@127.0.0.1:{front.port}/postgres?sslmode=verify-full"
        settings = IndexSettings(uri=uri)
        monkeypatch.setenv("PGSSLROOTCERT", str(authority.certificate))
        store = create_index(make_info("pgvector"), tmp_path / "index", settings=settings)
        vectors, records = make_many(5)
        store.upsert(vectors, records)
        assert store.search(vectors[:1], 1)[0][0].record == records[0]
        store.close()
        assert front.num_encrypted > 0
        monkeypatch.setenv("PGSSLROOTCERT", str(stranger.certificate))
        for call in (
            lambda: open_index(tmp_path / "index"),
            lambda: create_index(make_info("pgvector"), tmp_path / "other", settings=settings),
        ):
            with pytest.raises(ArtifactError, match="certificate verify failed") as caught:
                call()
            assert "\n" not in str(caught.value)
        other_name = uri.replace("127.0.0.1", "localhost")  # the certificate is for the number
        monkeypatch.setenv("PGSSLROOTCERT", str(authority.certificate))
        with pytest.raises(ArtifactError, match='does not match host name "localhost"'):
            create_index(make_info("pgvector"), tmp_path / "third", settings=IndexSettings(uri=other_name))
    finally:
        front.close()


@pytest.mark.parametrize("is_mutual", [False, True])
def test_milvus_is_trusted_by_its_certificate(
    is_mutual: bool,
    milvus_server: MilvusServer,
    authority: Authority,
    stranger: Authority,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    front = TlsFront(
        milvus_server.port,
        authority.issue("milvus"),
        is_postgres=False,
        client_authority=authority if is_mutual else None,
    )
    try:
        uri = f"https://127.0.0.1:{front.port}"
        settings = IndexSettings(index_kind="flat", uri=uri)
        monkeypatch.setenv(TLS_VARIABLES[0], str(authority.certificate))
        if is_mutual:
            for name, path in zip(TLS_VARIABLES[1:], authority.issue("client"), strict=True):
                monkeypatch.setenv(name, str(path))
        store = create_index(make_info("milvus"), tmp_path / "index", settings=settings)
        vectors, records = make_many(5)
        store.upsert(vectors, records)
        assert store.search(vectors[:1], 1)[0][0].record == records[0]
        store.close()
        assert front.num_encrypted > 0
        monkeypatch.setenv(TLS_VARIABLES[0], str(stranger.certificate))
        with pytest.raises(ArtifactError, match=f"{uri} is not trusted: its certificate cannot be verified") as caught:
            open_index(tmp_path / "index")
        assert "\n" not in str(caught.value)
    finally:
        front.close()


def test_files_of_certificates_that_do_not_suit_are_named(
    authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri, (certificate, key) = "https://127.0.0.1:1", authority.issue("other")
    assert milvus.read_tls(uri) == {}
    (tmp_path / "text").write_text("no certificate")
    cases: dict[str, tuple[Path | None, Path | None, Path | None]] = {
        "which is no file": (tmp_path / "missing", None, None),
        "is not all: a certificate of the client needs": (authority.certificate, certificate, None),
        "VITRIEVE_MILVUS_CERT and VITRIEVE_MILVUS_KEY is not all": (None, certificate, key),
        "are no certificates": (tmp_path / "text", None, None),
    }
    for message, paths in cases.items():
        for name, path in zip(TLS_VARIABLES, paths, strict=True):
            monkeypatch.setenv(name, "" if path is None else str(path))
        with pytest.raises(ConfigError, match=message):
            milvus.read_tls(uri)
    monkeypatch.setenv(TLS_VARIABLES[0], str(authority.certificate))
    with pytest.raises(ConfigError, match="is for a server with TLS"):
        milvus.read_tls("http://127.0.0.1:1")
