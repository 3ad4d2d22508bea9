from __future__ import annotations

import asyncio
import socket

import httpx
import pytest
from fastapi import FastAPI, Request

from tests.serve.conftest import Connect
from vitrieve.errors import ConfigError
from vitrieve.search.searcher import Searcher
from vitrieve.serve import server
from vitrieve.serve.app import create_app
from vitrieve.serve.middleware import COOKIE, MAX_SESSIONS, build_cookie, find_sessions, split_host
from vitrieve.serve.server import listen, local_hosts, spell_address
from vitrieve.serve.settings import LOCAL_NAMES, ProxySettings, ServeSettings, is_local, read_token

TOKEN = "a-token-of-some-length"


def test_without_the_token_nothing_is_answered_but_the_probes(connect: Connect, picture: bytes) -> None:
    client = connect(token=TOKEN)
    for path in (
        "/",
        "/images/class0/0.png",
        "/thumbnails/class0/0.png",
        "/metrics",
        "/openapi.json",
        "/uploads/x",
        "/no",
    ):
        answer = client.get(path)
        assert answer.status_code == 401, path
        assert answer.headers["www-authenticate"] == "Bearer"
    assert client.post("/search", content=picture).status_code == 401
    assert client.post("/uploads", files={"image": picture}).status_code == 401
    assert [client.get(path).status_code for path in ("/healthz", "/readyz", "/login", "/static/page.css")] == [200] * 4


@pytest.mark.parametrize(
    "value", ["", "Bearer", "Bearer ", "Bearer wrong", f"Basic {TOKEN}", f"Bearer {TOKEN}x", TOKEN]
)
def test_a_wrong_token_is_refused(connect: Connect, value: str) -> None:
    assert connect(token=TOKEN).get("/metrics", headers={"Authorization": value}).status_code == 401


def test_the_token_opens(connect: Connect, picture: bytes) -> None:
    client = connect(token=TOKEN)
    headers = {"Authorization": f"Bearer {TOKEN}"}
    assert client.post("/search", content=picture, headers=headers).status_code == 200
    assert client.get("/", headers={"Authorization": f"bearer {TOKEN}"}).status_code == 200


def test_a_proof_in_two_cookies_takes_one_place() -> None:
    proofs = [build_cookie(str(number)) for number in range(MAX_SESSIONS)]
    cookies = f"{COOKIE}={'.'.join(proofs[:2])}; {COOKIE}={'.'.join(proofs)}"
    request = Request({"type": "http", "headers": [(b"cookie", cookies.encode())]})
    assert find_sessions(request) == tuple(proofs)


def test_a_browser_signs_in_and_comes_back_to_where_it_was(connect: Connect) -> None:
    client = connect(token=TOKEN)
    asked = client.get("/?plus=class0%2F0.png", headers={"Accept": "text/html"})
    assert asked.status_code == 401
    assert "needs a token" in asked.text
    after = "/?plus=class0%2F0.png"
    assert f'value="{after}"' in asked.text
    wrong = client.post("/login", files={"token": (None, "wrong"), "after": (None, after)})
    assert (wrong.status_code, "not the token" in wrong.text) == (401, True)
    right = client.post("/login", files={"token": (None, TOKEN), "after": (None, after)})
    assert (right.status_code, right.headers["location"]) == (303, after)
    cookie = right.headers["set-cookie"].lower()
    assert "httponly" in cookie
    assert "samesite=lax" in cookie
    assert TOKEN not in cookie
    assert client.get(after).status_code == 200
    client.cookies.clear()
    assert client.get(after, headers={"Cookie": f"{COOKIE}={'0' * 64}"}).status_code == 401


def test_a_browser_stays_signed_in_to_services_at_several_ports(connect: Connect) -> None:
    """For a browser they are one place, and their cookies are one."""
    clients = {token: connect(token=token) for token in (TOKEN, "another-token-of-some-length")}
    cookie = "theme=dark"
    for token, client in clients.items():
        form = {"token": (None, token), "after": (None, "/")}
        answer = client.post("/login", files=form, headers={"Cookie": cookie})
        cookie = answer.headers["set-cookie"].partition(";")[0]
        client.cookies.clear()
    for client in clients.values():
        assert client.get("/columns", headers={"Cookie": cookie}).status_code == 200


def test_a_cookie_of_another_path_does_not_hide_the_own_one(connect: Connect) -> None:
    """A browser sends the cookies of ``/photos`` and of ``/`` to ``/photos``, both under one name."""
    client = connect(token=TOKEN, proxy=ProxySettings(root_path="/photos"))
    own, other = build_cookie(TOKEN), build_cookie("another-token-of-some-length")
    for cookies in ([own, other], [other, own], [f"{other}.{own}", "x", other]):
        headers = {"Cookie": "; ".join(f"{COOKIE}={value}" for value in cookies)}
        assert client.get("/photos/columns", headers=headers).status_code == 200
    headers = {"Cookie": f"{COOKIE}={other}; {COOKIE}=; theme=dark; x{COOKIE}={own}"}
    assert client.get("/photos/columns", headers=headers).status_code == 401


