"""Two real services behind a real nginx that takes them in turn: they are one service to visitors."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.serve.conftest import make_picture

NGINX = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
WATCHDOG_SECONDS = 120
TOKEN = "a-token-of-some-length"


@pytest.fixture
def services(index_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Addresses of two services on copies of an index, with one folder for what visitors send."""
    monkeypatch.setenv("VITRIEVE_TOKEN", TOKEN)
    processes = []
    for number in range(2):
        shutil.copytree(index_folder, tmp_path / f"machine{number}" / "index")
        words = ["--index", str(tmp_path / f"machine{number}" / "index"), "--port", "0", "--num-threads", "1"]
        words += ["--uploads", str(tmp_path / "uploads")]
        command = [sys.executable, "-m", "vitrieve", "serve", *words]
        with (tmp_path / f"log{number}").open("w") as log:
            processes.append(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True))
    addresses = [process.stdout.readline().strip().rstrip("/") for process in processes]  # type: ignore[union-attr]
    assert all(addresses), [(tmp_path / f"log{number}").read_text() for number in range(2)]
    yield addresses
    for process in processes:
        process.terminate()
        process.wait(WATCHDOG_SECONDS)
        assert process.stdout is not None
        process.stdout.close()


@pytest.fixture
def balancer(services: list[str], tmp_path: Path) -> Iterator[str]:
    """Address of an nginx that takes the services in turn, and says in a header which one answered."""
    if NGINX is None:
        pytest.skip("there is no nginx; on Debian: apt-get install nginx-light")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    upstreams = " ".join(f"server {address.removeprefix('http://')};" for address in services)
    path = tmp_path / "nginx.conf"
    path.write_text(
        f"daemon off; master_process off; error_log {tmp_path}/error.log; pid {tmp_path}/pid; events {{}}\n"
        f"http {{ access_log off; client_body_temp_path {tmp_path}/a; proxy_temp_path {tmp_path}/b;"
        f" fastcgi_temp_path {tmp_path}/c; uwsgi_temp_path {tmp_path}/d; scgi_temp_path {tmp_path}/e;\n"
        f"upstream both {{ {upstreams} }}\n"
        f"server {{ listen 127.0.0.1:{port}; client_max_body_size 26m; location / {{ proxy_pass http://both;"
        " proxy_set_header Host $http_host; add_header X-Answered-By $upstream_addr always; } } }\n"
    )
    process = subprocess.Popen([NGINX, "-p", str(tmp_path), "-c", str(path)], stderr=subprocess.DEVNULL)
    address = f"http://127.0.0.1:{port}"
    until = time.monotonic() + WATCHDOG_SECONDS
    while not _is_ready(address, len(services)):
        assert time.monotonic() < until, (tmp_path / "error.log").read_text()
        time.sleep(0.05)
    yield address
    process.terminate()
    process.wait(WATCHDOG_SECONDS)


def _is_ready(address: str, num_services: int) -> bool:
    """Say whether the services have loaded the index, each asked in its turn."""
    try:
        return all(httpx.get(f"{address}/readyz").status_code == 200 for _ in range(2 * num_services))
    except httpx.TransportError:
        return False


def test_every_service_opens_what_any_of_them_got(balancer: str) -> None:
    num_pictures = 6
    got_by, opened_by = [], []
    with httpx.Client(base_url=balancer, headers={"Accept": "text/html"}, timeout=WATCHDOG_SECONDS) as client:
        assert client.get("/metrics").status_code == 401
        signed_in = client.post("/login", files={"token": (None, TOKEN), "after": (None, "/")})
        assert signed_in.status_code == 303
        for number in range(num_pictures):
            sent = client.post("/uploads", files={"image": make_picture((40 + number, 40))})
            assert (sent.status_code, sent.headers["location"].startswith("/?upload=")) == (303, True)
            pages = [client.get(sent.headers["location"]) for _ in range(3)]
            assert [page.status_code for page in pages] == [200] * 3
            assert all("class0/0.png" in page.text for page in pages)
            got_by.append(sent.headers["x-answered-by"])
            opened_by.append({page.headers["x-answered-by"] for page in pages})
    assert all(len(some) == 2 for some in opened_by)  # by the one that got it, and by the other one
