"""What is printed where: results on standard output, everything else on standard error.

Libraries print as well (timm tells which weights it reads, C code prints without Python): while a command runs, only
``print_result``, ``print_json`` and ``print_names`` reach standard output, so that ``--json`` stays JSON. ruff's rule
T20 keeps the bare ``print`` out of the package.
"""

from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout, suppress
from pathlib import Path
from typing import Any, TextIO

from vitrieve.progress import STANDARD_ERROR, is_quiet, make_forgiving
from vitrieve.progress import print_failure as print_failure
from vitrieve.progress import print_message as print_message
from vitrieve.quoting import escape_lines, escape_text

STANDARD_OUTPUT = 1
"""File descriptor."""

_results: TextIO | None = None
"""Where results go while a command runs."""


@contextmanager
def keep_output_for_results() -> Iterator[None]:
    """Send what is not a result to standard error: of Python, of C code, and of child processes.

    Under ``--quiet`` what libraries and children print goes nowhere. What cannot be written to standard error, because
    its reader has gone or its disk is full, is dropped, whoever tells it.
    """
    global _results
    outer = _results
    with ExitStack() as undo:
        if sys.stderr is not None and _get_descriptor(sys.stderr) == STANDARD_ERROR:
            undo.enter_context(redirect_stderr(make_forgiving(sys.stderr)))
        chatter = undo.enter_context(Path(os.devnull).open("w", encoding="utf-8")) if is_quiet() else sys.stderr
        _results = _open_results(undo, chatter)
        undo.callback(_set_results, outer)
        with redirect_stdout(chatter):
            yield


def _open_results(undo: ExitStack, chatter: TextIO) -> TextIO:
    """Return a stream to where standard output leads now, and lead the descriptor of that name elsewhere.

    Args:
        undo: Gets what to do in the end.
        chatter: Where it leads: standard error, or nowhere.
    """
    stream = sys.stdout
    if stream is None:  # closed by whoever started the process: nobody reads results
        return io.StringIO()
    stream.flush()
    try:
        kept = os.dup(STANDARD_OUTPUT)
        os.dup2(chatter.fileno() if is_quiet() else STANDARD_ERROR, STANDARD_OUTPUT)
    except OSError:  # one of the two is closed
        return stream
    undo.callback(os.close, kept)
    undo.callback(os.dup2, kept, STANDARD_OUTPUT)
    if _get_descriptor(stream) != STANDARD_OUTPUT:  # captured, in a test: it does not use the descriptor
        return stream
    buffer = io.BufferedWriter(io.FileIO(kept, "w", closefd=False))
    results = io.TextIOWrapper(
        buffer, encoding=stream.encoding, errors="backslashreplace", line_buffering=stream.isatty()
    )
    undo.callback(_close_quietly, results)
    return results


def _set_results(stream: TextIO | None) -> None:
    global _results
    _results = stream


def _get_descriptor(stream: TextIO) -> int | None:
    try:
        return stream.fileno()
    except (OSError, ValueError):  # it is none of the system's
        return None


def _close_quietly(stream: TextIO) -> None:
    with suppress(OSError):  # who had to know of it was told by flush_results
        stream.close()


def get_results() -> TextIO:
    """Return the stream for results, and nothing else."""
    return _results or sys.stdout


class ReaderGoneError(BrokenPipeError):
    """Whoever read the results has gone (``vitrieve … | head``); another pipe that breaks is a failure."""


@contextmanager
def writing_results() -> Iterator[TextIO]:
    """Give the stream for results to a block that writes to it.

    Raises:
        ReaderGoneError: Its reader has gone.
    """
    try:
        yield get_results()
    except BrokenPipeError as error:
        raise ReaderGoneError(*error.args) from None


def flush_results() -> None:
    """Hand over what was printed.

    Raises:
        ReaderGoneError: Its reader has gone.
    """
    with writing_results() as stream:
        stream.flush()


def spell_every_name() -> None:
    r"""Let standard output spell what it cannot encode as ``\uNNNN``, as standard error does.

    A file's name on disk is bytes, not always text: printing the result must not fail where the work did not. In JSON
    the spelling of such a byte is a valid escape, from which Python reads the same name again.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def discard_output() -> None:
    """Point standard output at nothing, after its reader has gone (``vitrieve … | head``).

    Otherwise the interpreter complains about the broken pipe while it flushes at exit.
    """
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, get_results().fileno())
    os.close(nothing)


def print_json(value: Any) -> None:
    """Print one JSON object as the result of a command.

    Raises:
        ValueError: A number is not finite: JSON has no spelling for it.
    """
    with writing_results() as stream:
        # In ASCII, as with LANG=C, Python would spell an accented letter as \xNN, which is no escape of JSON.
        is_ascii = not (getattr(stream, "encoding", None) or "utf-8").lower().startswith("utf")
        # What JSON lets stand inside a string and a terminal obeys is escaped too; the same value is read again.
        print(escape_lines(json.dumps(value, indent=2, ensure_ascii=is_ascii, allow_nan=False)), file=stream)


def print_result(*lines: str) -> None:
    """Print lines of a result; what others wrote cannot break out of its line."""
    with writing_results() as stream:
        for line in lines:
            print(escape_text(line), file=stream, flush=True)


def print_names(names: Iterable[str], *, end: str) -> None:
    """Print names as they are, for another program: each with ``end`` behind it."""
    with writing_results() as stream:
        for name in names:
            print(name, end=end, file=stream)


def ask(question: str) -> bool:
    """Ask a person at a terminal for a yes; without a terminal, or with any other answer, it is a no."""
    if not all(stream is not None and stream.isatty() for stream in (sys.stdin, sys.stderr)):
        return False
    print(f"{escape_text(question)} [y/N] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def print_error(text: str) -> None:
    """Print the one message with which a command fails."""
    print_failure(f"error: {text}")
