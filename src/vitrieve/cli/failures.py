"""What becomes of an error: one line for people, the traceback for those who ask, and an exit status.

The status says whose fault it was: 0 nobody's, 1 the thing that was checked is not fine, 2 wrong use or input (or a
full disk, a missing permission), 3 a fault of vitrieve itself; 130 and 143 after Ctrl-C and SIGTERM.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from vitrieve.cli.console import ReaderGoneError, discard_output, flush_results, print_error, print_failure
from vitrieve.errors import InputError, VitrieveError, is_debugging

STATUS_DONE = 0
STATUS_NOT_FINE = 1
STATUS_WRONG_USE = 2
STATUS_OUR_FAULT = 3
STATUS_INTERRUPTED = 128 + signal.SIGINT
STATUS_TERMINATED = 128 + signal.SIGTERM

EXTRA_PACKAGES = ("torch", "torchvision", "timm", "tensorboard", "scipy")
"""What the core does without: their absence is the user's to mend, not a fault of ours."""


REMINDER_SECONDS = 0.5
"""Time from a SIGTERM, or a reminder of it, to the next reminder."""


class Terminated(KeyboardInterrupt):
    """The process was told to stop by SIGTERM: whatever ends cleanly on Ctrl-C ends so on this too."""


@contextmanager
def interrupted_by_sigterm() -> Iterator[None]:
    """Let SIGTERM interrupt the block as Ctrl-C does.

    The system's own action would end the process too, but not where it is the first of a container: that one gets no
    signal that it does not handle, and is killed after a grace period.

    Python drops an exception that is raised while it calls back, as it does at every import to forget a lock, and some
    libraries drop every exception. So a timer raises it again until it is on its way out. An extension that is being
    imported makes an ``ImportError`` of it; so any error after the signal is taken for it.

    Windows sends no such signal: a process is ended there without a word.
    """
    if sys.platform == "win32" or threading.current_thread() is not threading.main_thread():
        yield
        return

    was_told = False

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal was_told
        was_told = True
        signal.setitimer(signal.ITIMER_REAL, REMINDER_SECONDS)
        if number == signal.SIGTERM or not _is_ending(sys.exc_info()[1]):
            raise Terminated

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGALRM)}
    try:
        yield
    except Exception as error:
        if was_told:
            raise Terminated from error
        raise
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in before.items():
            signal.signal(number, handler)


def _is_ending(error: BaseException | None) -> bool:
    """Say whether the code that runs now cleans up after a ``Terminated``, given the error that is being handled."""
    while error is not None and not isinstance(error, Terminated):
        error = error.__context__
    return error is not None


def explain_failure(error: BaseException, *, advice: str = "") -> int:
    """Print what went wrong; return the exit status.

    Args:
        error: What ended the command.
        advice: What to do after an interruption; empty when there is nothing to say.
    """
    if isinstance(error, ReaderGoneError):
        discard_output()
        return STATUS_DONE
    if is_debugging():
        print_failure(*"".join(traceback.format_exception(error)).rstrip("\n").split("\n"))
    status = _explain(error, advice)
    _flush_or_discard()
    return status


def _explain(error: BaseException, advice: str) -> int:
    if isinstance(error, KeyboardInterrupt):
        print_failure(f"interrupted; {advice}" if advice else "interrupted.")
        return STATUS_TERMINATED if isinstance(error, Terminated) else STATUS_INTERRUPTED
    if isinstance(error, VitrieveError):
        print_error(_join_notes(str(error), error))
        return STATUS_WRONG_USE if isinstance(error, InputError) else STATUS_NOT_FINE
    if not isinstance(error, Exception):
        raise error
    reason = _describe_environment(error)
    if reason is not None:
        print_error(_join_notes(reason, error))
        return STATUS_WRONG_USE
    fault = f"a fault of vitrieve, not of yours: {type(error).__name__}: {error} ({_find_place(error)})."
    print_error(_join_notes(f"{fault} Please report it with what the same command says with --debug.", error))
    return STATUS_OUR_FAULT


def _join_notes(text: str, error: BaseException) -> str:
    """Put what was noted on an error on its way, such as how to go on, behind its message."""
    return " ".join([text, *getattr(error, "__notes__", [])])


def _describe_environment(error: Exception) -> str | None:
    """Say what the machine or the installation lacks; None where it is not to blame."""
    from vitrieve.writing import describe_full_disk, is_full_disk

    if is_full_disk(error):
        filename = getattr(error, "filename", None)
        return describe_full_disk(Path(os.fsdecode(filename))) if filename else "the disk is full; free some space."
    if isinstance(error, OSError):
        where = f"{os.fsdecode(error.filename)}: " if isinstance(error.filename, (str, bytes)) else ""
        return f"{where}{error.strerror or error}."
    if isinstance(error, MemoryError):
        return f"there is not enough memory{f' ({error})' if str(error) else ''}."
    if isinstance(error, ModuleNotFoundError) and error.name in EXTRA_PACKAGES:
        return f"this needs the package {error.name!r}, which is not installed: pip install 'vitrieve[train]'."
    return None


def _find_place(error: Exception) -> str:
    last = traceback.extract_tb(error.__traceback__)[-1:]
    return f"{Path(last[0].filename).name}, line {last[0].lineno}" if last else "nowhere"


def _flush_or_discard() -> None:
    """Write what is left of the results; where that cannot be, the interpreter need not complain at its exit."""
    try:
        flush_results()
    except (OSError, ValueError):
        discard_output()
