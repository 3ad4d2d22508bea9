"""Several collections in one service: each by itself behind its tokens, and what they share stays within the bounds."""

from __future__ import annotations

import json
import re
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import quote

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from starlette.testclient import TestClient

from tests.serve.conftest import Server, make_picture
from tests.serve.services import SMALL
from tests.serve.test_openapi import BEFORE_THE_APPLICATION, CHECKS
from vitrieve.cli.main import main
from vitrieve.errors import ConfigError
from vitrieve.index.written import get_audit_file
from vitrieve.serve.app import create_served_app
from vitrieve.serve.collections import Collections, open_collections, read_collections
from vitrieve.serve.settings import Limits, ProxySettings, ServeSettings

READ = {name: f"a-token-to-read-{name}" for name in ("birds", "cats", "dogs")}
WRITE = {name: f"a-token-to-write-{name}" for name in ("birds", "cats")}
ALL, ALL_WRITE = "a-token-to-read-everything", "a-token-to-write-everything"
Start = Callable[..., TestClient]


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


@pytest.fixture
def file(index_folder: Path, tmp_path: Path) -> Path:
    """Three collections: birds and cats with both tokens, dogs to be read alone."""
    (tmp_path / "tokens").mkdir()
    lines = []
    for name, token in READ.items():
        shutil.copytree(index_folder, tmp_path / f"{name}-index")
        (tmp_path / "tokens" / f"{name}-read").write_text(f"{token}\n")
        entries = [f'{{ role = "read", file = "tokens/{name}-read" }}']
        if name in WRITE:
            (tmp_path / "tokens" / f"{name}-write").write_text(WRITE[name])
            entries.append(f'{{ role = "write", file = "tokens/{name}-write" }}')
        lines += [f"[{name}]", f'index = "{name}-index"', f"tokens = [{', '.join(entries)}]"]
    (tmp_path / "collections.toml").write_text("\n".join(lines))
    return tmp_path / "collections.toml"


@pytest.fixture
def start(file: Path) -> Iterator[Start]:
    """Start a service of the collections of a file."""
    running: list[tuple[TestClient, Collections]] = []

    def begin(limits: Limits = SMALL, token: str | None = ALL, file: Path = file, **values: object) -> TestClient:
        opened = open_collections(file, token=token, write_token=ALL_WRITE, engine="onnx", num_threads=1)
        settings = ServeSettings(host="127.0.0.1", port=0, limits=limits, **values)  # type: ignore[arg-type]
        app = create_served_app(opened, settings)
        client = TestClient(app, raise_server_exceptions=False, follow_redirects=False)
        running.append((client.__enter__(), opened))
        while client.get("/readyz").status_code == 503:
            time.sleep(0.01)
        return client

    yield begin
    for client, opened in running:
        client.__exit__()
        opened.close()


def list_names(client: TestClient, token: str = "") -> list[str]:
    answer = client.get("/", headers=bearer(token) if token else {})
    assert answer.status_code == 200, answer.text
    return [one["name"] for one in answer.json()["collections"]]


def test_each_collection_answers_as_a_service_of_its_own(start: Start, client: TestClient, picture: bytes) -> None:
    """Every route below ``/c/NAME`` answers what a service of one index answers."""
    several = start()
    headers = bearer(ALL)
    for path in (
        "/readyz",
        "/healthz",
        "/columns",
        "/facets",
        "/feedback",
        "/images/class0/0.png",
        "/thumbnails/class0/0.png",
    ):
        one = client.get(path)
        answer = several.get(f"/c/cats{path}", headers=headers)
        assert (answer.status_code, answer.content) == (one.status_code, one.content), path
    found = several.post("/c/cats/search?k=3", content=picture, headers=headers).json()["results"]
    assert found == client.post("/search?k=3", content=picture).json()["results"]
    assert several.get("/c/cats/map", headers=headers).status_code == 404
    assert several.get("/c/cats/metrics", headers=headers).status_code == 404
    for path in ("/c/cats", "/c/cats/"):
        page = several.get(path, headers={**headers, "Accept": "text/html"})
        assert page.status_code == 200
        assert "Find the same thing again" in page.text
    assert several.head("/c/cats/images/class0/0.png", headers=headers).content == b""


