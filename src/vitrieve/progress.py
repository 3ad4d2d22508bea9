"""What a user is told while work goes on, on standard error: sentences, and progress.

Progress is a bar on a terminal and in a notebook, and a line now and then elsewhere: in a file, a pipe, or the log of a
CI job. ``--quiet`` (VITRIEVE_QUIET=1) leaves what failed, ``--verbose`` (VITRIEVE_VERBOSE=1) stamps each sentence with
the seconds since the start.
"""

from __future__ import annotations

import html
import os
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TextIO, TypeVar, cast

from vitrieve.errors import is_set
from vitrieve.quoting import escape_text

if TYPE_CHECKING:
    from rich.console import Console

T = TypeVar("T")
LINE_EVERY_SECONDS = 10.0
"""Time between two lines of progress, at first."""
LINE_EVERY_SHARE = 0.05
"""Later on, that share of the time since the work began: a day of work makes some 150 lines, not 9,000."""
VERBOSE_LINE_EVERY_SECONDS = 1.0
STANDARD_ERROR = 2
"""File descriptor."""
DRAW_EVERY_SECONDS = 0.1
"""Time between two states of a bar that is drawn by this file; a notebook gets a message for each."""
QUIET_VARIABLE = "VITRIEVE_QUIET"
VERBOSE_VARIABLE = "VITRIEVE_VERBOSE"
"""With any value but 0 they do what the flags --quiet and --verbose do, which set them."""

_START = time.monotonic()


def is_quiet() -> bool:
    """Say whether only results and failures are to be told."""
    return is_set(QUIET_VARIABLE)


def is_verbose() -> bool:
    """Say whether whoever runs this wants to know more."""
    return is_set(VERBOSE_VARIABLE) and not is_quiet()


def print_message(*lines: str) -> None:
    """Tell the user something that is neither the result nor a failure, a line or several; nothing under --quiet."""
    if is_quiet():
        return
    stamp = f"[{time.monotonic() - _START:7.1f} s] " if is_verbose() else ""
    _print(*(stamp + line for line in lines))


def print_failure(*lines: str) -> None:
    """Tell the user what failed, a line or several, also under --quiet."""
    _print(*lines)


def _print(*lines: str) -> None:
    for line in lines:
        _write(escape_text(line) + "\n")


def _write(text: str) -> None:
    if sys.stderr is not None:
        with _dropping_failures(sys.stderr):
            sys.stderr.write(text)
            sys.stderr.flush()


@contextmanager
def _dropping_failures(stream: TextIO) -> Iterator[None]:
    """Let a block write to standard error; what cannot be told there is dropped, for the work is worth more.

    After a failure (the reader of the log or the terminal has gone, the disk is full) the descriptor leads nowhere, so
    that what C code tells does not end the work either. What a stream could not write stays in it, and Python would
    try again at its end, and end with the status 120.
    """
    try:
        yield
    except (BlockingIOError, ValueError):  # whoever reads is slow for now; the stream is closed, or lacks a character
        return
    except OSError:
        with suppress(OSError, ValueError), Path(os.devnull).open("wb") as nothing:
            if stream.fileno() == STANDARD_ERROR:  # not a file of whoever redirected it
                os.dup2(nothing.fileno(), STANDARD_ERROR)


