"""One store of each kind, for what must hold for all of them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.index import postgres as postgres_server
from tests.index.conformance import make_info
from tests.index.milvus_lite import Server
from vitrieve.index.open import create_index
from vitrieve.index.store import IndexSettings, VectorStore

STORES = ("exact", "lance", "milvus", "pgvector")
SERVERS = {"milvus": "server", "pgvector": "postgres"}
"""Stores on a server, and the fixture that starts it."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    pytest.importorskip("milvus_lite", reason="needs milvus-lite")
    server = Server(tmp_path_factory.mktemp("milvus") / "data")
    yield server
    server.kill()


@pytest.fixture(scope="session")
def postgres() -> Iterator[postgres_server.Server]:
    server = postgres_server.Server()
    yield server
    server.remove()


@pytest.fixture(params=STORES)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def settings_of(kind: str, request: pytest.FixtureRequest) -> IndexSettings:
    if kind not in SERVERS:
        return IndexSettings()
    index_kind = "flat" if kind == "milvus" else "ivf_hnsw_sq"
    return IndexSettings(index_kind=index_kind, uri=request.getfixturevalue(SERVERS[kind]).uri)


@pytest.fixture
def store(kind: str, settings_of: IndexSettings, tmp_path: Path) -> Iterator[VectorStore]:
    store = create_index(make_info(kind), tmp_path / "index", settings=settings_of)
    yield store
    store.close()
