"""uvicorn with bounds: every connection is bounded from its first byte, before anybody is asked for a token.

uvicorn bounds what an application reads. What comes before and after is bounded here: connections that say nothing, a
head that trickles or never ends, a client that does not read its answer, and too many connections. A connection on
which nothing is being answered makes room for a new one, so that idle ones lock nobody out.
"""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from http import HTTPStatus
from types import FrameType
from typing import Any

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from vitrieve.errors import ConfigError
from vitrieve.search.searcher import Searcher
from vitrieve.serve.app import create_served_app
from vitrieve.serve.collections import Collections
from vitrieve.serve.middleware import write_logs_to_standard_error
from vitrieve.serve.settings import LOCAL_NAMES, ProxySettings, ServeSettings, find_network, is_local, normalize_address


class BoundedProtocol(HttpToolsProtocol):
    """A connection of uvicorn with bounds.

    Attributes:
        max_connections: Number for all clients together; beyond it idle ones are closed, first those of the client
            that has most.
        max_connections_of_client: Number for one address. A proxy is one client, with a connection for each request.
        head_seconds: Time from the first byte of a head, or from the beginning, to the head's end.
        silent_bytes: Received without an end of the head and without a byte of a body: addresses, headers, trailers.
        send_seconds: Time for a client to take what waits to be sent (64 KiB at most).
        linger_seconds: Time to receive and drop what a refused client still sends, so that it reads the reason.
        client_network: The address that counts as one client.
        idle_since: Time at which the last answer ended, by the event loop's clock.
    """

    max_connections = 500
    max_connections_of_client = 200
    head_seconds = 10.0
    silent_bytes = 64 * 1024
    send_seconds = 30.0
    linger_seconds = 2.0

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.client_network = ""
        self.idle_since = self.loop.time()
        self.url = b""
        self._cycles: list[RequestResponseCycle] = []
        self._num_silent_bytes = 0
        self._is_refused = False
        self._is_gone = False
        self._head_deadline: asyncio.TimerHandle | None = None
        self._send_deadline: asyncio.TimerHandle | None = None

    @property
    def is_idle(self) -> bool:
        """Say whether no request is being answered."""
        return self.cycle is None or self.cycle.response_complete

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take a connection where there is room for one more."""
        super().connection_made(transport)
        self.client_network = find_network(self.client[0]) if self.client else ""
        if self._make_room():
            self._head_deadline = self.loop.call_later(self.head_seconds, self._end_head)
        else:
            self._write_refusal(503, "too many requests are being answered; try again in a few seconds.")
            transport.close()
            self._is_refused = True

    def connection_lost(self, exc: Exception | None) -> None:
        """Let go of everything, and tell all requests: uvicorn itself only tells the one that came last."""
        self._is_gone = True
        for cycle in self._cycles:
            cycle.disconnected = True
            cycle.message_event.set()
        self._cycles.clear()
        self._stop_head_deadline()
        self.resume_writing()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Count what says nothing, and give a head its time."""
        if self._is_refused:
            return
        self._num_silent_bytes += len(data)
        super().data_received(data)
        if self.transport.is_closing():
            return
        if self._num_silent_bytes > self.silent_bytes:
            is_address = len(self.url) > self.silent_bytes // 2
            self._refuse(414 if is_address else 431, f"the {'address' if is_address else 'headers'} never ended.")
        elif self.is_idle and self._num_silent_bytes and self._head_deadline is None:
            self._head_deadline = self.loop.call_later(self.head_seconds, self._end_head)

    def on_headers_complete(self) -> None:
        """Begin to answer."""
        self._num_silent_bytes = 0
        self._stop_head_deadline()
        super().on_headers_complete()
        if self.cycle is not None:
            self._cycles.append(self.cycle)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Note a header; what comes behind a body in place of the head (trailers) is dropped."""
        if "method" not in self.scope:
            super().on_header(name, value)

    def on_body(self, body: bytes) -> None:
        """Note a part of a body."""
        self._num_silent_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """Note the end of a body."""
        self._num_silent_bytes = 0
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """Be idle from now on, unless the next request is here already."""
        self.idle_since = self.loop.time()
        self._cycles = [cycle for cycle in self._cycles if not cycle.response_complete]
        super().on_response_complete()

    def _unsupported_upgrade_warning(self) -> None:
        """Say nothing in the log: the request is answered as if it asked for no other protocol."""

    def pause_writing(self) -> None:
        """Give the client some time to read."""
        super().pause_writing()
        self._send_deadline = self.loop.call_later(self.send_seconds, self.let_go)

    def resume_writing(self) -> None:
        """Go on: the client reads."""
        super().resume_writing()
        if self._send_deadline is not None:
            self._send_deadline.cancel()
            self._send_deadline = None

    def let_go(self) -> None:
        """Cut the connection off."""
        self._is_gone = True
        self.transport.abort()

    def _make_room(self) -> bool:
        """Cut off the connection that is idle longest where there are too many; return whether there is room now."""
        others = [one for one in self.connections if isinstance(one, BoundedProtocol) and not one._is_gone]
        others.remove(self)
        nums = Counter(one.client_network for one in others)
        candidates = others
        if nums[self.client_network] >= self.max_connections_of_client:
            candidates = [one for one in others if one.client_network == self.client_network]
        elif len(others) < self.max_connections:
            return True
        idle = [one for one in candidates if one.is_idle]
        if not idle:
            return False
        min(idle, key=lambda one: (-nums[one.client_network], one.idle_since)).let_go()
        return True

    def _end_head(self) -> None:
        """End a connection whose head did not come in time; one that never said anything is told nothing."""
        self._head_deadline = None
        if self._num_silent_bytes:
            self._refuse(408, f"the head did not arrive within {self.head_seconds:g} seconds.")
        else:
            self.let_go()

    def _refuse(self, status: int, detail: str) -> None:
        """Say why, drop what still comes for a moment, and cut off.

        While an answer is being sent nothing can be said between, and the connection is cut off at once.
        """
        if not self.is_idle:
            self.let_go()
            return
        self._is_refused = True
        self._stop_head_deadline()
        self._write_refusal(status, detail)
        self.transport.write_eof()
        self._head_deadline = self.loop.call_later(self.linger_seconds, self.let_go)

    def _write_refusal(self, status: int, detail: str) -> None:
        body = json.dumps({"detail": detail})
        head = (
            f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        )
        self.transport.write((head + body).encode())

    def _stop_head_deadline(self) -> None:
        if self._head_deadline is not None:
            self._head_deadline.cancel()
            self._head_deadline = None


MAX_PORT = 65_535
KEEP_ALIVE_SECONDS = 20
STOP_SECONDS = 10
"""What requests in progress get to end when the service is stopped."""
FAREWELL_SECONDS = 1.0
"""What clients get before it, to bring the request that is on its way and to be told that it was their connection's
last. Whoever keeps a connection idle for longer may find it closed, as after ``KEEP_ALIVE_SECONDS``."""
SWITCH_SECONDS = 0.0005
"""Time after which a thread that holds Python's lock lets others have it. A search is a dozen calls that release the
lock, and each would wait for up to Python's 5 ms to get it back."""


