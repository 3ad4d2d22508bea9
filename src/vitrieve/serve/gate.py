"""Who may come in: the right host name, no other site's page, and the token where one is set. Next: ``service.py``."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
from collections.abc import Callable, Collection
from urllib.parse import urlsplit

from fastapi import Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

COOKIE = "vitrieve_session"
OPEN_PATHS = ("/healthz", "/readyz", "/login")
"""What needs no token: the probes of whoever runs the service, and the way to give one."""
LOCAL_NAMES = ("localhost", "127.0.0.1", "::1")


class Gate:
    """ASGI middleware that turns away what may not come in.

    Args:
        app: What is behind the gate.
        token: What ``Authorization: Bearer`` must say; None: nobody is asked.
        hosts: Names by which the service may be called; None: any. On a local address this keeps out pages of
            other sites that point their own name at it (DNS rebinding).
        answer_unauthorized: Makes the answer for a browser without a token.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        token: str | None,
        hosts: Collection[str] | None,
        answer_unauthorized: Callable[[Request], Response],
    ) -> None:
        self._app = app
        self._token = token
        self._hosts = hosts
        self._answer_unauthorized = answer_unauthorized

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer it here."""
        app = self._app
        if scope["type"] == "http":
            app = self._refuse(Request(scope)) or app
        await app(scope, receive, send)

    def _refuse(self, request: Request) -> Response | None:
        host = request.headers.get("host", "")
        if self._hosts is not None and split_host(host) not in self._hosts:
            names = ", ".join(self._hosts)
            return _answer(400, f"this service is not called {host[:100]!r} here; use one of: {names}.")
        origin = request.headers.get("origin")
        if request.method not in ("GET", "HEAD") and origin is not None and urlsplit(origin).netloc != host:
            return _answer(403, "a page of another site sent this; the service answers its own page and programs.")
        if self._token is None or self._is_open(request.url.path) or is_authorized(request, self._token):
            return None
        return self._answer_unauthorized(request)

    def _is_open(self, path: str) -> bool:
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
    """Say whether an address can be reached from this machine only.

    >>> is_local("127.0.0.1"), is_local("localhost"), is_local("0.0.0.0"), is_local("::1")
    (True, True, False, True)
    """
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def split_host(header: str) -> str:
    """Take the name out of a Host header.

    >>> split_host("localhost:8000"), split_host("[::1]:8000"), split_host("a.example")
    ('localhost', '::1', 'a.example')
    """
    try:
        return urlsplit(f"//{header}").hostname or ""
    except ValueError:
        return ""


def _answer(status: int, detail: str) -> Response:
    return JSONResponse({"detail": detail}, status)