def test_a_token_opens_what_it_is_for(start: Start) -> None:
    client = start()
    tokens = {"": {}, **{token: bearer(token) for token in (*READ.values(), *WRITE.values(), ALL, ALL_WRITE, "wrong")}}
    for name in READ:
        may_write = {WRITE.get(name), ALL_WRITE}
        may_read = {READ[name], ALL, *may_write}
        for token, headers in tokens.items():
            read = client.get(f"/c/{name}/columns", headers=headers)
            assert read.status_code == (200 if token in may_read else 401), (name, token)
            assert "detail" in read.json() or token in may_read
            put = client.patch(f"/c/{name}/images/class0/0.png", json={"metadata": {"a": "b"}}, headers=headers)
            expected = 200 if token in may_write else 403 if token in may_read else 401
            assert put.status_code == expected, (name, token)
            assert ("a" in client.get(f"/c/{name}/columns", headers=bearer(ALL)).json()["columns"]) == any(
                one in may_write for one in list(tokens)[: list(tokens).index(token) + 1]
            )


def test_the_list_names_what_the_caller_may_see(start: Start) -> None:
    client = start()
    assert list_names(client, ALL) == ["birds", "cats", "dogs"]
    for name, token in READ.items():
        assert list_names(client, token) == [name]
    answer = client.get("/", headers=bearer(WRITE["cats"])).json()["collections"]
    assert answer == [{"name": "cats", "address": "/c/cats/", "is_ready": True, "num_images": 20, "may_write": True}]
    assert client.get("/").status_code == 401
    assert "token" in client.get("/").json()["detail"]
    assert client.get("/readyz").json() == {"status": "ready", "collections": {}}
    assert client.get("/readyz", headers=bearer(READ["dogs"])).json()["collections"] == {"dogs": True}
    page = client.get("/", headers={**bearer(READ["birds"]), "Accept": "text/html"}).text
    assert 'href="/c/birds/"' in page
    assert 'src="/c/birds/thumbnails/' in page
    assert "cats" not in page
    assert "Sign in" in client.get("/", headers={"Accept": "text/html"}).text


def test_a_browser_signs_in_to_several_collections(start: Start) -> None:
    client = start()

    def sign_in(path: str, token: str) -> int:
        form = {"token": (None, token), "after": (None, "/?plus=a")}
        return client.post(f"{path}/login", files=form).status_code

    assert sign_in("/c/birds", READ["cats"]) == 401
    assert sign_in("/c/birds", WRITE["birds"]) == 401  # a browser never holds it
    answer = client.post("/c/birds/login", files={"token": (None, READ["birds"]), "after": (None, "/?plus=a")})
    assert (answer.status_code, answer.headers["location"]) == (303, "/c/birds/?plus=a")
    assert "Path=/;" in answer.headers["set-cookie"]
    assert list_names(client) == ["birds"]
    assert client.get("/c/cats/columns").status_code == 401
    assert sign_in("", READ["cats"]) == 303
    assert list_names(client) == ["birds", "cats"]
    assert [client.get(f"/c/{name}/columns").status_code for name in READ] == [200, 200, 401]
    assert client.patch("/c/cats/images/class0/0.png", json={"metadata": {}}).status_code == 401
    (cookie,) = client.cookies.jar
    assert len(cookie.value or "") == 2 * 64 + 1
    assert not any(token in (cookie.value or "") for token in READ.values())
    for part in ("", ".", "a" * 64, ".".join(["b" * 64] * 100), (cookie.value or "")[:-1]):
        client.cookies.clear()
        client.cookies.set("vitrieve_session", part)
        assert client.get("/c/cats/columns").status_code == (200 if part.startswith((cookie.value or "")[:64]) else 401)


