"""Around every request: number, log line, metrics, security headers, and the last resort. Next: ``front.py``."""

from __future__ import annotations

import secrets
import time
from collections.abc import MutableMapping
from typing import Any

from starlette.datastructures import MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vitrieve.serve.front import send_refusal
from vitrieve.serve.logs import log_event, log_failure
from vitrieve.serve.metrics import Metrics

TIMINGS = "vitrieve.timings_seconds"
"""Key of the scope under which an endpoint leaves the times of a search."""
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


class Observe:
    """ASGI middleware, the outermost: nothing leaves the service without it."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, and note what became of it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        scope, method = dict(scope), scope["method"]  # a copy, which those behind may change
        started = time.perf_counter()
        request_id = secrets.token_hex(8)
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
        timings = scope.get(TIMINGS, {})
        self._metrics.count_request(method, route, status, seconds)
        self._metrics.observe_stages(timings)
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
