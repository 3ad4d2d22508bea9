"""The files that a command writes beside what it prints: checked before the work, written after it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from vitrieve.artifacts import check_writable
from vitrieve.cli.console import print_failure, print_message
from vitrieve.errors import ConfigError, VitrieveError
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


def check_files(*files: Path | None, is_folder_made: bool = False) -> None:
    """Refuse files that cannot be written, before the work that they are to hold.

    Args:
        files: Files to write; None: nothing is checked.
        is_folder_made: Whoever writes them makes their folders.

    Raises:
        ConfigError: One is a folder, or its folder is not there, and is not made.
        ArtifactError: This user may not write in its folder, or a file has the name of that.
    """
    for file in files:
        if file is not None and file.is_dir():
            raise ConfigError(f"{quote_name(file)} is a folder; name a file in it.")
        if file is not None and not is_folder_made and not file.parent.is_dir():
            folder = quote_name(file.parent)
            raise ConfigError(f"{quote_name(file)} cannot be written: there is no folder {folder}; make it first.")
        if file is not None:
            check_writable(file.parent)


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