def serve(
    opened: Searcher | Collections, settings: ServeSettings, *, announce: Callable[[str], None] | None = None
) -> None:
    """Serve until the process is told to stop (SIGINT, SIGTERM); requests in progress are finished.

    Being stopped is the ordinary end, so nothing is raised then.

    Args:
        opened: Index and encoder to search with, or several collections.
        settings: Where to listen, and what to allow.
        announce: Called with the address once connections are accepted.

    Raises:
        ArtifactError: The folder for uploads cannot be written.
        ConfigError: The address cannot be listened on, or other machines can reach it and there is no token.
    """
    with open_listener(settings) as (listener, hosts):
        app = create_served_app(opened, settings, hosts)
        address = spell_address(listener, settings.proxy)
        run_server(app, listener, lambda: announce(address) if announce else None)


@contextmanager
def open_listener(settings: ServeSettings) -> Iterator[tuple[socket.socket, tuple[str, ...] | None]]:
    """Open the listening socket, and list the names by which the service may be called there; None: any.

    Raises:
        ConfigError: As ``listen``, or other machines can reach the address and there is no token.
    """
    with listen(settings.host, settings.port) as listener:
        yield listener, list_hosts(settings.host, listener, is_open=settings.is_open)


def list_hosts(host: str, listener: socket.socket, *, is_open: bool) -> tuple[str, ...] | None:
    """List the names by which a service may be called; None: any, where it asks for a token.

    Raises:
        ConfigError: Other machines can reach the address, and something can be read without a token.
    """
    if not is_open:
        return None
    address = listener.getsockname()[0]  # a name may lead elsewhere than when the token was asked for
    if not is_local(address):
        raise ConfigError(f"{host} is {address}, which can be reached from other machines, so it needs a token.")
    return local_hosts(host, listener)


