"""How much a command tells: ``--quiet``, ``--verbose`` and ``--debug``, before or after the command's name.

Each is an environment variable too, and processes that a command starts get it from there.
"""

from __future__ import annotations

import os
import platform
import sys
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager

from vitrieve import __version__
from vitrieve.errors import DEBUG_VARIABLE, ConfigError
from vitrieve.machine import count_cores, read_peak_memory
from vitrieve.progress import (
    QUIET_VARIABLE,
    VERBOSE_VARIABLE,
    choose_display,
    is_quiet,
    is_verbose,
    print_message,
)

FLAGS: Mapping[str, tuple[str, str]] = {
    "--quiet": (QUIET_VARIABLE, "leave only results and failures"),
    "--verbose": (VERBOSE_VARIABLE, "tell the seconds of each message, and at the end time and memory"),
    "--debug": (DEBUG_VARIABLE, "show an error with its traceback"),
}
"""Flag of every command -> the environment variable that does the same, and what that is."""


def take_flags(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """Take the flags of every command out of the words, wherever they stand before ``--``.

    >>> take_flags(["--quiet", "embed", "--debug", "--", "--quiet"])
    (['embed', '--', '--quiet'], ['--quiet', '--debug'])
    """
    words = list(argv)
    end = words.index("--") if "--" in words else len(words)
    kept = [word for word in words[:end] if word not in FLAGS]
    return kept + words[end:], [word for word in words[:end] if word in FLAGS]


@contextmanager
def telling(flags: Sequence[str]) -> Iterator[None]:
    """Tell as much as the flags say in the block, also in processes that it starts.

    Raises:
        ConfigError: Both ``--quiet`` and ``--verbose``.
    """
    if "--quiet" in flags and "--verbose" in flags:
        raise ConfigError("--quiet and --verbose contradict each other; give one.")
    variables = {FLAGS[flag][0]: "1" for flag in flags}
    if "--verbose" in flags:
        variables[QUIET_VARIABLE] = "0"  # a flag counts more than the environment
    with ExitStack() as undo:
        undo.enter_context(setting_variables(variables))
        if choose_display() in ("lines", "nothing") and "TQDM_DISABLE" not in os.environ:
            undo.enter_context(setting_variables({"TQDM_DISABLE": "1"}))  # the bars of libraries
        if is_quiet():
            undo.enter_context(warnings.catch_warnings())
            warnings.simplefilter("ignore")
        yield


@contextmanager
def setting_variables(variables: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables for the block."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            os.environ.update({} if value is None else {name: value})


@contextmanager
def telling_what_it_took() -> Iterator[None]:
    """Under ``--verbose``, begin with the versions and end with time and memory."""
    if not is_verbose():
        yield
        return
    start = time.monotonic()
    place = f"Python {platform.python_version()} on {sys.platform}, {count_cores()} cores"
    print_message(f"vitrieve {__version__}, {place}")
    try:
        yield
    finally:
        peak = read_peak_memory()
        memory = "" if peak is None else f", at most {peak / 2**20:.0f} MiB of memory"
        print_message(f"took {time.monotonic() - start:.1f} s{memory}")
