"""What every request passes on its way to an endpoint, from outside in.

- ``RequestLog`` gives a request its number, logs and counts it, and adds the security headers.
- ``RequestBounds`` takes a proxy's prefix off, bounds the head, and receives what a refused request still sends.
- ``ChooseCollection`` leads to one of several collections, where a service has them.
- ``AccessControl`` asks for the right host name, keeps pages of other sites out, asks for the token, and bounds how
  much a client reads in a minute.

All of them decide by ``scope["path"]``, which is the path that the router takes. It is never decided by an address that
was put together again: its host is whatever the client wrote into the header ``Host``.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import logging
import re
import secrets
import sys
import time
import traceback
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, MutableMapping
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from fastapi import HTTPException, Request
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vitrieve.errors import is_debugging
from vitrieve.progress import is_quiet
from vitrieve.quoting import escape_text
from vitrieve.serve.metrics import Metrics
from vitrieve.serve.rates import ReadRates, count_reads, spell_seconds
from vitrieve.serve.settings import Limits, Tokens, find_network, normalize_address

LOGGER = logging.getLogger("vitrieve.serve")


class JsonFormatter(logging.Formatter):
    """Spells a record as one line of JSON: time, level, event, the fields of ``log_event``, and an error.

    JSON in ASCII, so that no name in it can forge a line or move a terminal.
    """

    def format(self, record: logging.LogRecord) -> str:
        """Spell one record; what JSON cannot hold is spelled as text."""
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line |= _describe(record.exc_info[1])
            if is_debugging():
                line["traceback"] = self.formatException(record.exc_info)
        return escape_text(json.dumps(line, default=str))


def _describe(error: BaseException | None) -> dict[str, str]:
    """Say what was raised, and where: enough to recognize a fault, in a line."""
    if error is None:
        return {}
    frames = traceback.extract_tb(error.__traceback__)
    places = [f"{Path(frame.filename).name}:{frame.lineno} {frame.name}" for frame in frames[-3:]]
    return {"error": f"{type(error).__name__}: {error}", "where": " > ".join(places)}


def write_logs_to_standard_error() -> None:
    """Let the service's events, and the server's own warnings, come out as JSON on standard error.

    The parser of forms warns of every form that is none; its client is told. Under --quiet only failures come out.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter())
    levels = {
        "vitrieve.serve": logging.WARNING if is_quiet() else logging.INFO,
        "vitrieve.search": logging.WARNING,
        "uvicorn": logging.WARNING,
        "python_multipart": logging.CRITICAL,
    }
    for name, level in levels.items():
        logger = logging.getLogger(name)
        logger.handlers[:] = [handler]
        logger.setLevel(level)
        logger.propagate = False


def log_event(event: str, **fields: object) -> None:
    """Log an event with its fields."""
    LOGGER.info(event, extra={"fields": fields})


def log_failure(event: str, **fields: object) -> None:
    """Log the exception that is being handled, with its traceback where that is asked for (VITRIEVE_DEBUG=1)."""
    LOGGER.error(event, extra={"fields": fields}, exc_info=True)


OUT_OF_MEMORY = "the server has too little free memory for this now; try again later, or with a smaller picture."
REQUEST_ID = "vitrieve.request_id"
"""Key of the scope under which the number of a request stands."""
TIMINGS = "vitrieve.timings_seconds"
"""Key of the scope under which an endpoint leaves the times of a search."""
COLLECTION = "vitrieve.collection"
"""Key of the scope under which the name of the collection stands, where there are several."""
CLIENT_CLOSED = 499
"""What is noted for a request whose client went away; nginx's number, because no standard has one."""

CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
SECURITY_HEADERS = {
    "Content-Security-Policy": CONTENT_SECURITY_POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    # Not no-referrer: with it a browser's forms say "Origin: null", and the gate could not tell them from strangers'.
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "geolocation=(), microphone=(), payment=(), usb=()",
}


