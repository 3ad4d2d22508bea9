"""What Prometheus may collect from ``/metrics``. Next file: ``observe.py``."""

from __future__ import annotations

from collections.abc import Mapping

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
)

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
