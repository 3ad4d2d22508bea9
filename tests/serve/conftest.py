"""A service over a tiny real index: five classes of four pictures, random weights, the exact store."""

from __future__ import annotations

import asyncio
import gc
import io
import shutil
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path

import httpx
import pytest
import uvicorn
from fastapi import FastAPI
from PIL import Image
from starlette.testclient import TestClient

from vitrieve.curation.audit import audit
from vitrieve.curation.duplicates import duplicates
from vitrieve.curation.pages import write_audit_page, write_duplicates_page
from vitrieve.data.decode import read_image
from vitrieve.data.records import ImageRecord
from vitrieve.embed.embeddings import Embeddings
from vitrieve.index.open import build_index
from vitrieve.runtime.encoder import load_encoder
from vitrieve.search.request import Example, SearchRequest
from vitrieve.search.searcher import Searcher
from vitrieve.search.threshold import Threshold
from vitrieve.serve.app import create_app, create_served_app
from vitrieve.serve.collections import Collections
from vitrieve.serve.server import BoundedProtocol, configure, listen, spell_address
from vitrieve.serve.settings import Limits, ProxySettings, ServeSettings, Tokens
from vitrieve.serve.views import write_search_page

SECRET = "this must never be served"
Connect = Callable[..., TestClient]


