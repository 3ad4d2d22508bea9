"""What each file was when it was indexed: one SQLite file inside the index.

SQLite makes a batch of stamps durable whole or not at all, and its exclusive lock, which dies with the process, lets
one sync at a time work on an index.
"""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from vitrieve.artifacts import describe_full_disk
from vitrieve.errors import ArtifactError, DiskFullError

STAMPS_NAME = "sync.sqlite"
FORMAT_VERSION = 1
CLOCK_TICK_NS = 2_000_000_000
"""The coarsest clock of a file system (FAT): within it a second change may leave all times as they are."""
_EXCLUDE_FACT = "exclude"
NO_SIGNATURE = ""
"""Of a file whose times prove nothing: its content is compared at the next sync."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Stamp:
    """What a file was when it was read.

    Attributes:
        image_id: The image.
        signature: Size and times of the file, from ``sign_file``.
        sha256: Of the bytes, in hexadecimal; empty when they could not be read.
        box: The region that was embedded, as text; empty for the whole picture.
        record_hash: Of what the source said about the image, from ``describe.hash_record``.
        metadata: What the content says about itself, for example its date.
        reason: Why the image has no vector; None: it has one, in the store.
    """

    image_id: str
    signature: str
    sha256: str
    box: str
    record_hash: str
    metadata: Mapping[str, str]
    reason: str | None = None

    @property
    def content_key(self) -> tuple[str, str]:
        """What the vector is a function of: images that share it share the vector."""
        return self.sha256, self.box


def sign_file(status: os.stat_result) -> str:
    """Spell size, modification time and change time: another signature means that the content may be another.

    The change time cannot be set back by a program, so a change that keeps size and modification time is seen too.
    """
    return f"{status.st_size}:{status.st_mtime_ns}:{status.st_ctime_ns}"


def is_settled(status: os.stat_result, now_ns: int) -> bool:
    """Say whether a later change of the file must show in its times (git calls the contrary racy).

    Args:
        status: Of the file, before it was read.
        now_ns: The time then, in nanoseconds since 1970.
    """
    return max(status.st_mtime_ns, status.st_ctime_ns) < now_ns - CLOCK_TICK_NS


class StampFile:
    """The stamps of one index, open and locked.

    Every change is on disk when its call returns. ``close`` gives the lock back, and so does the end of the process.
    """

    def __init__(self, index: Path) -> None:
        """Open or begin the stamps of an index.

        Args:
            index: The index's folder, which exists.

        Raises:
            ArtifactError: Another sync works on this index, or the file is damaged or of a newer vitrieve.
        """
        self._path = index / STAMPS_NAME
        self._connection = sqlite3.connect(self._path, timeout=0, isolation_level=None)
        try:
            with self._explained():
                self._begin()
        except BaseException:
            self._connection.close()
            raise

    def _begin(self) -> None:
        run = self._connection.execute
        run("PRAGMA locking_mode=EXCLUSIVE")  # once taken, the lock is kept until the connection closes
        run("PRAGMA synchronous=EXTRA")
        run("BEGIN EXCLUSIVE")
        (version,) = run("PRAGMA user_version").fetchone()
        if version > FORMAT_VERSION:
            raise ArtifactError(
                f"{self._path} has format version {version}, written by a newer vitrieve; this one reads up to "
                f"{FORMAT_VERSION}."
            )
        run(
            "CREATE TABLE IF NOT EXISTS stamps (image_id TEXT PRIMARY KEY, signature TEXT NOT NULL, "
            "sha256 TEXT NOT NULL, box TEXT NOT NULL, record_hash TEXT NOT NULL, metadata TEXT NOT NULL, reason TEXT)"
        )
        run("CREATE TABLE IF NOT EXISTS facts (name TEXT PRIMARY KEY, value TEXT NOT NULL)")
        run(f"PRAGMA user_version={FORMAT_VERSION}")
        run("COMMIT")

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Turn what SQLite raises in the block into a message."""
        try:
            yield
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_BUSY:
                raise ArtifactError(
                    f"another sync is at work on {self._path.parent}; wait until it is done, or stop it."
                ) from None
            if error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_FULL:
                advice = "What the index held before is kept; make room and sync again."
                raise DiskFullError(describe_full_disk(self._path, advice=advice)) from None
            raise ArtifactError(f"{self._path} cannot be written: {error}.") from None
        except ArtifactError:
            raise
        except (sqlite3.DatabaseError, ValueError, TypeError) as error:  # text that is not UTF-8, or no JSON
            raise ArtifactError(
                f"{self._path} is damaged ({error}). Delete it, and sync again with --adopt: the collection is then "
                "embedded again."
            ) from None

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        with self._explained():
            self._connection.execute("BEGIN")
            try:
                yield
            except BaseException:
                if self._connection.in_transaction:  # a full disk ends it by itself
                    self._connection.execute("ROLLBACK")
                raise
            self._connection.execute("COMMIT")

    def read(self) -> list[Stamp]:
        """Read all stamps."""
        with self._explained():
            rows = self._connection.execute(
                "SELECT image_id, signature, sha256, box, record_hash, metadata, reason FROM stamps"
            ).fetchall()
            return [
                Stamp(
                    image_id=image_id,
                    signature=signature,
                    sha256=sha256,
                    box=box,
                    record_hash=record_hash,
                    metadata=json.loads(metadata),
                    reason=reason,
                )
                for image_id, signature, sha256, box, record_hash, metadata, reason in rows
            ]

    def write(self, stamps: Sequence[Stamp]) -> None:
        """Add stamps, and replace those whose image has one."""
        rows = [
            (one.image_id, one.signature, one.sha256, one.box, one.record_hash, json.dumps(one.metadata), one.reason)
            for one in stamps
        ]
        with self._transaction():
            self._connection.executemany("INSERT OR REPLACE INTO stamps VALUES (?, ?, ?, ?, ?, ?, ?)", rows)

    def forget(self, image_ids: Iterable[str]) -> None:
        """Remove the stamps of images; those that have none are passed over."""
        with self._transaction():
            self._connection.executemany("DELETE FROM stamps WHERE image_id = ?", [(one,) for one in image_ids])

    def read_fact(self, name: str) -> str | None:
        """Read something about the index as a whole; None when it was never written."""
        with self._explained():
            row = self._connection.execute("SELECT value FROM facts WHERE name = ?", (name,)).fetchone()
        return None if row is None else str(row[0])

    def write_fact(self, name: str, value: str) -> None:
        """Write something about the index as a whole."""
        with self._transaction():
            self._connection.execute("INSERT OR REPLACE INTO facts VALUES (?, ?)", (name, value))

    def read_exclude(self) -> tuple[str, ...] | None:
        """Read the patterns of what the last sync left out; None before the first."""
        with self._explained():
            text = self.read_fact(_EXCLUDE_FACT)
            return None if text is None else tuple(map(str, json.loads(text)))

    def write_exclude(self, patterns: Sequence[str]) -> None:
        """Remember the patterns of what is left out."""
        if tuple(patterns) != self.read_exclude():
            self.write_fact(_EXCLUDE_FACT, json.dumps(list(patterns)))

    def close(self) -> None:
        """Give the lock back; closing twice is allowed."""
        self._connection.close()