def test_an_unknown_name_is_not_found(start: Start) -> None:
    client = start()
    for name in ("none", "Cats", "cats-index", "", "cats\0", "ＣATS".lower(), "a" * 5000, "cats;x", "cats "):  # noqa: RUF001
        path = f"/c/{quote(name, safe='')}"
        for method in ("GET", "POST", "PUT", "PATCH", "DELETE"):
            answer = client.request(method, f"{path}/columns", headers=bearer(ALL_WRITE))
            assert answer.status_code == 404, answer.text
            assert set(answer.json()) == {"detail"}
        page = client.get(f"{path}/", headers={**bearer(ALL), "Accept": "text/html"})
        assert (page.status_code, "<h1>" in page.text) == (404, True)


def test_no_path_leads_to_another_collection(start: Start) -> None:
    """The paths are sent as they stand here: a client's library would tidy them up."""
    client = start()
    for path in (
        *("/c/cats/../birds/columns", "/c/cats/%2e%2e/birds/columns", "/c/cats%2f..%2fbirds/columns"),
        *("/c/cats//c/birds/columns", "/c/cats/c/birds/columns", "//c/birds/columns", "/c//birds/columns"),
        *("/columns", "/images/class0/0.png", "/c/birds/columns", "/c/birds%2fcolumns", "/c/../c/birds/columns"),
        *("/c/cats/images/..%2f..%2fbirds/columns", "/c/cats/static/../../birds/columns", "/c/cats/images/%2e%2e"),
        *("/c/./columns", "/c/../columns", "/c/birds", "/c/birds/images/class0/0.png"),
    ):
        request = client.build_request("GET", "http://testserver/x", headers=bearer(READ["cats"]))
        request.url = request.url.copy_with(raw_path=path.encode())
        answer = client.send(request)
        assert answer.status_code in (401, 404), (path, answer.text)


def test_a_collection_without_a_token_is_open_and_the_others_are_not(start: Start, file: Path) -> None:
    text = file.read_text()
    file.write_text(re.sub(r"(?s)(\[dogs\].*?\n)tokens[^\n]*", r"\1", text))
    client = start(token=None)
    assert list_names(client) == ["dogs"]
    assert list_names(client, READ["cats"]) == ["cats", "dogs"]
    assert client.get("/c/dogs/columns").status_code == 200
    assert client.get("/c/cats/columns").status_code == 401
    assert client.get("/metrics").status_code == 403
    assert client.post("/login", files={"token": (None, READ["cats"]), "after": (None, "/")}).status_code == 303
    assert list_names(client) == ["cats", "dogs"]


def test_what_visitors_send_belongs_to_one_collection_and_is_bounded_over_all(start: Start, tmp_path: Path) -> None:
    for folder in (None, tmp_path / "uploads"):
        client = start(Limits(num_uploads=3, free_bytes=1), uploads=folder)

        def send(name: str, data: bytes, client: TestClient = client) -> str:
            headers = {**bearer(ALL), "Accept": "application/json"}
            answer = client.post(f"/c/{name}/uploads", files={"image": data}, headers=headers)
            address = str(answer.json()["address"])
            assert address.startswith(f"/c/{name}/?upload=")
            return address.partition("=")[2]

        def find(name: str, upload_id: str, client: TestClient = client) -> int:
            return client.get(f"/c/{name}/uploads/{upload_id}", headers=bearer(ALL)).status_code

        first = send("cats", make_picture())
        assert [find(name, first) for name in READ] == [410, 200, 410]
        second = send("birds", make_picture())
        assert first != second
        assert (find("birds", second), find("birds", first), find("cats", second)) == (200, 410, 410)
        later = [send(name, make_picture((20, 20 + number))) for number, name in enumerate(("dogs", "dogs"))]
        held = [find("cats", first), find("birds", second), *(find("dogs", one) for one in later)]
        assert (held.count(200), held[-1]) == (3, 200)


