"""The files of a LanceDB table: opened, made durable, and told from those of another version. Next: ``resident.py``."""

from __future__ import annotations

import os
from collections.abc import Hashable
from datetime import timedelta
from pathlib import Path

from vitrieve.artifacts import sync_file, sync_folder
from vitrieve.index.lance_library import lancedb
from vitrieve.index.lance_schema import table_path, versions_path


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
