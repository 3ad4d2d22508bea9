"""Who may come in: the right host name, no other site's page, and the token where one is set."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import socket
from collections.abc import Callable, Collection
from urllib.parse import urlsplit

from fastapi import Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

COOKIE = "vitrieve_session"
OPEN_PATHS = ("/healthz", "/readyz", "/login")
"""What needs no token: the probes of whoever runs the service, and the way to give one."""
Host = tuple[str, int | None]
"""Name in lower case, and port where one is said."""
LOCAL_NAMES = ("localhost", "127.0.0.1", "::1")
PROXY_ADVICE = "Behind a proxy, start the service with --allowed-host NAME, the name in the browser's address."
DEFAULT_PORTS = {"http": 80, "https": 443}


class Gate:
    """ASGI middleware that turns away what may not come in.

    Args:
        app: What is behind the gate.
        token: What ``Authorization: Bearer`` must say; None: nobody is asked.
        hosts: Names by which the service may be called, besides ``allowed_hosts``; None: any. On a local address this
            keeps out pages of other sites that point their own name at it (DNS rebinding).
        allowed_hosts: Names that browsers show when a proxy stands before the service, each with or without a port.
        answer_unauthorized: Makes the answer for a browser without a token.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        token: str | None,
        hosts: Collection[str] | None,
        allowed_hosts: Collection[str],
        answer_unauthorized: Callable[[Request], Response],
    ) -> None:
        self._app = app
        self._token = token
        self._hosts = hosts
        self._allowed_hosts = frozenset(map(split_host, allowed_hosts))
        self._answer_unauthorized = answer_unauthorized

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer it here."""
        app = self._app
        if scope["type"] == "http":
            app = self._refuse(Request(scope)) or app
        await app(scope, receive, send)

    def _refuse(self, request: Request) -> Response | None:
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
        if self._token is None or is_open(request.scope["path"]) or is_authorized(request, self._token):
            return None
        return self._answer_unauthorized(request)

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


def is_authorized(request: Request, token: str) -> bool:
    """Say whether a request carries the token, or the cookie that ``/login`` gave for it."""
    scheme, _, given = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and is_token(given.strip(), token):
        return True
    cookie = request.cookies.get(COOKIE, "")
    return hmac.compare_digest(cookie.encode(), build_cookie(token).encode())


def is_token(given: str, token: str) -> bool:
    """Compare in constant time."""
    return hmac.compare_digest(given.encode(errors="surrogateescape"), token.encode())


def build_cookie(token: str) -> str:
    """Derive what a browser keeps: it proves the token without being it, and ends when the token changes."""
    return hmac.new(token.encode(), b"vitrieve session", hashlib.sha256).hexdigest()


def is_local(host: str) -> bool:
    """Say whether an address, or every address of a name, can be reached from this machine only.

    >>> is_local("127.0.0.2"), is_local("127.1"), is_local("0.0.0.0"), is_local("::1")
    (True, True, False, True)
    """
    try:
        found = {str(entry[4][0]) for entry in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)} if host else ()
    except (OSError, UnicodeError):  # listening there will say what is wrong with it
        return False
    return bool(found) and all(_is_loopback(address) for address in found)


def _is_loopback(address: str) -> bool:
    return ipaddress.ip_address(normalize_address(address).partition("%")[0]).is_loopback


def normalize_address(name: str) -> str:
    """Spell an address in its one way; a name that is no address stays as it is.

    >>> normalize_address("::ffff:7f00:1"), normalize_address("0:0:0:0:0:0:0:1"), normalize_address("localhost")
    ('127.0.0.1', '::1', 'localhost')
    """
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        return name
    return str(getattr(address, "ipv4_mapped", None) or address)


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