def test_changes_and_feedback_stay_in_their_collection(start: Start, tmp_path: Path) -> None:
    client = start()
    put = client.put("/c/birds/images/new.png", content=make_picture(), headers=bearer(WRITE["birds"]))
    assert put.status_code == 201
    assert client.get("/c/birds/images/new.png", headers=bearer(ALL)).status_code == 200
    assert client.get("/c/cats/images/new.png", headers=bearer(ALL)).status_code == 404
    (line,) = get_audit_file(tmp_path / "birds-index").read_text().splitlines()
    assert (json.loads(line)["what"], json.loads(line)["request_id"]) == ("put", put.headers["x-request-id"])
    assert not get_audit_file(tmp_path / "cats-index").exists()
    body = {"kind": "right", "image_id": "class0/0.png", "query_id": "class0/1.png"}
    assert client.post("/c/cats/feedback", json=body, headers=bearer(READ["cats"])).status_code == 200
    nums = [client.get(f"/c/{name}/feedback", headers=bearer(ALL)).json()["num_corrections"] for name in READ]
    assert nums == [0, 1, 0]


def test_counts_have_the_name_of_the_collection(start: Start, picture: bytes) -> None:
    client = start()
    client.post("/c/cats/search", content=picture, headers=bearer(ALL))
    client.get("/c/nothing/x", headers=bearer(ALL))
    text = client.get("/metrics", headers=bearer(ALL)).text
    assert re.search(r'vitrieve_requests_total\{collection="cats",method="POST",route="/search",status="200"\} 1', text)
    assert re.search(r'vitrieve_stage_seconds_count\{collection="cats",stage="encode"\} 1', text)
    assert 'collection="",method="GET",route="/c/{path:path}",status="404"' in text
    assert 'collection="nothing"' not in text
    assert client.get("/metrics", headers=bearer(READ["cats"])).status_code == 403
    assert client.get("/metrics").status_code == 401


def test_an_encoder_is_loaded_once(file: Path) -> None:
    with open_collections(file, engine="onnx", num_threads=1) as opened:
        assert len({id(searcher.encoder) for searcher in opened.searchers.values()}) == 1


def test_an_index_that_is_replaced_touches_no_other(start: Start, tmp_path: Path, picture: bytes) -> None:
    client = start()
    services = {service.name: service for service in client.app.state.services}  # type: ignore[attr-defined]
    before = {name: service.searcher for name, service in services.items()}
    assert client.delete("/c/cats/images/class2/1.png", headers=bearer(ALL_WRITE)).status_code == 200
    shutil.move(tmp_path / "birds-index", tmp_path / "old")
    assert client.post("/c/birds/search", content=picture, headers=bearer(ALL)).status_code in (200, 503)
    assert client.post("/c/cats/search", content=picture, headers=bearer(ALL)).status_code == 200
    shutil.copytree(tmp_path / "cats-index", tmp_path / "birds-index")

    def find_num() -> int:
        answer = client.get("/c/birds/readyz", headers=bearer(ALL))
        return int(answer.json().get("num_images", 0))

    until = time.monotonic() + 60
    while find_num() != 19:
        assert time.monotonic() < until
        time.sleep(0.05)
    assert services["birds"].searcher is not before["birds"]
    assert all(services[name].searcher is before[name] for name in ("cats", "dogs"))
    assert services["birds"].searcher.encoder is before["birds"].encoder


@pytest.mark.parametrize("accept", ["application/json", "text/html"])
def test_the_list_counts_an_index_that_was_replaced(start: Start, tmp_path: Path, accept: str) -> None:
    client = start()
    assert client.delete("/c/cats/images/class2/1.png", headers=bearer(ALL_WRITE)).status_code == 200
    shutil.move(tmp_path / "birds-index", tmp_path / "old")
    shutil.copytree(tmp_path / "cats-index", tmp_path / "birds-index")
    answer = client.get("/", headers={**bearer(ALL), "Accept": accept})
    if accept == "text/html":
        assert re.findall(r"([\d,]+) pictures", answer.text) == ["19", "19", "20"]
        assert "does not answer" not in answer.text
    else:
        nums = {one["name"]: one["num_images"] for one in answer.json()["collections"]}
        assert nums == {"birds": 19, "cats": 19, "dogs": 20}


