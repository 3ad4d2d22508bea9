"""What the help text of a command says, as data: for the pages of the site, the man page and shell completion."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from typing import NamedTuple

from vitrieve.cli.verbosity import setting_variables

HELP_WIDTH = 100
"""Columns of the help text that is read: wide enough for few breaks, too narrow for two boxes side by side."""


class Entry(NamedTuple):
    """A flag of a command, or a positional argument, as the help text has it.

    Attributes:
        spelling: The flag with its value, as the help text has it.
        meaning: The sentence about it.
        default: The value that holds when the flag is not given; ``required``, ``optional`` or ``repeatable`` where it
            says so.
    """

    spelling: str
    meaning: str
    default: str


@dataclass
class Box:
    """A frame of the help text: its title, the sentence below it, and its flags as lines."""

    title: str
    description: list[str] = field(default_factory=list)
    flags: list[list[str]] = field(default_factory=list)


def run_help(words: Sequence[str]) -> str:
    """Return what ``vitrieve WORDS --help`` prints.

    Raises:
        RuntimeError: The command failed.
    """
    from vitrieve.cli.main import main

    content = io.BytesIO()
    text = io.TextIOWrapper(content, encoding="utf-8", write_through=True)  # without an encoding there are no frames
    with setting_variables({"COLUMNS": str(HELP_WIDTH)}), redirect_stdout(text), redirect_stderr(io.StringIO()):
        status = main([*words, "--help"])
    if status != 0:
        raise RuntimeError(f"vitrieve {' '.join(words)} --help ended with status {status}")
    return content.getvalue().decode("utf-8")


def read_help(text: str) -> tuple[str, list[str], list[Box]]:
    """Read a help text.

    Args:
        text: As tyro prints it: a line of usage, an introduction, and framed boxes.

    Returns:
        The usage, the lines of the introduction, and the boxes.
    """
    usage, *rest = text.splitlines()
    introduction = [line.strip() for line in rest if line[:1] not in ("╭", "│", "╰")]
    boxes: list[Box] = []
    for line in rest:
        if line.startswith("╭"):
            boxes.append(Box(line.strip("╭╮─ ")))
        elif line.startswith("│"):
            _add_line(boxes[-1], line.removeprefix("│").removesuffix("│").rstrip())
    return usage.removeprefix("usage: "), introduction, boxes


def _add_line(box: Box, line: str) -> None:
    is_new_entry = line.startswith((" -", " [", " {")) or bool(re.match(r" [A-Z]", line))
    if line.strip("─ ") == "":
        box.description, box.flags = [" ".join(entry) for entry in box.flags], []
    elif is_new_entry and not line.startswith("  "):
        box.flags.append([line.strip()])
    else:
        box.flags[-1].append(line.strip())


def read_entry(entry: Sequence[str]) -> Entry:
    """Read the lines of a flag."""
    spelling, *first = re.split(r" {2,}", entry[0], maxsplit=1)
    meaning = " ".join([*first, *entry[1:]])
    found = re.search(r" ?\((?:default: (?P<value>.*)|(?P<word>required|repeatable|optional))\)$", meaning)
    if found is None:
        return Entry(spelling, meaning, "")
    default = found["word"] or (f"`{found['value']}`" if found["value"] else "none")
    return Entry(spelling, meaning[: found.start()], default)
