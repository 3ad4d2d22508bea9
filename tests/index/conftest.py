"""One store of each kind, for what must hold for all of them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.index.conformance import make_info
from tests.index.milvus_lite import Server
from vitrieve.index.open import create_index
from vitrieve.index.store import IndexSettings, VectorStore

STORES = ("exact", "lance", "milvus")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    pytest.importorskip("milvus_lite", reason="needs milvus-lite")
    server = Server(tmp_path_factory.mktemp("milvus") / "data")
    yield server
    server.kill()


@pytest.fixture(params=STORES)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def settings_of(kind: str, request: pytest.FixtureRequest) -> IndexSettings:
    if kind != "milvus":
        return IndexSettings()
    return IndexSettings(index_kind="flat", uri=request.getfixturevalue("server").uri)


@pytest.fixture
def store(kind: str, settings_of: IndexSettings, tmp_path: Path) -> Iterator[VectorStore]:
    store = create_index(make_info(kind), tmp_path / "index", settings=settings_of)
    yield store
    store.close()
