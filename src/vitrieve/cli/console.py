"""What is printed where: results on standard output, everything else on standard error. Next: ``doctor.py``."""

from __future__ import annotations

import io
import json
import os
import sys
from typing import Any

from vitrieve.quoting import escape_lines, escape_text


def print_json(value: Any) -> None:
    """Print one JSON object as the result of a command.

    Raises:
        ValueError: A number is not finite: JSON has no spelling for it.
    """
    # What JSON lets stand inside a string and a terminal obeys is escaped too; the same value is read again.
    print(escape_lines(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)))


def print_result(*lines: str) -> None:
    """Print lines of a result; what others wrote cannot break out of its line."""
    for line in lines:
        print(escape_text(line), flush=True)


def print_message(*lines: str) -> None:
    """Tell the user something that is not the result, a line or several."""
    for line in lines:
        print(escape_text(line), file=sys.stderr, flush=True)


def print_error(text: str) -> None:
    """Print the one message with which a command fails."""
    print_message(f"error: {text}")


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
    os.dup2(nothing, sys.stdout.fileno())
    os.close(nothing)
