"""Around every request: number, log line, metrics, security headers, and the last resort."""

from __future__ import annotations

import json
import logging
import secrets
import sys
import time
import traceback
from collections.abc import Mapping, MutableMapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
)
from starlette.datastructures import MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vitrieve.errors import is_debugging
from vitrieve.quoting import escape_text
from vitrieve.serve.front import send_refusal

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8)
"""Bounds of the histograms: fine around the 25 ms of a search by vector and the 400 ms of one by picture."""
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_METHODS = ("GET", "POST", "HEAD", "OPTIONS", "PUT", "PATCH", "DELETE")


class Metrics:
    """Counters of one service; several services in one process have their own each."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self._requests = Counter(
            "vitrieve_requests", "Requests answered.", ("method", "route", "status"), registry=self.registry
        )
        self._request_seconds = Histogram(
            "vitrieve_request_seconds", "Time to answer.", ("route",), buckets=SECONDS, registry=self.registry
        )
        self._stage_seconds = Histogram(
            "vitrieve_stage_seconds",
            "Time of a search in each stage: wait, decode, encode, search.",
            ("stage",),
            buckets=SECONDS,
            registry=self.registry,
        )
        self.in_work = Gauge("vitrieve_in_work", "Pieces of work that run or wait.", ("pool",), registry=self.registry)
        self.held_bytes = Gauge(
            "vitrieve_held_bytes", "Bytes of bodies being received or worked on.", registry=self.registry
        )

    def count_request(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count one answered request; a method that does not exist counts as ``other``."""
        self._requests.labels(method if method in _METHODS else "other", route, str(status)).inc()
        self._request_seconds.labels(route).observe(seconds)

    def observe_stages(self, timings_seconds: Mapping[str, float]) -> None:
        """Note how long the stages of one search took."""
        for stage, seconds in timings_seconds.items():
            self._stage_seconds.labels(stage).observe(seconds)

    def render(self) -> bytes:
        """Spell everything in the text format of Prometheus."""
        return generate_latest(self.registry)


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

    The parser of forms warns of every form that is none; its client is told.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter())
    levels = {"vitrieve.serve": logging.INFO, "uvicorn": logging.WARNING, "python_multipart": logging.CRITICAL}
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
