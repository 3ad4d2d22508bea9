"""A real nginx in front of a real service, configured as ``docs/behind-a-proxy.md`` says; and what needs no nginx."""

from __future__ import annotations

import re
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from html import unescape
from pathlib import Path

import httpx
import pytest

from tests.serve.conftest import Connect, Server, make_picture
from vitrieve.errors import ConfigError
from vitrieve.search.searcher import Searcher
from vitrieve.serve import api, front, pages, writing
from vitrieve.serve.app import create_app
from vitrieve.serve.settings import LOCAL_NAMES, OWN_PATHS, ProxySettings, build_proxy_settings

TOKEN = "a-token-of-some-length"
NGINX = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
Proxy = Callable[..., str]


@pytest.fixture
def proxy(tmp_path: Path, searcher: Searcher) -> Iterator[Proxy]:
    """Start a service and an nginx in front of it; ``proxy(location, ...)`` returns its address."""
    if NGINX is None:
        pytest.skip("there is no nginx; on Debian: apt-get install nginx-light")
    servers: list[Server] = []
    processes: list[subprocess.Popen[bytes]] = []

    def start(location: str, headers: str = "", settings: ProxySettings | None = None, token: str | None = None) -> str:
        servers.append(Server(create_app(searcher, token=token, hosts=LOCAL_NAMES, proxy=settings)))
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        path = tmp_path / "nginx.conf"
        upstream = servers[-1].address
        path.write_text(
            f"daemon off; master_process off; error_log {tmp_path}/error.log; pid {tmp_path}/pid; events {{}}\n"
            f"http {{ access_log off; client_body_temp_path {tmp_path}/a; proxy_temp_path {tmp_path}/b;"
            f" fastcgi_temp_path {tmp_path}/c; uwsgi_temp_path {tmp_path}/d; scgi_temp_path {tmp_path}/e;\n"
            f"server {{ listen 127.0.0.1:{port}; client_max_body_size 26m;"
            f" location {location.replace('UPSTREAM', upstream)[:-1]} {headers} }} }} }}\n"
        )
        processes.append(subprocess.Popen([NGINX, "-p", str(tmp_path), "-c", str(path)], stderr=subprocess.DEVNULL))
        address = f"http://127.0.0.1:{port}"
        for _ in range(3000):
            try:
                httpx.get(address)
                return address
            except httpx.TransportError:
                time.sleep(0.01)
        raise AssertionError((tmp_path / "error.log").read_text())

    yield start
    for process in processes:
        process.terminate()
        process.wait()
    for server in servers:
        server.stop()


@pytest.mark.parametrize("headers", ["", "proxy_set_header Host $host:443;", "proxy_set_header Host $http_host;"])
def test_nginx_passes_pages_uploads_and_head_on(proxy: Proxy, headers: str) -> None:
    settings = build_proxy_settings(
        public_url="https://Photos.example", root_path=None, allowed_hosts=(), has_proxy_headers=False
    )
    address = proxy("/ { proxy_pass UPSTREAM; }", headers, settings)
    browser = {"Host": "PHOTOS.example", "Origin": "https://photos.example"}
    picture = make_picture((900, 900), "BMP")
    with httpx.Client(base_url=address, headers=browser, timeout=60) as client:
        assert client.get("/").status_code == 200
        sent = client.post("/uploads", files={"image": picture})
        assert (sent.status_code, sent.headers["location"].startswith("/?upload=")) == (303, True)
        assert client.get(sent.headers["location"]).status_code == 200
        assert client.head("/images/class0/0.png").status_code == 200
        assert client.post("/search", files={"image": picture}).status_code == 200
        assert client.post("/search", content=picture, headers={"Origin": "https://evil.example"}).status_code == 403


@pytest.mark.parametrize("upstream", ["UPSTREAM/", "UPSTREAM"], ids=["prefix taken off", "prefix left on"])
def test_nginx_shows_it_under_a_prefix_with_a_token(proxy: Proxy, upstream: str) -> None:
    settings = ProxySettings(root_path="/photos", allowed_hosts=("photos.example",), has_proxy_headers=True)
    headers = "proxy_set_header X-Forwarded-Proto https;"
    address = proxy(f"/photos/ {{ proxy_pass {upstream}; }}", headers, settings, TOKEN)
    with httpx.Client(base_url=address, headers={"Origin": "https://photos.example", "Accept": "text/html"}) as client:
        assert client.get("/photos/metrics").status_code == 401
        signed_in = client.post("/photos/login", files={"token": (None, TOKEN), "after": (None, "/?plus=class0/0.png")})
        assert signed_in.headers["location"] == "/photos/?plus=class0/0.png"
        cookie = signed_in.headers["set-cookie"]
        assert "Secure" in cookie
        assert "Path=/photos" in cookie
        page = client.get(signed_in.headers["location"], headers={"Cookie": cookie.partition(";")[0]})
        assert page.status_code == 200
        links = [unescape(link) for link in re.findall(r'(?:href|src|action)="([^"#]+)"', page.text)]
        assert len(links) > 30
        assert all(link.startswith("/photos/") for link in links)


