"""What ``/metrics`` tells: of one process, or of all processes that share a folder.

Processes that share a folder count in files there (``prometheus_client.multiprocess``), and each of them can answer for
all. A process counts under a number, whose file it locks for as long as it lives: the next process takes the number of
one that has ended, and goes on with its counts. So counts never go back, and the number of files is bounded.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from itertools import count
from pathlib import Path

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
    values,
)
from prometheus_client.metrics_core import Metric
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead
from prometheus_client.registry import Collector

from vitrieve.systems import CHANGE, try_lock

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8)
"""Bounds of the histograms: fine around the 25 ms of a search by vector and the 400 ms of one by picture."""
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_METHODS = ("GET", "POST", "HEAD", "OPTIONS", "PUT", "PATCH", "DELETE")
FOLDER_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"
"""The variable in which ``prometheus_client`` looks for the folder of the counts."""
_LOCK_SUFFIX = ".process"


class Metrics:
    """Counters of one service; several services in one process have their own each.

    Args:
        folder: Folder that this process shares (``share_counts``), to tell of all that share it; None: of itself alone.
        has_collections: Flag that requests and stages have the label ``collection``, which is empty for what belongs to
            none.
    """

    def __init__(self, folder: Path | None = None, *, has_collections: bool = False) -> None:
        self.registry = CollectorRegistry()
        self._has_collections = has_collections
        own = ("collection",) if has_collections else ()
        self._folder = folder
        ProcessCollector(registry=self.registry)
        self._requests = Counter(
            "vitrieve_requests", "Requests answered.", ("method", "route", "status", *own), registry=self.registry
        )
        self._request_seconds = Histogram(
            "vitrieve_request_seconds", "Time to answer.", ("route", *own), buckets=SECONDS, registry=self.registry
        )
        self._stage_seconds = Histogram(
            "vitrieve_stage_seconds",
            "Time of a search in each stage: wait, decode, encode, search.",
            ("stage", *own),
            buckets=SECONDS,
            registry=self.registry,
        )
        self.in_work = Gauge(
            "vitrieve_in_work",
            "Pieces of work that run or wait.",
            ("pool",),
            registry=self.registry,
            multiprocess_mode="livesum",
        )
        self.held_bytes = Gauge(
            "vitrieve_held_bytes",
            "Bytes of bodies being received or worked on.",
            registry=self.registry,
            multiprocess_mode="livesum",
        )

    def count_request(self, method: str, route: str, status: int, seconds: float, collection: str = "") -> None:
        """Count one answered request; a method that does not exist counts as ``other``."""
        own = (collection,) if self._has_collections else ()
        self._requests.labels(method if method in _METHODS else "other", route, str(status), *own).inc()
        self._request_seconds.labels(route, *own).observe(seconds)

    def observe_stages(self, timings_seconds: Mapping[str, float], collection: str = "") -> None:
        """Note how long the stages of one search took."""
        own = (collection,) if self._has_collections else ()
        for stage, seconds in timings_seconds.items():
            self._stage_seconds.labels(stage, *own).observe(seconds)

    def render(self) -> bytes:
        """Spell everything in the text format of Prometheus."""
        if self._folder is None:
            return generate_latest(self.registry)
        registry = CollectorRegistry()
        registry.register(_ProcessesCollector(find_processes(self._folder)))
        MultiProcessCollector(registry, path=str(self._folder))  # type: ignore[no-untyped-call]
        return generate_latest(registry)


def share_counts(folder: Path) -> None:
    """Let all counts that this process makes from now on stand in a folder, until it ends.

    ``prometheus_client`` knows one such folder in a process, so this is for a process that is one service.
    """
    number = _take_number(folder)
    os.environ[FOLDER_VARIABLE] = str(folder)
    values.ValueClass = values.MultiProcessValue(lambda: number)  # type: ignore[no-untyped-call]


def _take_number(folder: Path) -> int:
    """Take the first number that no living process has; the lock stays until this process ends, however it ends."""
    for number in count():
        descriptor = os.open(folder / f"{number}{_LOCK_SUFFIX}", CHANGE | os.O_CREAT, 0o600)
        if try_lock(descriptor):
            mark_process_dead(number, str(folder))  # type: ignore[no-untyped-call]
            os.ftruncate(descriptor, 0)
            os.write(descriptor, str(os.getpid()).encode())
            return number
        os.close(descriptor)
    raise AssertionError("there is always a next number")


def find_processes(folder: Path) -> tuple[int, ...]:
    """List the ids of the processes that share a folder and live; what the others had in work is forgotten."""
    ids = []
    for path in sorted(folder.glob(f"*{_LOCK_SUFFIX}")):
        descriptor = os.open(path, CHANGE)
        try:
            if try_lock(descriptor):
                mark_process_dead(int(path.stem), str(folder))  # type: ignore[no-untyped-call]
            elif text := os.read(descriptor, 20):  # empty where it has only just begun
                ids.append(int(text))
        finally:
            os.close(descriptor)
    return tuple(ids)


class _ProcessesCollector(Collector):
    """Memory, time and open files of several processes together; their start is that of the oldest."""

    def __init__(self, process_ids: Iterable[int]) -> None:
        self._process_ids = tuple(process_ids)

    def collect(self) -> Iterator[Metric]:
        """Yield each metric once, added up over the processes."""
        found: dict[str, Metric] = {}
        for process_id in self._process_ids:
            for metric in ProcessCollector(pid=lambda one=process_id: one, registry=None).collect():  # type: ignore[misc]
                (sample,) = metric.samples
                if metric.name not in found:
                    found[metric.name] = metric
                    continue
                (known,) = found[metric.name].samples
                join = min if metric.name == "process_start_time_seconds" else sum
                found[metric.name].samples = [known._replace(value=join((known.value, sample.value)))]
        yield from found.values()
