"""What a user is told while work goes on, on standard error: sentences, and progress.

Progress is a bar on a terminal, and a line now and then elsewhere.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Generator, Iterable, Iterator
from typing import TypeVar

from vitrieve.quoting import escape_text

T = TypeVar("T")
LINE_EVERY_SECONDS = 10.0


def print_message(*lines: str) -> None:
    """Tell the user something that is not the result, a line or several."""
    for line in lines:
        print(escape_text(line), file=sys.stderr, flush=True)


def track(
    items: Iterable[T], description: str, *, total: int | None = None, weight: int = 1, is_shown: bool = True
) -> Generator[T, None, None]:
    """Yield ``items`` while showing how far the work is.

    The display ends when the generator is exhausted or closed: a consumer that may stop early closes it
    (``contextlib.closing``), so that what is printed next does not land in the bar.

    Args:
        items: What is worked through.
        description: A few words, for example ``embed``.
        total: Number of units in all; None when unknown.
        weight: Units that one item stands for (a batch of images: its size).
        is_shown: False yields silently.
    """
    if not is_shown:
        yield from items
    elif sys.stderr.isatty():
        yield from _track_bar(items, description, total, weight)
    else:
        yield from _track_lines(items, description, total, weight)


def _track_bar(items: Iterable[T], description: str, total: int | None, weight: int) -> Iterator[T]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(description, total=total)
        for item in items:
            yield item
            progress.advance(task, weight)


def _track_lines(items: Iterable[T], description: str, total: int | None, weight: int) -> Iterator[T]:
    start = last = time.monotonic()
    done = 0
    for item in items:
        yield item
        done += weight
        now = time.monotonic()
        if now - last >= LINE_EVERY_SECONDS:
            last = now
            _print_line(description, min(done, total or done), total, now - start)
    _print_line(description, min(done, total or done), total, time.monotonic() - start)


def _print_line(description: str, done: int, total: int | None, seconds: float) -> None:
    of_total = f"/{total}" if total is not None else ""
    left = f", {seconds / done * (total - done):.0f} s left" if total and 0 < done < total else f", {seconds:.1f} s"
    print(f"{description}: {done}{of_total}{left}", file=sys.stderr, flush=True)