def test_behind_a_proxy_every_address_has_its_prefix(start: Start) -> None:
    client = start(proxy=ProxySettings(root_path="/photos"))
    page = client.get("/photos/", headers={**bearer(ALL), "Accept": "text/html"}).text
    assert 'href="/photos/c/cats/"' in page
    for path in ("/photos/c/cats/", "/c/cats/"):
        page = client.get(path, headers={**bearer(ALL), "Accept": "text/html"}).text
        links = re.findall(r'(?:href|src|action)="(/[^"]*)"', page)
        assert links
        assert all(link.startswith(("/photos/c/cats/", "/photos/")) for link in links)
        assert 'href="/photos/" id="all-collections"' in page
        assert 'data-root="/photos/c/cats"' in page
    form = {"token": (None, READ["cats"]), "after": (None, "/")}
    answer = client.post("/photos/c/cats/login", files=form)
    assert (answer.headers["location"], "Path=/photos;" in answer.headers["set-cookie"]) == ("/photos/c/cats/", True)


def test_memory_for_copies_is_divided(start: Start) -> None:
    client = start(Limits(resident_bytes=30 * 2**20, thumbnail_bytes=90, free_bytes=1))
    services = client.app.state.services  # type: ignore[attr-defined]
    assert [service.limits.resident_bytes for service in services] == [10 * 2**20] * 3
    assert [service.limits.thumbnail_bytes for service in services] == [30] * 3
    assert len({id(service.bodies) for service in services}) == 1


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("", "names 0 collections"),
        ("cats = 1", "must be a table"),
        ("[cats]\nindex = 3", "index is missing"),
        ("[cats]", "index is missing"),
        ("[Cats]\nindex = 'i'", "a-z, 0-9 and -"),
        ("['../cats']\nindex = 'i'", "a-z, 0-9 and -"),
        ("[-cats]\nindex = 'i'", "a-z, 0-9 and -"),
        ("[cats]\nindx = 'i'", "Did you mean 'index'?"),
        ("[cats]\nindex = 'i'\ntoken = 'secret'", "unknown key 'token'"),
        ("[cats]\nindex = 'i'\nencoder = 1", "encoder must be"),
        ("[cats]\nindex = 'i'\nmap-path = '/a=/b'", "must be a list"),
        ("[cats]\nindex = 'i'\ntokens = 'x'", "must be a list"),
        ("[cats]\nindex = 'i'\ntokens = ['x']", "is described by"),
        ("[cats]\nindex = 'i'\ntokens = [{role = 'read', value = 'x'}]", "does not stand in this file"),
        ("[cats]\nindex = 'i'\ntokens = [{role = 'admin', file = 'x'}]", "accepted: read, write"),
        ("[cats]\nindex = 'i'\ntokens = [{role = 'read'}]", "one of the two"),
        ("[cats]\nindex = 'i'\ntokens = [{role = 'read', file = 'a', variable = 'B'}]", "one of the two"),
        ("[cats]\nindex = 'i'\ntokens = [{role = 'read', file = 'missing'}]", "cannot be read"),
        ("[cats]\nindex = 'i'\ntokens = [{role = 'read', variable = 'NOT_SET_ANYWHERE'}]", "is not set"),
        ("[cats]\nindex = 'i'\ntokens = [{role = 'read', variable = 'SHORT'}]", "has 5 characters"),
        (
            "[cats]\nindex = 'i'\ntokens = [{role = 'read', variable = 'LONG'}, {role = 'write', variable = 'LONG'}]",
            "differ",
        ),
        (
            "[cats]\nindex = 'i'\nmap-path = ['/a=/b']\ntokens = [{role = 'write', variable = 'LONG'}]",
            "do not go together",
        ),
        ("[cats", "is no TOML"),
    ],
)
def test_a_fault_of_the_file_is_told(text: str, part: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHORT", "short")
    monkeypatch.setenv("LONG", "x" * 20)
    file = tmp_path / "collections.toml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=re.escape(part)) as caught:
        read_collections(file)
    assert str(file) in str(caught.value)
    assert not any(token in str(caught.value) for token in ("secret", "x" * 20))


@pytest.mark.parametrize(
    ("words", "part"),
    [
        ([], "give --index FOLDER"),
        (["--index", "a", "--collections", "b"], "give --index FOLDER"),
        (["--collections", "/nowhere.toml"], "cannot be read"),
        (["--collections", "FILE", "--encoder", "e"], "stand in the file"),
        (["--collections", "FILE", "--host", "0.0.0.0"], "needs a token"),
        (["--collections", "FILE", "--port", "0"], "the collection cats:"),
        (["--collections", "FILE", "--root-path", "/c"], "collections are below /c"),
    ],
)
def test_wrong_flags_are_told(
    words: list[str], part: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("VITRIEVE_TOKEN", raising=False)
    monkeypatch.delenv("VITRIEVE_WRITE_TOKEN", raising=False)
    (tmp_path / "file").write_text("[cats]\nindex = 'missing'")
    assert main(["serve", *(str(tmp_path / "file") if word == "FILE" else word for word in words)]) == 2
    assert part in capsys.readouterr().err


@pytest.fixture(scope="module")
def collections_server(index_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("collections")
    shutil.copytree(index_folder, folder / "index")
    (folder / "file").write_text('[cats]\nindex = "index"\n[birds]\nindex = "index"')
    with open_collections(folder / "file", token=ALL, write_token=ALL_WRITE, engine="onnx", num_threads=1) as opened:
        limits = Limits(writes_per_minute=100_000, free_bytes=1, reads_per_minute=0)
        server = Server(create_served_app(opened, ServeSettings(host="127.0.0.1", port=0, limits=limits)))
        yield server
        server.stop()


PATHS = [
    *(("/", "GET"), ("/healthz", "GET"), ("/readyz", "GET"), ("/metrics", "GET")),
    *((f"/c/{{name}}{path}", "GET") for path in ("/readyz", "/columns", "/facets", "/feedback", "/explain", "/images")),
    *((f"/c/{{name}}{path}", "POST") for path in ("/search", "/explain", "/feedback", "/images:batch")),
    *(("/c/{name}/images/{image_id}", method) for method in ("GET", "PUT", "PATCH", "DELETE")),
    ("/c/{name}/thumbnails/{image_id}", "GET"),
]


@pytest.mark.parametrize("mode", list(schemathesis.GenerationMode), ids=lambda mode: mode.value)
@pytest.mark.parametrize(("path", "method"), PATHS)
def test_no_answer_is_undocumented(
    path: str, method: str, mode: schemathesis.GenerationMode, collections_server: Server
) -> None:
    """Any name in half of the requests, and one that is there in the others."""
    headers = bearer(ALL_WRITE)
    schema = schemathesis.openapi.from_url(f"{collections_server.address}/openapi.json", headers=headers)
    operation = schema[path][method]
    if mode == schemathesis.GenerationMode.NEGATIVE and "{name}" not in path:
        pytest.skip("no value could break the document: it takes nothing")
    seen = 0

    @given(case=operation.as_strategy(generation_mode=mode))
    @settings(max_examples=8, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))
    def check(case: schemathesis.Case) -> None:
        nonlocal seen
        seen += 1
        if "{name}" in path and seen % 2:
            case.path_parameters["name"] = "cats"
        answer = case.call(headers=headers)
        if answer.status_code == 400 and answer.content == BEFORE_THE_APPLICATION:
            return
        case.validate_response(answer, checks=CHECKS)

    check()


def test_the_document_of_one_collection_says_where_it_is(start: Start) -> None:
    client = start(proxy=ProxySettings(root_path="/photos"))
    document = client.get("/c/cats/openapi.json", headers=bearer(ALL)).json()
    assert document["servers"] == [{"url": "/photos/c/cats"}]
    whole = client.get("/openapi.json", headers=bearer(READ["cats"])).json()
    assert whole["servers"] == [{"url": "/photos"}]
    assert {path for path in whole["paths"] if path.startswith("/c/{name}/")} == {
        f"/c/{{name}}{path}" for path in document["paths"]
    }
    assert {"/", "/healthz", "/readyz", "/metrics"} == {path for path in whole["paths"] if not path.startswith("/c/")}
    ids = [operation["operationId"] for methods in whole["paths"].values() for operation in methods.values()]
    assert len(set(ids)) == len(ids)
    assert "birds" not in json.dumps(whole)