def run_server(app: ASGIApp, listener: socket.socket, announce: Callable[[], None]) -> None:
    """Answer at a socket until the process is told to stop; ``announce`` is called once connections are accepted."""
    sys.setswitchinterval(SWITCH_SECONDS)
    write_logs_to_standard_error()
    _Server(configure(app), announce).run(sockets=[listener])


class _Server(uvicorn.Server):
    """Announces itself once it accepts connections and stops on a signal, which is its ordinary end."""

    def __init__(self, config: uvicorn.Config, announce: Callable[[], None]) -> None:
        super().__init__(config)
        self._announce = announce

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, and tell it; uvicorn has no hook for that."""
        await super().startup(sockets)
        if self.started:
            self._announce()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Accept nothing more, say with each answer that it is the connection's last, and then end.

        uvicorn's own closes idle connections at once, also those on which a request is on its way.
        """
        for server in self.servers:
            server.close()
        self.server_state.default_headers = [*self.server_state.default_headers, (b"connection", b"close")]
        until = time.monotonic() + FAREWELL_SECONDS
        while self.server_state.connections and not self.force_exit and time.monotonic() < until:
            await asyncio.sleep(0.02)
        await super().shutdown(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """End, and on a second Ctrl-C at once; uvicorn's own would send the signal again when all is done."""
        self.force_exit = self.should_exit and sig == signal.SIGINT
        self.should_exit = True


def configure(app: ASGIApp) -> uvicorn.Config:
    """Configure the server: with bounds of its connections, and without what it would write or believe by itself."""
    return uvicorn.Config(
        app,
        http=BoundedProtocol,
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        ws="none",
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=STOP_SECONDS,
    )


def listen(host: str, port: int) -> socket.socket:
    """Open the listening socket, so that a wrong address is known before anything is loaded, and clients can queue.

    Raises:
        ConfigError: No such address, or the port is taken.
    """
    if not 0 <= port <= MAX_PORT:  # the system's resolver would take it modulo 65,536
        raise ConfigError(f"cannot listen on port {port}; give one from 1 to {MAX_PORT}, or 0 for any that is free.")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with ExitStack() as stack:
            listener = stack.enter_context(socket.socket(family, kind, protocol))
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen(2048)
            stack.pop_all()
            return listener
    except OSError as error:
        raise ConfigError(
            f"cannot listen on {host}, port {port}: {error.strerror}. Give another --port or --host."
        ) from None


def local_hosts(host: str, listener: socket.socket) -> tuple[str, ...]:
    """List the names by which a local service may be called: as it was asked for, and as it is."""
    names = (*LOCAL_NAMES, normalize_address(host.lower()), normalize_address(listener.getsockname()[0]))
    return tuple(dict.fromkeys(names))


def spell_address(listener: socket.socket, proxy: ProxySettings) -> str:
    """Spell where a browser on this network finds the service; what a proxy makes of it is the proxy's."""
    host, port = listener.getsockname()[:2]
    if host in ("0.0.0.0", "::"):
        host = socket.gethostname()
    name = f"[{host}]" if ":" in host else host
    return f"http://{name}:{port}{proxy.root_path}/"
