"""What is decided before an endpoint: by the path that is routed, never by an address that was put together."""

from __future__ import annotations

import asyncio
import re
from html import unescape

import httpx
import pytest

from tests.serve.conftest import Connect, make_picture
from vitrieve.search.searcher import Searcher
from vitrieve.serve.app import create_app
from vitrieve.serve.settings import Limits, ProxySettings

TOKEN = "a-token-of-some-length"
GUARDED = (
    "/metrics",
    "/images/class0/0.png",
    "/thumbnails/class0/0.png",
    "/",
    "/openapi.json",
    "/explain?image_id=a&id=b",
)
# CVE-2026-48710: what the header Host says became part of the address by which the gate decided.
HOSTS = (
    "x/healthz?",
    "x/healthz#",
    "x/static/",
    "x/static/?",
    "x/login?a=",
    "healthz",
    "x:80/readyz?",
    "/healthz",
    "[",
    "",
)


@pytest.mark.parametrize("host", HOSTS)
def test_a_hostile_host_header_opens_nothing(connect: Connect, host: str) -> None:
    client = connect(token=TOKEN)
    for path in GUARDED:
        assert client.get(path, headers={"Host": host}).status_code == 401, path
    assert client.post("/search", content=make_picture(), headers={"Host": host}).status_code == 401
    assert client.get("/healthz", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize("host", HOSTS)
def test_a_hostile_host_header_is_in_no_link(connect: Connect, host: str) -> None:
    client = connect(token=TOKEN)
    page = client.get("/compare?plus=a", headers={"Host": host, "Accept": "text/html"})
    assert page.status_code == 401
    assert re.findall(r'name="after" value="([^"]*)"', page.text) == ["/compare?plus=a"]
    signed_in = client.post(
        "/login", files={"token": (None, TOKEN), "after": (None, "/compare?plus=a")}, headers={"Host": host}
    )
    assert signed_in.headers["location"] == "/compare?plus=a"
    for path in ("/compare/", "/search/", "/static"):  # a redirect would be spelled with the header
        answer = client.get(path, headers={"Host": host, "Authorization": f"Bearer {TOKEN}"})
        assert "location" not in answer.headers, path


@pytest.mark.parametrize(
    "path", ["//healthz", "/healthz/", "/metrics/healthz", "/static", "/static/../metrics", "/Healthz"]
)
def test_only_the_open_paths_themselves_are_open(searcher: Searcher, path: str) -> None:
    from tests.serve.test_hostile import get_raw

    status, _ = asyncio.run(get_raw(create_app(searcher, token=TOKEN), path))
    assert status == (404 if path == "/static/../metrics" else 401)  # a static file of that name, which there is not


def test_addresses_and_headers_are_bounded(connect: Connect) -> None:
    client = connect(Limits(address_bytes=200, header_bytes=1000, num_headers=20))
    assert client.get("/healthz?" + "x" * 180).status_code == 200
    answer = client.get("/healthz?" + "x" * 200)
    assert (answer.status_code, "208 bytes" in answer.json()["detail"]) == (414, True)
    assert client.get("/healthz", headers={"X": "x" * 1000}).status_code == 431
    assert client.get("/healthz", headers={f"X-{i}": "x" for i in range(20)}).status_code == 431


def test_head_is_answered_as_get_without_a_body(connect: Connect, picture: bytes) -> None:
    client = connect()
    paths = ["/", "/healthz", "/readyz", "/metrics", "/login", "/static/page.css", "/openapi.json"]
    for path in [*paths, "/images/class2/1.png", "/thumbnails/class2/1.png"]:
        answer = client.head(path)
        assert (answer.status_code, answer.content) == (200, b""), path
        assert answer.headers["content-type"] == client.get(path).headers["content-type"]
    assert client.head("/images/class2/1.png").headers["content-length"] == str(len(picture))
    assert client.head("/images/no.png").status_code == 404
    assert client.head("/search").status_code == 405
    assert 'vitrieve_requests_total{method="HEAD",route="/healthz",status="200"} 1.0' in client.get("/metrics").text


@pytest.mark.parametrize(
    ("name", "status"),
    [
        ("no token", 401),
        ("another site", 403),
        ("no such page", 404),
        ("wrong method", 405),
        ("wrong value", 422),
        ("busy", 503),
    ],
)
def test_the_body_of_a_refused_request_is_received_before_the_answer(
    searcher: Searcher, name: str, status: int
) -> None:
    app = create_app(searcher, limits=Limits(held_bytes=10), token=TOKEN if name == "no token" else None)
    path = {"no such page": "/no", "wrong method": "/healthz", "wrong value": "/search?k=x"}.get(name, "/search")
    headers = {"Origin": "https://evil.example"} if name == "another site" else {}
    assert asyncio.run(count_received(app, path, headers, [b"x" * 1000] * 50)) == (status, 50, False)


def test_draining_is_bounded_in_bytes_and_time(searcher: Searcher) -> None:
    app = create_app(searcher, limits=Limits(drained_bytes=10_000), token=TOKEN)
    status, num_chunks, is_closed = asyncio.run(count_received(app, "/search", {}, [b"x" * 1000] * 50))
    assert (status, num_chunks, is_closed) == (401, 11, True)
    announced = {"Content-Length": "50000"}
    assert asyncio.run(count_received(app, "/search", announced, [b"x" * 1000] * 50)) == (401, 0, True)
    waiting = {"Content-Length": "5000", "Expect": "100-continue"}  # it has sent nothing, and will not be asked to
    assert asyncio.run(count_received(app, "/search", waiting, [b"x" * 1000] * 5)) == (401, 0, True)
    silent = {"Content-Length": "5000"}
    app = create_app(searcher, limits=Limits(drained_bytes=10_000, body_seconds=0.5), token=TOKEN)
    assert asyncio.run(count_received(app, "/search", silent, [b"x" * 1000])) == (401, 1, True)


async def count_received(app: object, path: str, headers: dict[str, str], chunks: list[bytes]) -> tuple[int, int, bool]:
    """Send a body in chunks; return the status, the chunks taken before the answer, and whether it closes."""
    scope = httpx.Request("POST", f"http://test{path}", headers=headers)
    received, sent = 0, []
    raw = [(name.lower(), value) for name, value in scope.headers.raw if name.lower() != b"content-length"]
    announced = headers.get("Content-Length")
    raw.append((b"content-length", announced.encode()) if announced else (b"transfer-encoding", b"chunked"))

    async def receive() -> dict[str, object]:
        nonlocal received
        if received == len(chunks):
            await asyncio.Event().wait()
        received += 1
        is_last = received == len(chunks) and not (announced and int(announced) > sum(map(len, chunks)))
        return {"type": "http.request", "body": chunks[received - 1], "more_body": not is_last}

    async def send(message: dict[str, object]) -> None:
        sent.append((message, received))

    await app(  # type: ignore[operator]
        {
            "type": "http",
            "http_version": "1.1",
            "method": "POST",
            "scheme": "http",
            "path": scope.url.path,
            "query_string": scope.url.query,
            "root_path": "",
            "headers": raw,
        },
        receive,
        send,
    )
    start, taken = sent[0]
    return start["status"], taken, (b"connection", b"close") in start["headers"]


def test_every_link_stays_behind_the_prefix(connect: Connect, picture: bytes) -> None:
    """Of a proxy that takes the prefix off, and of one that leaves it on."""
    client = connect(proxy=ProxySettings(root_path="/photos"))
    sent = client.post("/uploads", files={"image": picture}, headers={"Accept": "application/json"}).json()["address"]
    assert sent.startswith("/photos/?upload=")
    near = "group_by=label&near_duplicates=together&filter=label!%3Dx"
    pages = [
        "",
        "login",
        f"?plus=class0/0.png&k=12&{near}",
        "?plus=class0/0.png&page=2&k=12",
        sent.removeprefix("/photos/"),
    ]
    pages += [
        "compare?plus=class0/0.png&image_id=class0/1.png",
        "?plus=no",
        "no/such/page",
        "uploads/none",
        "?plus=a&minus=b",
    ]
    num_links = 0
    for page in pages:
        texts = [client.get(f"{front}/{page}", headers={"Accept": "text/html"}).text for front in ("", "/photos")]
        texts = [re.sub(r"\d+ ms", "", text) for text in texts]
        assert texts[0] == texts[1], page
        links = [unescape(link) for link in re.findall(r'(?:href|src|action)="([^"]*)"', texts[0])]
        num_links += len(links)
        assert [link for link in links if not link.startswith(("/photos/", "#"))] == [], page
        for link in {link for link in links if not link.startswith("#")} - {"/photos/uploads"}:
            assert client.get(link).status_code in (200, 404, 410, 422), link
    assert num_links > 100
    redirects = [client.get("/photos/?plus=a&box="), client.post("/photos/uploads", files={"image": picture})]
    assert all(answer.headers["location"].startswith("/photos/?") for answer in redirects)
    assert client.get("/photos").status_code == 200
    assert client.get("/photoshop").status_code == 404


def test_the_prefix_changes_nothing_about_the_token(connect: Connect) -> None:
    client = connect(token=TOKEN, proxy=ProxySettings(root_path="/photos"))
    for path in ("/photos/metrics", "/metrics", "/photos/photos/healthz", "/photos/images/class0/0.png", "/photos"):
        assert client.get(path).status_code == 401, path
    assert client.get("/photos/healthz").status_code == 200
    asked = client.get("/photos/compare?plus=a", headers={"Accept": "text/html"})
    assert 'name="after" value="/compare?plus=a"' in asked.text
    answer = client.post("/photos/login", files={"token": (None, TOKEN), "after": (None, "/compare?plus=a")})
    assert answer.headers["location"] == "/photos/compare?plus=a"
    assert "path=/photos;" in answer.headers["set-cookie"].lower()