class RequestLog:
    """ASGI middleware, the outermost: nothing leaves the service without it."""

    def __init__(self, app: ASGIApp, metrics: Metrics, retry_after_seconds: int) -> None:
        self._app = app
        self._metrics = metrics
        self._retry_after_seconds = retry_after_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, and note what became of it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        scope, method = dict(scope), scope["method"]  # a copy, which those behind may change
        started = time.perf_counter()
        request_id = scope[REQUEST_ID] = secrets.token_hex(8)
        status, num_bytes = 0, 0

        async def send_with_headers(message: Message) -> None:
            nonlocal status, num_bytes
            if message["type"] == "http.response.start":
                status = message["status"]
                add_headers(message, request_id)
            num_bytes += len(message.get("body", b""))
            await send(message)

        try:
            await self._app(scope, receive, send_with_headers)
        except ClientDisconnect:  # while it sent a body: nobody is there to read an answer
            status = status or CLIENT_CLOSED
        except MemoryError:
            log_failure("out of memory", request_id=request_id)
            if not status:
                await send_refusal(send_with_headers, 503, OUT_OF_MEMORY, self._retry_after_seconds)
        except Exception:  # a fault of ours: the client learns a number, the log the rest
            log_failure("failure", request_id=request_id)
            if not status:
                detail = f"the server failed; its log says why under request_id {request_id}."
                await send_refusal(send_with_headers, 500, detail)
        finally:
            seconds = time.perf_counter() - started
            self._note(scope, method, status, seconds, request_id=request_id, sent_bytes=num_bytes)

    def _note(self, scope: Scope, method: str, status: int, seconds: float, **fields: object) -> None:
        route = get_route(scope)
        timings, collection = scope.get(TIMINGS, {}), scope.get(COLLECTION, "")
        self._metrics.count_request(method, route, status, seconds, collection)
        self._metrics.observe_stages(timings, collection)
        if collection:
            fields = {"collection": collection, **fields}
        stages: dict[str, object] = {f"{stage}_seconds": round(spent, 6) for stage, spent in timings.items()}
        # The route, not the address: names of images and ids of uploads are the visitors' business.
        log_event("request", method=method, route=route, status=status, seconds=round(seconds, 6), **stages, **fields)


def get_route(scope: MutableMapping[str, Any]) -> str:
    """Name the route that took a request, as it was declared: a bounded number of names."""
    route = scope.get("route")
    return str(getattr(route, "path", "")) or "unmatched"


def add_headers(message: Message, request_id: str) -> None:
    """Add the security headers and the request's number to the start of an answer; what is set already stays."""
    headers = MutableHeaders(scope=message)
    for name, value in SECURITY_HEADERS.items():
        headers.setdefault(name, value)
    headers.setdefault("Cache-Control", "private, no-cache")
    headers["X-Request-ID"] = request_id


Refusal = tuple[int, str]