def test_names_of_a_proxy_are_known_in_every_spelling(connect: Connect, picture: bytes) -> None:
    client = connect(hosts=LOCAL_NAMES, proxy=ProxySettings(allowed_hosts=("photos.example", "other.example:8443")))
    for host in ("photos.example", "Photos.Example", "photos.example:443", "other.example:8443"):
        assert client.get("/", headers={"Host": host}).status_code == 200, host
    for host in ("other.example", "evil.example", "photos.example.evil.example"):
        assert client.get("/", headers={"Host": host}).status_code == 400, host
    origins = {
        ("localhost:8000", "https://photos.example"): 200,
        ("photos.example:443", "https://photos.example"): 200,
        ("PHOTOS.example", "https://photos.example"): 200,
        ("localhost:8000", "http://localhost:8000"): 200,
        ("localhost:8000", "http://localhost:3000"): 403,
        ("localhost:8000", "https://evil.example"): 403,
        ("localhost:8000", "null"): 403,
    }
    for (host, origin), status in origins.items():
        headers = {"Host": host, "Origin": origin}
        assert client.post("/search", content=picture, headers=headers).status_code == status, (host, origin)
    for site, status in (("same-origin", 200), ("same-site", 403), ("cross-site", 403)):
        headers = {"Host": "localhost:8000", "Origin": "https://unknown.example", "Sec-Fetch-Site": site}
        assert client.post("/search", content=picture, headers=headers).status_code == status, site


@pytest.mark.parametrize(
    ("settings", "proto", "is_secure"),
    [
        (ProxySettings(), "https", False),
        (ProxySettings(has_proxy_headers=True), "https", True),
        (ProxySettings(has_proxy_headers=True), "http", False),
        (ProxySettings(is_secure=True), None, True),
    ],
)
def test_the_cookie_is_secure_behind_tls(
    connect: Connect, settings: ProxySettings, proto: str | None, is_secure: bool
) -> None:
    headers = {} if proto is None else {"X-Forwarded-Proto": proto}
    answer = connect(token=TOKEN, proxy=settings).post("/login", files={"token": (None, TOKEN)}, headers=headers)
    assert ("secure" in answer.headers["set-cookie"].lower()) == is_secure


@pytest.mark.parametrize(
    "values",
    [
        {"public_url": "photos.example"},
        {"public_url": "ftp://photos.example"},
        {"public_url": "https://u@photos.example"},
        {"public_url": "https://photos.example/?a"},
        {"public_url": "https://["},
        {"public_url": "https://photos.example/a", "root_path": "/b"},
        {"root_path": "/images"},
        {"root_path": "/map/of/all"},
        {"root_path": "/a/../b"},
        {"root_path": "/a b"},
        {"root_path": "/a\r\nb"},
        {"allowed_hosts": ("https://photos.example",)},
        {"allowed_hosts": ("*",)},
        {"allowed_hosts": ("",)},
    ],
)
def test_places_that_cannot_be_are_refused(values: dict[str, object]) -> None:
    usual = {"public_url": None, "root_path": None, "allowed_hosts": (), "has_proxy_headers": False}
    with pytest.raises(ConfigError):
        build_proxy_settings(**{**usual, **values})  # type: ignore[arg-type]


def test_every_path_of_the_service_is_known_as_its_own() -> None:
    routers = (api.router, api.metrics_router, writing.router, pages.router, pages.login_router, front.router)
    paths = [str(getattr(route, "path", "")) for router in routers for route in router.routes]
    assert {"/map", "/images:batch", "/search", "/c/{path:path}"} <= set(paths)
    firsts = {path.split("/")[1].partition(":")[0] for path in paths} - {""}
    of_several = {"c"}  # refused where there are several collections: test_wrong_flags_are_told
    assert firsts - of_several == set(OWN_PATHS) - {"mcp", "openapi.json", "static"}
