"""The files of a LanceDB table: opened, made durable, told from those of another version. Next: ``lance_kinds.py``."""

from __future__ import annotations

import os
from collections.abc import Hashable
from datetime import timedelta
from pathlib import Path

from vitrieve.artifacts import sync_file, sync_folder
from vitrieve.index.lance_library import lancedb
from vitrieve.index.lance_schema import table_path, versions_path

_ENDINGS = {".lance": b"LANC", ".idx": b"LANC", ".manifest": b"LANC", ".arrow": b"ARROW1"}
_READ_BYTES = 1 << 20


def connect(folder: Path) -> lancedb.DBConnection:
    """Connect so that every read sees the newest version: another process may be writing."""
    return lancedb.connect(folder, read_consistency_interval=timedelta(0))


def read_version_stamp(folder: Path) -> Hashable:
    """Return what tells the newest version from every other, also from one of an index that was made anew."""
    try:
        status = versions_path(folder).stat()
        return (status.st_ino, status.st_mtime_ns, frozenset(os.listdir(versions_path(folder))))
    except FileNotFoundError:
        return None


def find_broken_files(folder: Path) -> list[str]:
    """Read every file of the table whole, and name those that cannot be read or whose end is missing.

    LanceDB's own error names a file that is gone, but not one that was cut short.
    """
    faults = []
    for path in sorted(table_path(folder).rglob("*")):
        if path.suffix not in _ENDINGS:
            continue
        end = b""
        try:
            with path.open("rb") as file:
                while block := file.read(_READ_BYTES):
                    end = (end + block)[-len(_ENDINGS[path.suffix]) :]
        except FileNotFoundError:  # a writer has replaced it since it was listed
            continue
        except OSError as error:
            faults.append(f"{path} cannot be read: {error.strerror or error}")
            continue
        if end != _ENDINGS[path.suffix]:
            faults.append(f"{path} is damaged: its end is missing.")
    return faults


class SyncedFiles:
    """Makes new files durable: LanceDB leaves them to the system's cache, which outlives a kill but no power cut."""

    def __init__(self, folder: Path) -> None:
        self._table = table_path(folder)
        self._synced: set[Path] = set()

    def sync(self) -> None:
        """Make durable what has been written since the last call."""
        folders = set()
        present = {path for path in self._table.rglob("*") if path.is_file()}
        for path in present - self._synced:
            sync_file(path)
            folders.add(path.parent)
        for folder in folders:
            sync_folder(folder)
        self._synced = present