class _ForgivingStream:
    """Standard error for libraries, whose work ends where a write of theirs fails."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with _dropping_failures(self._stream):
            self._stream.write(text)
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        with _dropping_failures(self._stream):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def make_forgiving(stream: TextIO) -> TextIO:
    """Return standard error as a stream that drops what cannot be written."""
    return cast(TextIO, _ForgivingStream(stream))


def build_console() -> Console:
    """Build what shows bars on standard error, also when its terminal goes meanwhile."""
    from rich.console import Console

    return Console(file=make_forgiving(sys.stderr))


DisplayKind = Literal["bar", "plain bar", "notebook", "lines", "nothing"]


def choose_display() -> DisplayKind:
    r"""Choose how progress is shown.

    Returns:
        ``bar``: with colors, on a terminal. ``plain bar``: with carriage returns and no other code, on a terminal where
        NO_COLOR is set. ``notebook``: an element of the page. ``lines``: where standard error is no terminal, where
        the terminal is dumb, and where a CI service gives its jobs one (the variable CI). ``nothing``: under --quiet.
    """
    if is_quiet():
        return "nothing"
    if _find_notebook() is not None:
        return "notebook"
    if sys.stderr is None or not sys.stderr.isatty() or os.environ.get("TERM") == "dumb" or _is_ci():
        return "lines"
    return "plain bar" if has_no_color() else "bar"


def has_no_color() -> bool:
    """Say whether terminals get no codes: NO_COLOR has any value (https://no-color.org)."""
    return os.environ.get("NO_COLOR", "") != ""


def _is_ci() -> bool:
    return os.environ.get("CI", "").lower() not in ("", "0", "false")


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
    kind: DisplayKind = choose_display() if is_shown else "nothing"
    if kind == "nothing":
        yield from items
        return
    with showing(description, total=total) as advance:
        for item in items:
            yield item
            advance(weight)


@contextmanager
def showing(description: str, *, total: int | None = None, is_shown: bool = True) -> Iterator[Callable[[float], None]]:
    """Show how far the work of the block is, where it is no loop that ``track`` could follow.

    Args:
        description: As ``track`` takes it.
        total: As ``track`` takes it.
        is_shown: False shows nothing.

    Yields:
        What the block calls with the units that it has done since the last call, parts of units among them.
    """
    kind: DisplayKind = choose_display() if is_shown else "nothing"
    if kind == "nothing":
        yield lambda _: None
        return
    done = 0.0
    with closing(_open_display(kind, description, total)) as display:

        def advance(units: float) -> None:
            nonlocal done
            done += units
            display.show(int(done) if total is None else min(int(done), total))

        yield advance
        display.finish()


class _Display(ABC):
    """One way to show how far some work is."""

    @abstractmethod
    def show(self, done: int) -> None:
        """Show that so many units are done."""

    def finish(self) -> None:  # noqa: B027  # a display may show no end
        """Show that the work is done."""

    def close(self) -> None:  # noqa: B027  # nor need to be ended
        """End the display; its last state stays."""


def _open_display(kind: DisplayKind, description: str, total: int | None) -> _Display:
    if kind == "bar":
        return _RichBar(description, total)
    if kind == "plain bar":
        return _PlainBar(description, total)
    if kind == "notebook":
        return _NotebookTrack(description, total)
    return _Lines(description, total)


class _RichBar(_Display):
    def __init__(self, description: str, total: int | None) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self._progress = Progress(*columns, console=build_console())
        self._task = self._progress.add_task(description, total=total)
        self._progress.start()

    def show(self, done: int) -> None:
        self._progress.update(self._task, completed=done)

    def close(self) -> None:
        self._progress.stop()


class _Lines(_Display):
    def __init__(self, description: str, total: int | None) -> None:
        self._work = _Work(description, total)
        self._pace = Pace()
        self._done = 0

    def show(self, done: int) -> None:
        self._done = done
        if self._pace.is_due():
            _print(self._work.describe(done))

    def finish(self) -> None:
        _print(self._work.describe(self._done))


class _PlainBar(_Display):
    def __init__(self, description: str, total: int | None) -> None:
        self._work = _Work(description, total)
        self._drawn = float("-inf")
        self._width = 0
        self._done = 0

    def show(self, done: int) -> None:
        self._done = done
        if time.monotonic() - self._drawn >= DRAW_EVERY_SECONDS:
            self._draw()

    def finish(self) -> None:
        self._draw()

    def close(self) -> None:
        if self._width:
            _write("\n")

    def _draw(self) -> None:
        text = escape_text(self._work.describe(self._done))
        _write(f"\r{text:<{self._width}}")
        self._width = len(text)
        self._drawn = time.monotonic()


class _NotebookTrack(_Display):
    def __init__(self, description: str, total: int | None) -> None:
        self._work = _Work(description, total)
        self._bar = NotebookBar(total)
        self._done = 0

    def show(self, done: int) -> None:
        self._done = done
        self._bar.show(done, self._work.describe(done))

    def finish(self) -> None:
        self._bar.show(self._done, self._work.describe(self._done), is_last=True)

    def close(self) -> None:
        self._bar.show(self._done, self._work.describe(self._done), is_last=True)


class Pace:
    """Says when the next line of progress is due: after ten seconds at first, and ever more rarely."""

    def __init__(self) -> None:
        """Begin to count the time."""
        self._start = self._last = time.monotonic()

    def is_due(self) -> bool:
        """Say whether a line is due now; if so, the time to the next one begins."""
        now = time.monotonic()
        least = VERBOSE_LINE_EVERY_SECONDS if is_verbose() else LINE_EVERY_SECONDS
        if now - self._last < max(least, LINE_EVERY_SHARE * (now - self._start)):
            return False
        self._last = now
        return True


class NotebookBar:
    """A bar in the output of a notebook's cell, which is updated where it stands and needs no widgets."""

    def __init__(self, total: int | None) -> None:
        """Prepare the bar of ``total`` units; it appears with the first state."""
        self._total = total
        self._handle: Any = None
        self._shown: tuple[int, str] | None = None
        self._drawn = float("-inf")

    def show(self, done: int, text: str, *, is_last: bool = False) -> None:
        """Show that so many units are done.

        Args:
            done: Units that are done.
            text: What stands beside the bar.
            is_last: Show it even if the last state is young.
        """
        now = time.monotonic()
        if (done, text) == self._shown or (now - self._drawn < DRAW_EVERY_SECONDS and not is_last):
            return
        self._shown, self._drawn = (done, text), now
        ends = "" if self._total is None else f' value="{done}" max="{max(self._total, 1)}"'
        page = f"<div><progress{ends}></progress> {html.escape(escape_text(text))}</div>"
        data = {"text/plain": escape_text(text), "text/html": page}
        if self._handle is None:
            self._handle = import_module("IPython.display").display(data, raw=True, display_id=True)
        else:
            self._handle.update(data, raw=True)


def _find_notebook() -> Any:
    """Return the shell of the notebook that runs this code; None outside of one (IPython on a terminal is none)."""
    ipython = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    return shell if getattr(shell, "kernel", None) is not None else None


class _Work:
    def __init__(self, description: str, total: int | None) -> None:
        self._description = description
        self._total = total
        self._start = time.monotonic()

    def describe(self, done: int) -> str:
        """Describe how far the work is, in a line."""
        seconds = time.monotonic() - self._start
        of_total = f"/{self._total}" if self._total is not None else ""
        time_told = f"{seconds:.1f} s"
        if self._total and 0 < done < self._total:
            time_told = f"{seconds / done * (self._total - done):.0f} s left"
        return f"{self._description}: {done}{of_total}, {time_told}"
