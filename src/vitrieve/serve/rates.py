"""How often something may be done in a minute: changes of a process, and what each client reads."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Hashable

from vitrieve.serve.settings import SEARCH_READS

MAX_CLIENTS = 10_000
"""Clients that are remembered; of more, those that came last."""
SEARCH_PATHS = ("/search", "/explain", "/compare", "/compare/overlay", "/uploads", "/login", "/mcp", "/mcp/")
"""Paths of what computes, or may be tried over and over."""


class Rate:
    """What is left of a minute; after a minute's pause all of it.

    Args:
        most: How often it may be done in a minute.
        clock: Tells the time in seconds.
    """

    def __init__(self, most: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._most = most
        self._left = float(most)
        self._clock = clock
        self._at = clock()

    def take(self, num: int) -> float:
        """Take some of what is left; return 0.0, or the seconds until there is enough and take nothing."""
        now = self._clock()
        self._left = min(float(self._most), self._left + (now - self._at) * self._most / 60)
        self._at = now
        if self._left >= num:
            self._left -= num
            return 0.0
        return (num - self._left) * 60 / self._most


class ReadRates:
    """What each client reads in a minute; to be used on the event loop alone.

    Args:
        most: Requests of one client in a minute; 0: any number.
        clock: Tells the time in seconds.
    """

    def __init__(self, most: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._most = most
        self._clock = clock
        self._clients: OrderedDict[Hashable, Rate] = OrderedDict()

    def take(self, client: Hashable, num: int) -> float:
        """Take some of what is left to a client; as ``Rate.take``."""
        if not self._most or not num:
            return 0.0
        rate = self._clients.get(client)
        if rate is None:
            rate = self._clients[client] = Rate(self._most, self._clock)
            if len(self._clients) > MAX_CLIENTS:
                self._clients.popitem(last=False)
        self._clients.move_to_end(client)
        return rate.take(min(num, self._most))


def count_reads(method: str, path: str, *, has_query: bool) -> int:
    """Say as how many requests one counts: probes and files of the page as none, a search as ``SEARCH_READS``.

    >>> count_reads("GET", "/", has_query=True), count_reads("GET", "/thumbnails/a.png", has_query=True)
    (10, 1)
    >>> count_reads("GET", "/healthz", has_query=False), count_reads("GET", "/static/page.css", has_query=False)
    (0, 0)
    """
    if path in ("/healthz", "/readyz") or path.startswith("/static/"):
        return 0
    is_search = path in SEARCH_PATHS and (method, path) != ("GET", "/login")
    return SEARCH_READS if is_search or (path == "/" and has_query) else 1


def spell_seconds(seconds: float) -> str:
    """Spell for ``Retry-After`` when there is enough again.

    >>> spell_seconds(0.01), spell_seconds(2.5)
    ('1', '3')
    """
    return str(max(1, round(seconds + 0.5)))
