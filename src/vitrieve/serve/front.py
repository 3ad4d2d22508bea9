"""What every request passes first: a proxy's prefix, bounds of the head, HEAD, unread bodies.

Everything behind this file decides by ``scope["path"]``, which is the path that the router takes. It is never decided
by an address that was put together again: its host is whatever the client wrote into the header ``Host``.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vitrieve.serve.limits import Limits

Refusal = tuple[int, str]


class Front:
    """ASGI middleware behind ``Observe`` and before ``Gate``.

    Args:
        app: What is behind it.
        limits: Bounds of the head, and of a body that is refused.
        root_path: Prefix under which a proxy shows the service, such as ``/photos``; empty: none. A proxy may take it
            off or leave it on.
    """

    def __init__(self, app: ASGIApp, *, limits: Limits, root_path: str) -> None:
        self._app = app
        self._limits = limits
        self._root_path = root_path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer it here."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        body = IncomingBody(scope["headers"], receive, self._limits)
        is_head = scope["method"] == "HEAD"

        async def send_when_read(message: Message) -> None:
            if message["type"] == "http.response.start" and not await body.drain():
                MutableHeaders(scope=message)["Connection"] = "close"
            if is_head and message["type"] == "http.response.body":
                message = {**message, "body": b""}
            await send(message)

        refusal = find_head_refusal(scope, self._limits)
        if refusal is not None:
            await send_refusal(send_when_read, *refusal)
            return
        if is_head:
            scope["method"] = "GET"  # the same answer without its body
        scope["path"] = take_prefix_off(scope["path"], self._root_path)
        scope["root_path"] = ""
        await self._app(scope, body.receive, send_when_read)


class IncomingBody:
    """A request's body on its way in.

    Most clients read an answer only when they have sent everything, and one that is cut off while it sends sees a
    broken connection in place of the answer. So whatever is answered, the rest of the body is received first, and
    dropped, within bounds.
    """

    def __init__(self, headers: Iterable[tuple[bytes, bytes]], receive: Receive, limits: Limits) -> None:
        known = Headers(raw=list(headers))
        self._announced_bytes = read_length(known)
        self._is_complete = self._announced_bytes == 0 and "transfer-encoding" not in known
        self._waits_for_word = known.get("expect", "").lower() == "100-continue"
        self._num_bytes = 0
        self._receive = receive
        self._limits = limits
        self._deadline = asyncio.get_running_loop().time() + limits.body_seconds

    async def receive(self) -> Message:
        """Receive the next part."""
        message = await self._receive()
        self._num_bytes += len(message.get("body", b""))
        self._is_complete = message["type"] != "http.request" or not message.get("more_body", False)
        return message

    async def drain(self) -> bool:
        """Receive and drop what is left; return whether that was all of it.

        A client that waits for the word to go on (``Expect: 100-continue``) has sent nothing yet and is not asked to.
        """
        most = self._limits.drained_bytes
        if self._is_complete:
            return True
        if self._announced_bytes > most or (self._waits_for_word and not self._num_bytes):
            return False
        try:
            async with asyncio.timeout_at(self._deadline):
                while not self._is_complete and self._num_bytes <= most:
                    await self.receive()
        except TimeoutError:
            return False
        return self._is_complete


def read_length(headers: Headers) -> int:
    """Return the length that the client announces; 0 when it announces nothing that can be read."""
    announced = headers.get("content-length", "")
    return int(announced) if announced.isascii() and announced.isdigit() and len(announced) < 20 else 0


def find_head_refusal(scope: Scope, limits: Limits) -> Refusal | None:
    """Say what is too large about a request's address or headers; None when nothing is."""
    num_bytes = len(scope.get("raw_path") or scope["path"].encode()) + len(scope["query_string"])
    if num_bytes > limits.address_bytes:
        return 414, f"the address has {num_bytes:,} bytes; at most {limits.address_bytes:,} are read."
    num_bytes = sum(len(name) + len(value) for name, value in scope["headers"])
    if num_bytes > limits.header_bytes or len(scope["headers"]) > limits.num_headers:
        return 431, (
            f"the request has {len(scope['headers'])} headers of {num_bytes:,} bytes; at most {limits.num_headers} of "
            f"{limits.header_bytes:,} bytes are read."
        )
    return None


def take_prefix_off(path: str, root_path: str) -> str:
    """Take the prefix off a path that has it.

    >>> take_prefix_off("/photos/login", "/photos"), take_prefix_off("/login", "/photos")
    ('/login', '/login')
    >>> take_prefix_off("/photos", "/photos"), take_prefix_off("/photoshop", "/photos")
    ('/', '/photoshop')
    """
    if root_path and (path == root_path or path.startswith(f"{root_path}/")):
        return path[len(root_path) :] or "/"
    return path


async def send_refusal(send: Send, status: int, detail: str, retry_after_seconds: int | None = None) -> None:
    """Answer with a status and one sentence."""
    body = json.dumps({"detail": detail}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    if retry_after_seconds is not None:
        headers.append((b"retry-after", str(retry_after_seconds).encode()))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
