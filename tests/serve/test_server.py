"""A connection is bounded from its first byte: number, time and size, without a token and by a real server."""

from __future__ import annotations

import json
import logging
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import httpx
import pytest

from tests.serve.conftest import Server
from vitrieve.search.request import SearchAnswer, SearchRequest
from vitrieve.search.searcher import Searcher
from vitrieve.serve.app import create_app
from vitrieve.serve.server import BoundedProtocol, find_network

TOKEN = "a-token-of-some-length"
WATCHDOG_SECONDS = 60
REQUEST = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"


class Impatient(BoundedProtocol):
    head_seconds = 1.0
    send_seconds = 0.3


class Narrow(BoundedProtocol):
    """Long patience, so that only the number of connections decides."""

    max_connections = 12
    max_connections_of_client = 8
    head_seconds = WATCHDOG_SECONDS


@pytest.fixture(scope="module")
def strict(searcher: Searcher) -> Iterator[Server]:
    server = Server(create_app(searcher, token=TOKEN))
    yield server
    server.stop()


@pytest.fixture
def start(searcher: Searcher) -> Iterator[object]:
    servers: list[Server] = []

    def begin(protocol: type[BoundedProtocol]) -> Server:
        servers.append(Server(create_app(searcher, token=TOKEN), protocol=protocol))
        return servers[-1]

    yield begin
    for server in servers:
        server.stop()


def connect(server: Server, source: str = "127.0.0.1") -> socket.socket:
    return socket.create_connection(("127.0.0.1", server.port), WATCHDOG_SECONDS, (source, 0))


def read_all(connection: socket.socket) -> bytes:
    """Receive until the server ends the connection, in whatever way it does."""
    received = b""
    try:
        while chunk := connection.recv(65_536):
            received += chunk
    except ConnectionError:
        pass
    return received


def ask(connection: socket.socket) -> int:
    """Ask on a connection that stays open."""
    connection.sendall(REQUEST)
    received = b""
    while b"\r\n\r\n" not in received or not received.endswith(b"}"):
        chunk = connection.recv(65_536)
        if not chunk:
            raise ConnectionError
        received += chunk
    return int(received.split()[1])


def is_open(connection: socket.socket) -> bool:
    try:
        return ask(connection) == 200
    except ConnectionError:
        return False


@pytest.mark.parametrize(
    ("beginning", "status"),
    [
        (b"GET /" + b"a" * 2**20, 414),
        (b"GET / HTTP/1.1\r\nX: " + b"a" * 2**20, 431),
        (b"GET / HTTP/1.1\r\n" + b"X: aaaaaaaa\r\n" * 2**17, 431),
        (b"GET /healthz?" + b"a" * 20_000 + b" HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", 414),
        (b"GET /healthz HTTP/1.1\r\nX: " + b"a" * 40_000 + b"\r\nConnection: close\r\n\r\n", 431),
        (b"GET /healthz HTTP/1.1\r\nConnection: close\r\n" + b"X: a\r\n" * 200 + b"\r\n", 431),
    ],
    ids=["endless address", "endless header", "endless headers", "long address", "long header", "many headers"],
)
def test_the_head_is_bounded_in_bytes(strict: Server, beginning: bytes, status: int) -> None:
    with connect(strict) as connection:
        connection.sendall(beginning)
        head, _, body = read_all(connection).partition(b"\r\n\r\n")
        assert int(head.split()[1]) == status
        assert json.loads(body)["detail"]


def test_trailers_and_chunk_extensions_do_not_pile_up(strict: Server) -> None:
    begin = b"POST /search HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n"
    for endless in (b"0\r\n" + b"X: aaaaaaaa\r\n" * 2**17, b"1;" + b"a" * 2**20):
        with connect(strict) as connection:
            try:
                connection.sendall(begin + endless)
            except ConnectionError:
                continue
            assert b"200 OK" not in read_all(connection)


def test_a_body_of_many_parts_is_no_silence(strict: Server) -> None:
    content = (b"x" * 1000 for _ in range(3000))
    answer = httpx.post(f"{strict.address}/search", content=content, headers={"Authorization": f"Bearer {TOKEN}"})
    assert answer.status_code == 422


def test_a_head_has_its_time_however_it_trickles(start: type) -> None:
    server = start(Impatient)
    stop = threading.Event()
    begin = b"GET / HTTP/1.1\r\n"
    with connect(server) as silent, connect(server) as trickling, connect(server) as used:
        trickling.sendall(begin)  # each says something at once: a busy machine must not make it a silent one
        assert ask(used) == 200
        used.sendall(begin)  # after a request that was answered

        def trickle() -> None:
            while not stop.wait(0.02):
                for connection in (trickling, used):
                    try:
                        connection.sendall(b"X: a\r\n")
                    except OSError:
                        return

        thread = threading.Thread(target=trickle)
        thread.start()
        assert read_all(silent) == b""
        assert read_all(trickling).split()[1] == b"408"
        read_all(used)
        stop.set()
        thread.join()


