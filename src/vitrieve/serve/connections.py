"""One connection, bounded from its first byte, before anybody is asked for a token.

uvicorn bounds what an application reads. What comes before and after is bounded here: connections that say nothing, a
head that trickles or never ends, a client that does not read its answer, and too many connections. A connection on
which nothing is being answered makes room for a new one, so that idle ones lock nobody out.
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
from collections import Counter
from http import HTTPStatus
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

IPV6_NETWORK_BITS = 64
"""Of what one household or machine gets as a whole."""


class BoundedProtocol(HttpToolsProtocol):
    """A connection of uvicorn with bounds.

    Attributes:
        max_connections: Of all clients together; of more than that the idle ones go, of the client that has most first.
        max_connections_of_client: Of one address. A proxy is one client, with one connection for each request in work.
        head_seconds: From the first byte of a head, or from the beginning, to the head's end.
        silent_bytes: Received without an end of the head and without a byte of a body: addresses, headers, trailers.
        send_seconds: For a client to take what waits to be sent (64 KiB at most).
        linger_seconds: To receive and drop what a refused client still sends, so that it reads why.
        client_network: The address that counts as one client.
        idle_since: When the last answer ended, by the event loop's clock.
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


def find_network(address: str) -> str:
    """Return what counts as one client: an IPv4 address, or the network of an IPv6 address.

    >>> find_network("192.0.2.7"), find_network("::ffff:192.0.2.7"), find_network("2001:db8::7")
    ('192.0.2.7', '192.0.2.7', '2001:db8::/64')
    """
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(parsed, ipaddress.IPv4Address):
        return address
    if parsed.ipv4_mapped is not None:
        return str(parsed.ipv4_mapped)
    return str(ipaddress.ip_network((parsed, IPV6_NETWORK_BITS), strict=False))
