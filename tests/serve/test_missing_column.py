"""A metadata column that the index does not have: one message, whoever asks and wherever the index is."""

from __future__ import annotations

from collections.abc import Iterator
from html import unescape
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from tests.index import postgres as postgres_server
from tests.index.milvus_lite import Server as MilvusServer
from tests.serve.conftest import Server, make_picture
from vitrieve.cli.main import main
from vitrieve.data.decode import read_image
from vitrieve.data.records import ImageRecord
from vitrieve.embed.collection import Embeddings
from vitrieve.errors import InputError
from vitrieve.index.open import build_index
from vitrieve.index.store import IndexSettings
from vitrieve.runtime.encoder import load_encoder
from vitrieve.search.facets import count_values, find_facets
from vitrieve.search.request import Example, SearchRequest
from vitrieve.search.searcher import Searcher
from vitrieve.serve.app import create_app
from vitrieve.serve.mcp_server import create_mcp_app
from vitrieve.serve.settings import LOCAL_NAMES, Limits

MESSAGE = "unknown metadata column 'colour'. Did you mean 'color'? Valid: color, year."
BARE_MESSAGE = (
    "unknown metadata column 'colour': the images of this index have no metadata. An index of folder:DIR has the "
    "column label, and one of table:FILE the columns of the table."
)
CONDITIONS = ("colour=red", "colour!=red", "colour>5", '"colour"=red|blue')
WRITE = "a-token-to-write-here"


@pytest.fixture(scope="module")
def uris(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Start the servers that are installed here."""
    postgres = postgres_server.Server()
    found = {"pgvector": postgres.uri}
    milvus = None
    try:
        milvus = MilvusServer(tmp_path_factory.mktemp("milvus") / "data")
        found["milvus"] = milvus.uri
    except ImportError:
        pass
    yield found
    postgres.remove()
    if milvus is not None:
        milvus.kill()


@pytest.fixture(scope="module", params=["exact", "lance", "milvus", "pgvector", "bare"])
def searcher(
    request: pytest.FixtureRequest,
    tiny_encoder_folder: Path,
    class_folder: Path,
    uris: dict[str, str],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Searcher]:
    """An index of six pictures with two columns in each store; and one without metadata."""
    kind = str(request.param)
    if kind == "milvus" and "milvus" not in uris:
        pytest.skip("needs milvus-lite")
    encoder = load_encoder(tiny_encoder_folder, engine="onnx", num_threads=1)
    metadata = {} if kind == "bare" else {"color": "red", "year": "2020"}
    records = [
        ImageRecord(image_id=path.name, path=path, label=0, split="test", metadata=metadata)
        for path in sorted((class_folder / "class0").glob("*.png"))
    ]
    embeddings = Embeddings(
        vectors=encoder.encode([read_image(record) for record in records]),
        records=tuple(records),
        failures=(),
        fingerprint=encoder.fingerprint,
        encoder_source=str(tiny_encoder_folder),
        image_size=32,
    )
    folder = tmp_path_factory.mktemp(kind) / f"missing-{kind}"
    store = "exact" if kind == "bare" else kind
    settings = IndexSettings(index_kind="flat" if kind == "milvus" else "ivf_hnsw_sq", uri=uris.get(kind))
    if kind not in uris:
        settings = IndexSettings()
    build_index(embeddings, folder, store=store, settings=settings).close()  # type: ignore[arg-type]
    searcher = Searcher.open(folder, encoder)
    yield searcher
    searcher.close()


@pytest.fixture
def message(searcher: Searcher) -> str:
    return MESSAGE if searcher.store.columns() else BARE_MESSAGE


@pytest.mark.parametrize("condition", CONDITIONS)
def test_from_python(searcher: Searcher, message: str, condition: str) -> None:
    example = (Example(image_id="0.png"),)
    for ask in (
        lambda: searcher.answer(SearchRequest(plus=example, k=3, filter=condition)),
        lambda: searcher.answer(SearchRequest(plus=example, k=3, group_by="colour")),
        lambda: searcher.answer(SearchRequest(plus=(Example(text="red"),), k=3, filter=condition)),
        lambda: searcher.store.count(condition),
        lambda: find_facets(searcher.store, filter=condition),
        lambda: count_values(searcher.store, "colour"),
    ):
        with pytest.raises(InputError) as caught:
            ask()
        assert str(caught.value) == message


def test_from_the_command(searcher: Searcher, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["search", "--index", str(searcher.folder), "--id", "0.png"]
    for more in (["--filter", "colour=red"], ["--filter", "colour>5", "--json"], ["--group-by", "colour"]):
        assert main([*words, *more]) == 2
        printed = capsys.readouterr()
        assert printed.out == ""
        assert message in printed.err
        assert "Traceback" not in printed.err


def test_over_http(searcher: Searcher, message: str) -> None:
    client = TestClient(create_app(searcher), raise_server_exceptions=False)
    for body in ({"filter": ["colour=red"]}, {"filter": ["colour<3"]}, {"group_by": "colour"}):
        answer = client.post("/search", json={"id": "0.png", **body})
        assert (answer.status_code, answer.json()["detail"]) == (422, message)
    answer = client.get("/facets", params={"filter": "colour=red"})
    assert (answer.status_code, answer.json()["detail"]) == (422, message)


def test_on_the_page(searcher: Searcher, message: str) -> None:
    client = TestClient(create_app(searcher), raise_server_exceptions=False, headers={"Accept": "text/html"})
    for address in ("/?plus=0.png&filter=colour%3Dred", "/?text=red&filter=colour%3D1"):
        answer = client.get(address)
        assert answer.status_code == 422, address
        assert message in unescape(answer.text)


def test_for_an_assistant(searcher: Searcher, message: str) -> None:
    pytest.importorskip("mcp", reason="needs vitrieve[mcp]")
    from tests.serve.test_mcp import refuse

    server = Server(create_mcp_app(searcher, hosts=LOCAL_NAMES))
    try:
        address = server.address + "/mcp"
        assert message in refuse(address, "search", image_id="0.png", filter=["colour=red"])
        assert message in refuse(address, "facets", column="colour")
    finally:
        server.stop()


def test_a_change_makes_the_column_and_null_needs_none(searcher: Searcher) -> None:
    """Writing names columns that are new; to take away what is not there changes nothing."""
    limits = Limits(free_bytes=1)
    with TestClient(create_app(searcher, limits=limits, write_token=WRITE)) as client:
        writer = {"Authorization": f"Bearer {WRITE}"}
        before = searcher.store.columns()
        client.put("/images/new.png", content=make_picture(), headers=writer)
        taken = client.patch("/images/new.png", json={"metadata": {"colour": None}}, headers=writer)
        assert (taken.status_code, taken.json()["metadata"]) == (200, {})
        assert searcher.store.columns() == before
        assert client.delete("/images/new.png", headers=writer).status_code == 200
