"""The files that a command writes beside what it prints, after the work; ``writing.check_files`` comes before it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from vitrieve.cli.console import print_failure, print_message
from vitrieve.errors import VitrieveError
from vitrieve.quoting import quote_name


class FileToWrite(NamedTuple):
    """A file that a command may be asked for.

    Attributes:
        what: What it is, for a message.
        path: Where; None: it is not asked for.
        write: Writes it.
    """

    what: str
    path: Path | None
    write: Callable[[Path], object]


def write_files(*files: FileToWrite) -> None:
    """Write the files that are asked for, the others too where one of them cannot be written.

    Raises:
        VitrieveError: One cannot be written, for example because its disk is full; the first such error.
        OSError: The system refuses one.
    """
    first: OSError | VitrieveError | None = None
    for file in files:
        if file.path is None:
            continue
        try:
            file.write(file.path)
        except (OSError, VitrieveError) as error:
            if first is not None:
                print_failure(f"not written: {quote_name(file.path)}: {error}")
            first = first or error
        else:
            print_message(f"{file.what}: {file.path}")
    if first is not None:
        raise first