def test_a_client_that_reads_nothing_is_let_go(start: type, monkeypatch: pytest.MonkeyPatch) -> None:
    let_go, is_gone = Impatient.let_go, threading.Event()

    def note(connection: Impatient) -> None:
        is_gone.set()
        let_go(connection)

    monkeypatch.setattr(Impatient, "let_go", note)
    server = start(Impatient)
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    with connection:
        connection.connect(("127.0.0.1", server.port))
        connection.setblocking(False)
        page = b"GET /static/page.js HTTP/1.1\r\nHost: a\r\n\r\n" * 10
        for _ in range(WATCHDOG_SECONDS * 100):  # the answers fill every buffer on the way, and then the server waits
            with suppress(OSError):
                connection.send(page)
            if is_gone.wait(0.01):
                break
    assert is_gone.is_set()


def test_idle_connections_of_one_address_lock_nobody_out(strict: Server) -> None:
    """As many as ever brought the service down, with and without a beginning of a request."""
    connections = []
    try:
        for number in range(505):
            connections.append(connect(strict))
            if number % 2:
                connections[-1].sendall(b"GET / HTTP/1.1\r\n")
        for source in ("127.0.0.1", "127.0.0.2"):
            with connect(strict, source) as other:
                assert ask(other) == 200
    finally:
        for connection in connections:
            connection.close()


def test_the_connection_that_is_idle_longest_makes_room(start: type) -> None:
    server = start(Narrow)
    mine = [connect(server) for _ in range(8)]
    assert [ask(one) for one in mine] == [200] * 8
    others = [connect(server, "127.0.0.2") for _ in range(4)]
    assert [ask(one) for one in others] == [200] * 4
    with connect(server, "127.0.0.3") as third:  # the thirteenth: the address that has most gives one
        assert ask(third) == 200
        assert [is_open(one) for one in mine] == [False] + [True] * 7
        assert [is_open(one) for one in others] == [True] * 4
    for one in (*mine, *others):
        one.close()


def test_connections_in_work_are_bounded_and_others_come_through(start: type) -> None:
    server = start(Narrow)
    busy = [connect(server) for _ in range(8)]
    for one in busy:
        one.sendall(b"POST /search HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\nExpect: 100-continue\r\n")
        one.sendall(f"Authorization: Bearer {TOKEN}\r\n\r\n".encode())
        assert b"100 Continue" in one.recv(1000)  # it is being worked on: its body is waited for
    with connect(server) as refused:
        assert read_all(refused).split()[1] == b"503"
    with connect(server, "127.0.0.2") as other:
        assert ask(other) == 200
    for one in busy:
        one.close()


def test_eighty_large_bodies_at_once_are_all_answered(strict: Server) -> None:
    """Those that are refused too: no connection is reset while its client still sends."""
    body = b"\xff\xd8\xff" + bytes(2**19)

    def send(number: int) -> int:
        headers = {"Authorization": f"Bearer {TOKEN}"} if number % 2 else {}
        return httpx.post(
            f"{strict.address}/search", content=body, headers=headers, timeout=WATCHDOG_SECONDS, verify=False
        ).status_code

    with ThreadPoolExecutor(80) as pool:
        statuses = list(pool.map(send, range(80)))
    assert set(statuses[::2]) == {401}
    assert set(statuses[1::2]) <= {413, 422, 503, 504}


def test_networks_of_ipv6_count_as_one_client() -> None:
    assert find_network("2001:db8::1") == find_network("2001:db8::ffff") != find_network("2001:db8:0:1::1")
    assert [find_network(text) for text in ("::ffff:192.0.2.1", "192.0.2.1", "fe80::1%eth0", "testclient")] == [
        *("192.0.2.1", "192.0.2.1", "fe80::/64", "testclient"),
    ]


def test_a_client_that_pipelines_and_leaves_is_no_failure(
    searcher: Searcher, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """uvicorn tells only the last request that its client has gone; the first would write to a closed connection."""
    may_answer, begun, answer_now = threading.Event(), threading.Event(), searcher.answer

    def answer_later(request: SearchRequest) -> SearchAnswer:
        begun.set()
        may_answer.wait(WATCHDOG_SECONDS)
        return answer_now(request)

    def is_answered() -> bool:
        fields = [getattr(record, "fields", {}) for record in caplog.records]
        return any(one.get("route") == "/search" for one in fields)

    server = Server(create_app(searcher), has_own_loop=True)
    monkeypatch.setattr(searcher, "answer", answer_later)
    monkeypatch.setattr(logging.getLogger("vitrieve.serve"), "propagate", True)
    try:
        with caplog.at_level(logging.INFO), connect(server) as connection:
            body = b'{"id": "class0/0.png"}'
            search = b"POST /search HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
            connection.sendall(search + REQUEST)
            assert begun.wait(WATCHDOG_SECONDS)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # closing resets
            connection.close()
            wait_until(lambda: server.num_connections == 0)
            may_answer.set()
            wait_until(is_answered)
        assert [record.getMessage() for record in caplog.records if record.levelno > logging.INFO] == []
    finally:
        may_answer.set()
        server.stop()


def wait_until(is_true: Callable[[], bool]) -> None:
    until = time.monotonic() + WATCHDOG_SECONDS
    while not is_true():
        assert time.monotonic() < until
        time.sleep(0.01)
