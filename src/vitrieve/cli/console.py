"""What is printed where: results on standard output, everything else on standard error.

ruff's rule T20 keeps the bare ``print`` out of the package.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from typing import Any

from vitrieve.cli.streams import get_results
from vitrieve.progress import print_message as print_message
from vitrieve.quoting import escape_lines, escape_text


def print_json(value: Any) -> None:
    """Print one JSON object as the result of a command.

    Raises:
        ValueError: A number is not finite: JSON has no spelling for it.
    """
    # What JSON lets stand inside a string and a terminal obeys is escaped too; the same value is read again.
    print(escape_lines(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)), file=get_results())


def print_result(*lines: str) -> None:
    """Print lines of a result; what others wrote cannot break out of its line."""
    for line in lines:
        print(escape_text(line), file=get_results(), flush=True)


def print_names(names: Iterable[str], *, end: str) -> None:
    """Print names as they are, for another program: each with ``end`` behind it."""
    for name in names:
        print(name, end=end, file=get_results())


def ask(question: str) -> bool:
    """Ask a person at a terminal for a yes; without a terminal, or with any other answer, it is a no."""
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        return False
    print(f"{escape_text(question)} [y/N] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def print_error(text: str) -> None:
    """Print the one message with which a command fails."""
    print_message(f"error: {text}")
