"""What is printed where: results on standard output, everything else on standard error. Next: ``doctor.py``."""

from __future__ import annotations

import io
import json
import os
import sys
from typing import Any


def print_json(value: Any) -> None:
    """Print one JSON object as the result of a command.

    Raises:
        ValueError: A number is not finite: JSON has no spelling for it.
    """
    print(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False))


def print_message(text: str) -> None:
    """Tell the user something that is not the result."""
    print(text, file=sys.stderr, flush=True)


def quote_name(name: str) -> str:
    r"""Spell a name so that it stays on its line: as a JSON string where it cannot be printed as it is.

    >>> print(quote_name("a b.png"), quote_name("line\nbreak.png"))
    a b.png "line\nbreak.png"
    """
    return name if name.isprintable() and not name.startswith('"') else json.dumps(name)


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