@pytest.fixture(scope="session")
def index_folder(tiny_encoder_folder: Path, class_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    encoder = load_encoder(tiny_encoder_folder, engine="onnx", num_threads=1)
    (class_folder.parent / "secret.png").write_text(SECRET)
    records = [
        ImageRecord(
            image_id=str(path.relative_to(class_folder)),
            path=path,
            label=int(path.parent.name[-1]),
            split="test",
            metadata={"label": path.parent.name.capitalize(), "copy": path.stem},
        )
        for path in sorted(class_folder.rglob("*.png"))
    ]
    embeddings = Embeddings(
        vectors=encoder.encode([read_image(record) for record in records]),
        records=tuple(records),
        failures=(),
        fingerprint=encoder.fingerprint,
        encoder_source=str(tiny_encoder_folder),
        image_size=32,
        license="Made by <b>nobody</b>",
    )
    folder = tmp_path_factory.mktemp("serve") / "index"
    build_index(embeddings, folder, store="exact").close()
    return folder


@pytest.fixture(scope="session")
def searcher(index_folder: Path, tiny_encoder_folder: Path) -> Searcher:
    return Searcher.open(index_folder, load_encoder(tiny_encoder_folder, engine="onnx", num_threads=1))


@pytest.fixture(scope="session")
def empty_searcher(
    index_folder: Path, tiny_encoder_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Searcher]:
    """The same index after all its images went away."""
    folder = tmp_path_factory.mktemp("empty") / "index"
    shutil.copytree(index_folder, folder)
    searcher = Searcher.open(folder, load_encoder(tiny_encoder_folder, engine="onnx", num_threads=1))
    searcher.store.delete(list(searcher.store.image_ids()))
    yield searcher
    searcher.store.close()


@pytest.fixture
def connect(searcher: Searcher) -> Iterator[Connect]:
    """Start a service and connect to it: ``connect(limits=..., token=..., hosts=...)``."""
    clients: list[TestClient] = []

    def start(
        limits: Limits | None = None,
        token: str | None = None,
        hosts: tuple[str, ...] | None = None,
        proxy: ProxySettings | None = None,
    ) -> TestClient:
        app = create_app(searcher, limits=limits, token=token, hosts=hosts, proxy=proxy)
        client = TestClient(app, raise_server_exceptions=False, follow_redirects=False)
        clients.append(client.__enter__())
        while client.get("/readyz").status_code == 503:
            time.sleep(0.01)
        return client

    yield start
    for client in clients:
        client.__exit__()


@pytest.fixture
def client(connect: Connect) -> TestClient:
    return connect()


@pytest.fixture(scope="session")
def picture(class_folder: Path) -> bytes:
    """The file of ``class2/1.png``."""
    return (class_folder / "class2" / "1.png").read_bytes()


class Server:
    """The service on a port of its own, in a thread; a real server for real clients."""

    def __init__(
        self,
        app: FastAPI,
        port: int = 0,
        protocol: type[BoundedProtocol] | None = None,
        host: str = "127.0.0.1",
        has_own_loop: bool = False,
    ) -> None:
        """Start it; ``has_own_loop`` takes uvicorn's event loop, as ``vitrieve serve`` does."""
        self._listener = listen(host, port)
        self.address = spell_address(self._listener, ProxySettings()).rstrip("/")
        self.port = self._listener.getsockname()[1]
        config = configure(app)
        config.timeout_graceful_shutdown = 1
        if protocol is not None:
            config.http = protocol
        self._server = uvicorn.Server(config)
        self._runner = asyncio.Runner(loop_factory=config.get_loop_factory() if has_own_loop else None)
        self._thread = threading.Thread(target=self._run_in_loop)
        self._thread.start()
        # There is no TLS to get ready for.
        while httpx.get(f"{self.address}/readyz", verify=False, timeout=60).status_code == 503:
            time.sleep(0.01)

    @property
    def num_connections(self) -> int:
        return len(self._server.server_state.connections)

    def _run_in_loop(self) -> None:
        with self._runner:
            self._runner.run(self._run())

    async def _run(self) -> None:
        await self._server.serve(sockets=[self._listener])
        await asyncio.sleep(0.2)  # or connections that browsers kept open are never closed, which pytest reports

    def stop(self) -> None:
        self._server.should_exit = True
        self._thread.join()
        self._listener.close()
        # A connection that was accepted when the loop ended belongs to nobody, and its client would wait for ever; the
        # end of a process closes it, and that of a thread does not.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)
            gc.collect()


@pytest.fixture(scope="session")
def server(searcher: Searcher) -> Iterator[Server]:
    server = Server(create_app(searcher))
    yield server
    server.stop()


@pytest.fixture
def own_server(index_folder: Path, tiny_encoder_folder: Path, tmp_path: Path) -> Iterator[Server]:
    """A service over an index of its own, beside which nobody else keeps feedback."""
    folder = tmp_path / "index"
    shutil.copytree(index_folder, folder)
    searcher = Searcher.open(folder, load_encoder(tiny_encoder_folder, engine="onnx", num_threads=1))
    server = Server(create_app(searcher))
    yield server
    server.stop()
    searcher.close()


@pytest.fixture(scope="session")
def services(
    searcher: Searcher,
    empty_searcher: Searcher,
    server: Server,
    index_folder: Path,
    tiny_encoder_folder: Path,
    class_folder: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[dict[str, str]]:
    """The address of each service, and of each page that is a file."""
    folder = tmp_path_factory.mktemp("everybody")
    encoder = load_encoder(tiny_encoder_folder, engine="onnx", num_threads=1)
    strict = Threshold(score=0.9999, fingerprint=searcher.encoder.fingerprint, method="for this test")
    both = Collections({"birds": searcher, "cats": searcher}, {"birds": Tokens(), "cats": Tokens()})
    apps = {
        "empty": create_app(empty_searcher),
        "unmatched": create_app(Searcher(searcher.store, searcher.encoder, threshold=strict)),
        "strict": create_app(searcher, limits=Limits(reads_per_minute=1)),
        "token": create_app(searcher, token="a-token-of-these-tests"),
        "collections": create_served_app(both, ServeSettings(host="127.0.0.1", port=0)),
    }
    request = SearchRequest(plus=(Example(picture=class_folder / "class1" / "1.png"),))
    write_search_page(folder / "search.html", [(request, searcher.answer(request))], store=searcher.store)
    album = folder / "album"
    shutil.copytree(class_folder, album)
    shutil.copy(album / "class0" / "0.png", album / "class1" / "again.png")
    (album / "class1").rename(album / "a class whose name is longer than the screen of a phone is wide")
    (album / "class2" / "bad.png").write_bytes(b"no picture")
    write_duplicates_page(duplicates(album, level="exact"), folder / "duplicates.html")
    write_audit_page(audit(f"folder:{album}", encoder, threshold=0.99), folder / "audit.html")
    with ExitStack() as running:
        if find_spec("openTSNE"):
            from vitrieve.mapping.collection_map import map_collection

            shutil.copytree(index_folder, folder / "index")
            map_collection(folder / "index")
            mapped = running.enter_context(Searcher.open(folder / "index", encoder))
            apps["map"] = create_app(mapped)
        addresses = {"index": server.address, **{path.name: path.as_uri() for path in folder.glob("*.html")}}
        for name, app in apps.items():
            started = Server(app)
            running.callback(started.stop)
            addresses[name] = started.address
        yield addresses


def make_picture(size: tuple[int, int] = (40, 36), image_format: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, (120, 40, 200)).save(file, format=image_format, **options)
    return file.getvalue()
