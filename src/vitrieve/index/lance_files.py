"""LanceDB imported, and the files of a table: opened, made durable, told from those of another version.

``import lancedb`` also imports a generated client of a server that is never asked here, which takes half of its two
seconds, for the sake of a few classes that stand in a module beside it. A search in a new process would wait for that.
So the package that holds both runs its own body only when somebody asks for something that the body defines.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import zlib
from collections.abc import Hashable
from datetime import timedelta
from importlib.util import find_spec, module_from_spec
from pathlib import Path
from types import ModuleType
from typing import Any

from vitrieve.errors import ArtifactError
from vitrieve.index.folder import compute_checksum, link_or_copy
from vitrieve.writing import sync_file, sync_folder, write_text_durably

CLOUD_CLIENT = "lance_namespace_urllib3_client"


class _OnDemand(ModuleType):
    """A package of which submodules can be imported before its own body has run."""

    def __getattr__(self, name: str) -> Any:
        """Run the body, once: only what is not there yet is asked for here."""
        self.__class__ = ModuleType  # type: ignore[assignment]
        spec: Any = self.__spec__
        spec.loader.exec_module(self)
        return getattr(self, name)


def postpone(package: str) -> None:
    """Let a package's body wait until it is needed; where it is imported already, or not installed, do nothing."""
    spec = None if package in sys.modules else find_spec(package)
    if spec is not None:
        module = module_from_spec(spec)
        module.__class__ = _OnDemand
        sys.modules[package] = module


postpone(CLOUD_CLIENT)

import lancedb  # noqa: E402
from lancedb.index import BTree as BTree  # noqa: E402
from lancedb.index import HnswSq as HnswSq  # noqa: E402
from lancedb.index import IvfPq as IvfPq  # noqa: E402
from lancedb.index import IvfRq as IvfRq  # noqa: E402
from lancedb.table import Table as Table  # noqa: E402

TABLE_NAME = "images"
_ENDINGS = {".lance": b"LANC", ".idx": b"LANC", ".manifest": b"LANC", ".arrow": b"ARROW1"}
_FIXED_SUFFIXES = (*_ENDINGS, ".bin", ".txn")
"""Suffixes of the files that never change once they are written; latest_version_hint.json does."""
_NUM_END_BYTES = max(map(len, _ENDINGS.values()))
_READ_BYTES = 1 << 20
CHECKSUMS_NAME = "checksums.json"


def table_path(folder: Path) -> Path:
    """Return where LanceDB keeps the table's files."""
    return folder / f"{TABLE_NAME}.lance"


def versions_path(folder: Path) -> Path:
    """Return where LanceDB keeps a file for each version of the table."""
    return table_path(folder) / "_versions"


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
    """Read every file of the table whole, and name those that cannot be read or are not what was written.

    LanceDB's own error names a file that is gone, but not one that was cut short, and LanceDB keeps no checksums.
    """
    try:
        _, checksums = _read_checksums(folder)
    except ArtifactError as error:
        return [str(error)]
    faults = []
    for path in sorted(table_path(folder).rglob("*")):
        if path.suffix not in _FIXED_SUFFIXES:
            continue
        written = checksums.get(path.relative_to(table_path(folder)).as_posix())
        ending = _ENDINGS.get(path.suffix, b"")
        end, checksum = b"", 0
        try:
            with path.open("rb") as file:
                while block := file.read(_READ_BYTES):
                    end = (end + block)[-_NUM_END_BYTES:]
                    checksum = zlib.crc32(block, checksum)
        except FileNotFoundError:  # a writer has replaced it since it was listed
            continue
        except OSError as error:
            faults.append(f"{path} cannot be read: {error.strerror or error}")
            continue
        if not end.endswith(ending):
            faults.append(f"{path} is damaged: its end is missing.")
        elif written not in (None, checksum):
            faults.append(f"{path} is not what was written.")
    return faults


def find_lost_version(folder: Path, table: Table) -> list[str]:
    """Say whether the file of the newest version is gone, which makes an older one current."""
    newest, _ = _read_checksums(folder)  # first: another process may be writing
    current = table.version
    if current >= newest:
        return []
    return [f"{versions_path(folder)} has lost version {newest}, the newest; version {current} is what is left."]


def _read_checksums(folder: Path) -> tuple[int, dict[str, int]]:
    """Read the newest version and the CRC-32 of the table's files, by their paths in it; none of an older vitrieve.

    Raises:
        ArtifactError: The file is damaged.
    """
    path = folder / CHECKSUMS_NAME
    try:
        contents = json.loads(path.read_text(encoding="utf-8"))
        return int(contents["version"]), {str(name): int(value) for name, value in contents["files"].items()}
    except FileNotFoundError:
        return 0, {}
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise ArtifactError(f"{path} cannot be read ({error}); make the index again.") from None


class SyncedFiles:
    """Makes new files durable: LanceDB leaves them to the system's cache, which outlives a kill but no power cut.

    Their checksums are kept beside the table. A writer that is killed in between leaves files without one, which get it
    with the next change.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._table = table_path(folder)
        self._synced: set[Path] = set()

    def sync(self, version: int) -> None:
        """Make durable what has been written since the last call.

        Args:
            version: The table's newest.
        """
        folders = set()
        present = {path for path in self._table.rglob("*") if path.is_file()}
        for path in present - self._synced:
            sync_file(path)
            folders.add(path.parent)
        for folder in folders:
            sync_folder(folder)
        self._synced = present
        self._keep_checksums(present, version)

    def copy(self, out: Path) -> None:
        """Copy the table and its checksums to another folder; files are linked where the disk allows it."""
        shutil.copytree(self._table, table_path(out), copy_function=link_or_copy)
        if (self._folder / CHECKSUMS_NAME).is_file():
            link_or_copy(self._folder / CHECKSUMS_NAME, out / CHECKSUMS_NAME)
        for folder in [path for path in out.rglob("*") if path.is_dir()]:
            sync_folder(folder)

    def _keep_checksums(self, present: set[Path], version: int) -> None:
        try:
            known, before = _read_checksums(self._folder)
        except ArtifactError:  # verify tells it; what the files hold now is all that can be relied on
            known, before = 0, {}
        names = {path.relative_to(self._table).as_posix(): path for path in present if path.suffix in _FIXED_SUFFIXES}
        checksums = {
            name: before[name] if name in before else compute_checksum(path) for name, path in sorted(names.items())
        }
        if (version, checksums) != (known, before):
            contents = {"version": version, "files": checksums}
            write_text_durably(self._folder / CHECKSUMS_NAME, json.dumps(contents, indent=0) + "\n")