class RequestBounds:
    """ASGI middleware behind ``RequestLog`` and before ``AccessControl``.

    Args:
        app: Application that requests are passed on to.
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


class ChooseCollection:
    """ASGI middleware that leads a request below ``/c/NAME`` to the application of that collection.

    Args:
        app: Application for everything else, unknown names among it.
        apps: Application of each collection, which sees the path behind its name.
    """

    def __init__(self, app: ASGIApp, apps: Mapping[str, ASGIApp]) -> None:
        self._app = app
        self._apps = apps

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""
        name, path = find_collection(scope["path"]) if scope["type"] == "http" else ("", "")
        app = self._apps.get(name)
        if app is None:
            await self._app(scope, receive, send)
        else:
            scope[COLLECTION], scope["path"] = name, path
            await app(scope, receive, send)


def find_collection(path: str) -> tuple[str, str]:
    """Return the name of a collection that a path begins with, and the rest; an empty name where it names none.

    >>> find_collection("/c/shoes/images/a/b.png"), find_collection("/c/shoes"), find_collection("/cats/shoes")
    (('shoes', '/images/a/b.png'), ('shoes', '/'), ('', '/cats/shoes'))
    """
    if not path.startswith("/c/"):
        return "", path
    name, _, rest = path.removeprefix("/c/").partition("/")
    return name, f"/{rest}"


COOKIE = "vitrieve_session"
MAX_SESSIONS = 16
"""Tokens that one browser proves: several collections, and services at other ports, may have their own."""
OPEN_PATHS = ("/healthz", "/readyz", "/login")
"""What needs no token: the probes of whoever runs the service, and the way to give one."""
Host = tuple[str, int | None]
"""Name in lower case, and port where one is said."""
PROXY_ADVICE = "Behind a proxy, start the service with --allowed-host NAME, the name in the browser's address."
DEFAULT_PORTS = {"http": 80, "https": 443}


class AccessControl:
    """ASGI middleware that turns away what may not come in.

    Args:
        app: Application that requests are passed on to.
        tokens: Who may come in.
        hosts: Names by which the service may be called, besides ``allowed_hosts``; None: any. On a local address this
            keeps out pages of other sites that point their own name at it (DNS rebinding).
        allowed_hosts: Names that browsers show when a proxy stands before the service, each with or without a port.
        answer_unauthorized: Makes the answer for a browser without a token.
        answer_error: Makes the answer to a refusal; None: JSON.
        rates: How much each client reads; None: that is not counted.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        tokens: Tokens,
        hosts: Collection[str] | None,
        allowed_hosts: Collection[str],
        answer_unauthorized: Callable[[Request], Response],
        answer_error: Callable[[Request, Exception], Awaitable[Response]] | None = None,
        rates: ReadRates | None = None,
    ) -> None:
        self._app = app
        self._tokens = tokens
        self._answer_error = answer_error
        self._rates = rates
        self._hosts = hosts
        self._allowed_hosts = frozenset(map(split_host, allowed_hosts))
        self._answer_unauthorized = answer_unauthorized

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer it here."""
        app = self._app
        if scope["type"] == "http":
            request = Request(scope)
            token = find_token(request, self._tokens)
            app = self._refuse_stranger(request) or await self._refuse_excess(request, token) or app
            if app is self._app and not (token or not self._tokens.read or is_open(scope["path"])):
                app = self._answer_unauthorized(request)
        await app(scope, receive, send)

    async def _refuse_excess(self, request: Request, token: str | None) -> Response | None:
        """Turn away a client that asks too often: an address, with a token of its own or without."""
        if self._rates is None:
            return None
        network = find_network(request.client.host) if request.client else ""
        num = count_reads(request.method, request.scope["path"], has_query=bool(request.scope["query_string"]))
        seconds = self._rates.take((network, token), num)
        if not seconds:
            return None
        wait = spell_seconds(seconds)
        detail = f"more requests came from here in a minute than this server answers; try again in {wait} seconds."
        refusal = HTTPException(429, detail, {"Retry-After": wait})
        if self._answer_error is None:
            return JSONResponse({"detail": detail}, 429, refusal.headers)
        return await self._answer_error(request, refusal)

    def _refuse_stranger(self, request: Request) -> Response | None:
        host = split_host(request.headers.get("host", ""))
        if self._hosts is not None and host[0] not in self._hosts and not self._is_allowed(host):
            detail = (
                f"this service is not called {request.headers.get('host', '')[:100]!r} here; use one of: "
                f"{', '.join(self._hosts)}. {PROXY_ADVICE}"
            )
            return _answer(400, detail)
        if request.method not in ("GET", "HEAD") and self._is_from_another_site(request, host):
            detail = f"a page of another site sent this; the service answers its own page and programs. {PROXY_ADVICE}"
            return _answer(403, detail)
        return None

    def _is_from_another_site(self, request: Request, host: Host) -> bool:
        """Say whether a page that is not the service's own sent a request that may change something.

        A browser says so itself (``Sec-Fetch-Site``), whatever a proxy made of the name, where the connection is
        trusted; elsewhere the page's name must be the one that the request was sent to. Programs say neither.
        """
        site = request.headers.get("sec-fetch-site")
        origin = request.headers.get("origin")
        if origin is None:
            return site not in (None, "same-origin", "none")
        if site == "same-origin":
            return False
        scheme, _, name = origin.partition("://")
        sender = split_host(name, DEFAULT_PORTS.get(scheme))
        return not sender[0] or (
            sender != (host[0], host[1] or DEFAULT_PORTS.get(scheme)) and not self._is_allowed(sender)
        )

    def _is_allowed(self, host: Host) -> bool:
        return host in self._allowed_hosts or (host[0], None) in self._allowed_hosts


def is_open(path: str) -> bool:
    """Say whether a path needs no token; it is the path that the router takes."""
    return path in OPEN_PATHS or path.startswith("/static/")


def may_read(request: Request, tokens: Tokens) -> bool:
    """Say whether a request may read: it needs no token, or proves one."""
    return not tokens.read or find_token(request, tokens) is not None


def find_token(request: Request, tokens: Tokens) -> str | None:
    """Return the token that a request carries, or whose cookie from ``/login``; None where it proves none.

    A cookie proves tokens for reading alone. Every token is compared, whichever is found.
    """
    given = get_bearer(request)
    sessions = find_sessions(request)
    proved = [token for token in (*tokens.read, *tokens.write) if is_token(given, token)]
    proved += [token for token in tokens.read if is_one_of(build_cookie(token), sessions)]
    return proved[0] if proved else None


def get_bearer(request: Request) -> str:
    """Return the token that a request carries in its header; an empty text where it carries none."""
    scheme, _, given = request.headers.get("authorization", "").partition(" ")
    return given.strip() if scheme.lower() == "bearer" else ""


def is_token(given: str, token: str) -> bool:
    """Compare in constant time."""
    return hmac.compare_digest(given.encode(errors="surrogateescape"), token.encode())


def is_one_of(given: str, tokens: Iterable[str]) -> bool:
    """Compare with each, in a time that does not tell which it is."""
    return sum(is_token(given, token) for token in tokens) > 0


def build_cookie(token: str) -> str:
    """Derive what a browser keeps: it proves the token without being it, and ends when the token changes."""
    return hmac.new(token.encode(), b"vitrieve session", hashlib.sha256).hexdigest()


def find_sessions(request: Request) -> tuple[str, ...]:
    """Return what a browser proves of each token, the last one first.

    It sends several cookies of the name where services below several paths of one host have set one each; Starlette
    keeps the last, which is that of the shortest path and may be another service's.
    """
    cookies = (part.strip().partition("=") for line in request.headers.getlist("cookie") for part in line.split(";"))
    parts = (part for name, _, value in cookies if name == COOKIE for part in value.split("."))
    proofs = dict.fromkeys(part for part in parts if re.fullmatch(r"[0-9a-f]{64}", part))  # two paths may hold one
    return tuple(islice(proofs, MAX_SESSIONS))


def split_host(header: str, default_port: int | None = None) -> Host:
    """Take name and port out of a Host header; an empty name when it has none that can be read.

    >>> split_host("LocalHost:8000"), split_host("[::1]:8000"), split_host("a.example", 443)
    (('localhost', 8000), ('::1', 8000), ('a.example', 443))
    """
    try:
        parts = urlsplit(f"//{header}")
        is_name = parts.netloc == header and "@" not in header
        return (normalize_address(parts.hostname or ""), parts.port or default_port) if is_name else ("", None)
    except ValueError:
        return "", None


def _answer(status: int, detail: str) -> Response:
    return JSONResponse({"detail": detail}, status)