def test_signing_in_after_a_form_leads_to_a_page(connect: Connect, picture: bytes) -> None:
    client = connect(token=TOKEN, proxy=ProxySettings(root_path="/photos"))
    asked = client.post("/photos/uploads", files={"image": picture}, headers={"Accept": "text/html"})
    assert (asked.status_code, 'name="after" value="/"' in asked.text) == (401, True)
    script = client.post("/photos/uploads", files={"image": picture}, headers={"Accept": "application/json"})
    assert "sign in at /photos/login" in script.json()["detail"]


@pytest.mark.parametrize(
    "after", ["https://evil.example/", "//evil.example", "/\\evil.example", "javascript:alert(1)", "/a\nb"]
)
def test_signing_in_leads_nowhere_else(connect: Connect, after: str) -> None:
    answer = connect(token=TOKEN).post("/login", files={"token": (None, TOKEN), "after": (None, after)})
    assert answer.headers["location"] == "/"


def test_another_name_is_refused_on_a_local_address(connect: Connect) -> None:
    client = connect(hosts=LOCAL_NAMES)
    for host in ("evil.example", "evil.example:8000", "127.0.0.1.evil.example", "", "["):
        assert client.get("/", headers={"Host": host}).status_code == 400, host
    for host in ("localhost", "127.0.0.1:8000", "[::1]:8000", "LOCALHOST"):
        assert client.get("/healthz", headers={"Host": host}).status_code == 200, host


def test_a_page_of_another_site_cannot_post(connect: Connect, picture: bytes) -> None:
    client = connect()
    for origin in ("https://evil.example", "null", "http://testserver.evil.example"):
        assert client.post("/search", content=picture, headers={"Origin": origin}).status_code == 403
    assert client.post("/search", content=picture, headers={"Origin": "http://testserver"}).status_code == 200
    preflight = client.options("/search", headers={"Origin": "https://evil.example"})
    assert "access-control-allow-origin" not in preflight.headers


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        *(("127.0.0.1", True), ("127.9.9.9", True), ("::1", True), ("localhost", True), ("0.0.0.0", False)),
        *(("::", False), ("192.168.1.2", False), ("", False), ("\0", False), ("a" * 100, False)),
    ],
)
def test_is_local_knows_what_other_machines_reach(host: str, expected: bool) -> None:
    assert is_local(host) == expected


def test_split_host_takes_the_name() -> None:
    texts = ("a.b:80", "[::1]:80", "[", "", "A.B", "a:x", "a/b", "u@a", "a?b", "a#b")
    names = [("a.b", 80), ("::1", 80), ("", None), ("", None), ("a.b", None), *[("", None)] * 5]
    assert [split_host(text) for text in texts] == names


@pytest.mark.parametrize(
    "host", ["127.0.0.2", "127.1", "localhost", "LocalHost", "::1", "0:0:0:0:0:0:0:1", "::ffff:127.0.0.1", "2130706433"]
)
def test_every_spelling_of_a_loopback_is_local_and_answers_under_its_own_name(host: str, searcher: Searcher) -> None:
    assert is_local(host)
    assert read_token(host, None) is None
    try:
        listener = listen(host, 0)
    except ConfigError:
        pytest.skip(f"this machine has no {host}")
    with listener:
        names = local_hosts(host, listener)
        printed = httpx.URL(spell_address(listener, ProxySettings())).netloc.decode()
    app = create_app(searcher, hosts=names)
    typed = f"[{host}]:80" if ":" in host else f"{host}:80"
    for name in (printed, typed, "localhost:80", "[::ffff:7f00:1]:80"):
        assert asyncio.run(ask(app, name)) == 200, name
    assert asyncio.run(ask(app, "evil.example")) == 400


async def ask(app: FastAPI, host: str) -> int:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        return (await client.get("/healthz", headers={"Host": host})).status_code


def test_a_name_is_local_where_all_its_addresses_are(monkeypatch: pytest.MonkeyPatch) -> None:
    addresses = {"both.example": ["127.0.0.1", "192.0.2.1"], "mine.example": ["127.0.0.3", "::1"]}

    def look_up(host: str, *_: object, **__: object) -> list[object]:
        return [(0, 0, 0, "", (address, 0)) for address in addresses[host]]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    assert [is_local(name) for name in addresses] == [False, True]


def test_serve_trusts_the_address_and_not_the_name(searcher: Searcher, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that was local when the token was asked for may lead elsewhere when the service listens."""
    listener = socket.create_server(("0.0.0.0", 0))
    monkeypatch.setattr(server, "listen", lambda host, port: listener)
    with pytest.raises(ConfigError, match=r"mine\.example is 0\.0\.0\.0, .* needs a token"):
        server.serve(searcher, ServeSettings(host="mine.example", port=0))
    assert listener.fileno() == -1
