"""Flags from a dataclass, by tyro, with this project's rules for what goes wrong."""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, TypeVar

import tyro

from vitrieve.cli.streams import get_results
from vitrieve.errors import ConfigError, find_nearest
from vitrieve.progress import print_message

T = TypeVar("T")
D = TypeVar("D", str, Path)

Switch = Annotated[bool, tyro.conf.FlagCreatePairsOff]
"""A flag that is only ever switched on: ``--json`` without ``--no-json``."""

Exclude = tyro.conf.UseAppendAction[tuple[str, ...]]
"""``--exclude GLOB``, as often as one likes."""

MapPaths = tyro.conf.UseAppendAction[tuple[str, ...]]
"""``--map-path OLD=NEW``, as often as one likes."""


def read_data(data: D | None, alone: D | None, *, is_note: bool = True) -> D:
    """Return the collection that ``--data`` names, or the word that stands alone.

    Args:
        data: Value of ``--data``.
        alone: The word without a flag, as the collection was named before.
        is_note: Whether a note tells the present spelling.

    Raises:
        ConfigError: Neither or both are given.
    """
    if (data is None) == (alone is None):
        raise ConfigError("name the collection once: --data SOURCE.")
    if data is not None:
        return data
    assert alone is not None
    if is_note:
        print_message(f"the collection is named with --data now: --data {alone}")
    return alone


def parse_arguments(arguments_class: type[T], argv: Sequence[str], prog: str, default: T | None = None) -> T:
    """Read a command's flags into its dataclass.

    Args:
        arguments_class: The dataclass; its field names with hyphens are the flags, nested dataclasses dotted.
        argv: The words after the command.
        prog: How the command is called, for the help text.
        default: Where the values of flags that are not given come from; None: the fields' defaults.

    Raises:
        ConfigError: An unknown flag (the message names the nearest valid ones), one that is missing, or a value that
            does not fit.
        SystemExit: After ``--help`` (status 0).
    """
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint), contextlib.redirect_stdout(get_results()):  # help is a result
            return _call_tyro(arguments_class, argv, prog, default)
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        _raise_unknown_flag(argv, list_flags(arguments_class, prog, default), prog)
        raise ConfigError(f"{_unbox(complaint.getvalue())} See: {prog} --help") from None


def list_flags(arguments_class: type[T], prog: str, default: T | None = None) -> tuple[str, ...]:
    """List the long flags of a command, read from its help text: tyro has no public list of them."""
    text = io.StringIO()
    with contextlib.redirect_stdout(text), contextlib.suppress(SystemExit):
        _call_tyro(arguments_class, ["--help"], prog, default)
    return tuple(dict.fromkeys(re.findall(r"(?<![\w-])--[a-z][\w.-]*", text.getvalue())))


def _call_tyro(arguments_class: type[T], argv: Sequence[str], prog: str, default: T | None) -> T:
    if default is None:
        return tyro.cli(arguments_class, args=list(argv), prog=prog)
    return tyro.cli(arguments_class, args=list(argv), prog=prog, default=default)


def _raise_unknown_flag(argv: Sequence[str], flags: Sequence[str], prog: str) -> None:
    for word in argv:
        name = word.split("=", 1)[0].replace("_", "-")
        if name.startswith("--") and name not in flags:
            nearest = ", ".join(find_nearest(name, flags))
            raise ConfigError(f"unknown flag {name!r}; the nearest valid ones: {nearest}. See: {prog} --help")


def _unbox(text: str) -> str:
    r"""Take what is wrong out of tyro's frame, which is drawn in ASCII where the terminal knows nothing else.

    >>> _unbox("╭─ Value error ─╮\n│ Error parsing │\n│ --k: 'x'  │\n│ ───── │\n│ For full helptext, … │\n╰───╯")
    "Error parsing --k: 'x'."
    """
    _title, *lines = (line.strip("│ ") for line in text.splitlines())
    sections = re.split(r"^[─-]{3,}$", "\n".join(lines), flags=re.MULTILINE)  # between rules
    first = next(section for section in sections if section.strip())
    message = " ".join(first.split())
    return message if message.endswith(".") else f"{message}."
