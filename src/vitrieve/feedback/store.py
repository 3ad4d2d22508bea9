"""The database of corrections: a file of SQLite beside the index, which any number of processes write.

Every call opens the file, does its work in one transaction, and closes it. So nothing is shared between threads or
across a fork, a process that is killed loses nothing that was acknowledged, and one writer waits for another.
"""

from __future__ import annotations

import json
import os
import sqlite3
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Protocol

from vitrieve.data.records import find_absolute
from vitrieve.errors import ArtifactError, ConfigError, DiskFullError
from vitrieve.feedback.events import Correction, check_correction, find_last_words, is_time

SUFFIX = ".feedback.sqlite"
MAX_CORRECTIONS = 100_000
"""Corrections of one index: some 30 MB of the disk, which are counted in a third of a second."""
WAIT_SECONDS = 10.0
"""How long a correction waits for another writer."""
FORMAT = 1
COLUMNS = ("kind", "image_id", "query_id", "query", "tags", "label", "who", "at", "fingerprint")
_CREATE = f"""CREATE TABLE IF NOT EXISTS corrections (
    number INTEGER PRIMARY KEY AUTOINCREMENT, {", ".join(f"{name} TEXT NOT NULL" for name in COLUMNS)})"""
_INSERT = f"INSERT INTO corrections ({', '.join(COLUMNS)}) VALUES ({', '.join('?' * len(COLUMNS))})"
_SELECT = f"SELECT {', '.join(COLUMNS)} FROM corrections ORDER BY number"


class Rows(Protocol):
    """The corrections of one index in a transaction, in which nobody else changes them."""

    def count(self) -> int:
        """Count them."""
        ...

    def read(self) -> list[Correction]:
        """Return all of them, in order."""
        ...

    def write(self, values: Iterable[list[str]]) -> None:
        """Put corrections behind them, as values of ``COLUMNS``."""
        ...


class FeedbackStore(ABC):
    """Where the corrections of an index are kept."""

    def find_obstacle(self) -> str | None:
        """Return why nothing can be kept here, as a clause; None where it can, as far as it shows before trying."""
        return None

    @abstractmethod
    def read(self) -> list[Correction]:
        """Return the whole history, in order; empty where nothing was ever kept.

        Raises:
            ArtifactError: It cannot be read.
        """

    @abstractmethod
    def _describe_full(self, count: int) -> str:
        """Return the message for when the limit is reached."""

    @abstractmethod
    def _changing(self) -> AbstractContextManager[Rows]:
        """Open one transaction; what the block wrote is kept whole when it ends, and nothing where it raises."""

    def add(self, *corrections: Correction) -> None:
        """Keep corrections: all of them are on disk when this returns, and none where it raises.

        Raises:
            DataError: As ``check_correction``.
            ConfigError: Nothing can be written here, or as many corrections as are kept are there.
            ArtifactError: They cannot be kept, or another writer does not finish.
        """
        check_new(corrections)
        with self._changing() as rows:
            self._write(rows, corrections)

    def add_to(self, build: Callable[[list[Correction]], Sequence[Correction]]) -> None:
        """Keep corrections that follow from those before, while nobody else keeps any.

        Args:
            build: Takes the whole history, in order, and returns what is kept behind it; what it raises is raised, and
                nothing is kept then.

        Raises:
            DataError: As ``add``.
            ConfigError: As ``add``.
            ArtifactError: As ``add``.
        """
        with self._changing() as rows:
            corrections = build(rows.read())
            check_new(corrections)
            self._write(rows, corrections)

    def _write(self, rows: Rows, corrections: Sequence[Correction]) -> None:
        count = rows.count()
        if count + len(corrections) > MAX_CORRECTIONS:
            raise ConfigError(self._describe_full(count))
        rows.write(map(list_values, corrections))


class SqliteFeedback(FeedbackStore):
    """Corrections in a file of SQLite, ``INDEX.feedback.sqlite`` beside the folder ``INDEX``.

    It stands beside the folder and not inside, so that corrections outlive an index that is made anew.

    Args:
        index: Folder of the index.
    """

    def __init__(self, index: Path) -> None:
        whole = Path(find_absolute(index))  # a link stays a link: the database stands beside what people name
        self._index = whole
        self.path = whole.with_name(whole.name + SUFFIX)

    def _describe_full(self, count: int) -> str:
        return (
            f"{self.path.name} has {count:,} corrections, and at most {MAX_CORRECTIONS:,} are kept; export them "
            "(vitrieve feedback) and move the file away."
        )

    def find_obstacle(self) -> str | None:
        """Return why nothing can be kept here, as a clause; None where it can."""
        for path in (self._index, self.path.parent, self.path):
            if path.exists() and not os.access(path, os.W_OK):
                kind = "file" if path == self.path else "folder"
                return f"the {kind} {path} is read-only"
        return None

    def read(self) -> list[Correction]:
        """Return the whole history, in order; empty where nothing was ever kept.

        Raises:
            ArtifactError: The file is damaged or of a later version.
        """
        if not self.path.exists():
            return []
        with self._connected(is_read_only=True) as connection:
            (version,) = connection.execute("PRAGMA user_version").fetchone()
            # A first change that was refused or killed leaves a file without a table.
            return SqliteRows(connection).read() if version else []

    @contextmanager
    def _changing(self) -> Iterator[Rows]:
        """Open the file for one change: nobody else changes it from the first statement to the last."""
        if obstacle := self.find_obstacle():
            raise ConfigError(f"feedback is off: {obstacle}.")
        with self._connected() as connection:
            connection.execute("BEGIN IMMEDIATE")
            try:
                connection.execute(_CREATE)
                connection.execute(f"PRAGMA user_version = {FORMAT}")
                yield SqliteRows(connection)
            except BaseException:
                connection.rollback()
                raise
            connection.commit()

    @contextmanager
    def _connected(self, *, is_read_only: bool = False) -> Iterator[sqlite3.Connection]:
        """Open the file for one piece of work; what SQLite raises becomes an error of ours."""
        try:
            # What a killed writer left half done is undone by whoever opens the file next and may write it.
            is_for_reading = is_read_only and self.find_obstacle() is not None
            address = self.path.as_uri() + ("?mode=ro" if is_for_reading else "?mode=rw" if is_read_only else "")
            connection = sqlite3.connect(address, timeout=WAIT_SECONDS, isolation_level=None, uri=True)
            try:
                connection.execute("PRAGMA synchronous = FULL")
                (version,) = connection.execute("PRAGMA user_version").fetchone()
                if version > FORMAT:
                    raise ArtifactError(
                        f"{self.path} is of format {version}, of a later version of vitrieve; this one reads {FORMAT}."
                    )
                yield connection
            finally:
                connection.close()
        except sqlite3.Error as error:
            raise self._translate(error) from error

    def _translate(self, error: sqlite3.Error) -> ArtifactError | DiskFullError:
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            return ArtifactError(f"{self.path} is being written by another process; try again.")
        if code == sqlite3.SQLITE_FULL:
            return DiskFullError(f"the disk of {self.path} is full; make room and send the feedback again.")
        return ArtifactError(
            f"{self.path} cannot be used ({error}); put a copy of it back, or move it away to begin anew."
        )


class SqliteRows:
    """The corrections in a file of SQLite.

    Args:
        connection: A transaction, or a connection that only reads.
    """

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def count(self) -> int:
        """Count them."""
        (count,) = self._connection.execute("SELECT count(*) FROM corrections").fetchone()
        return int(count)

    def read(self) -> list[Correction]:
        """Return all of them, in order."""
        return [build_correction(row) for row in self._connection.execute(_SELECT)]

    def write(self, values: Iterable[list[str]]) -> None:
        """Put corrections behind them, as values of ``COLUMNS``."""
        self._connection.executemany(_INSERT, values)


def check_new(corrections: Iterable[Correction]) -> None:
    """Refuse corrections that cannot be kept; each has its time.

    Raises:
        DataError: As ``check_correction``.
    """
    for correction in corrections:
        check_correction(correction)
        assert is_time(correction.at), "a correction that is kept has its time"


def list_values(correction: Correction) -> list[str]:
    """List the values of ``COLUMNS`` of a correction."""
    values = [getattr(correction, name) for name in COLUMNS]
    values[COLUMNS.index("tags")] = json.dumps(correction.tags)
    return values


def build_correction(row: tuple[str, ...]) -> Correction:
    """Build a correction from the values of ``COLUMNS``."""
    values = dict(zip(COLUMNS, row, strict=True))
    return Correction(**{**values, "tags": tuple(json.loads(values["tags"]))})  # type: ignore[arg-type]


def count_new(corrections: list[Correction], fingerprint: str) -> int:
    """Count the corrections that count and were made since the last training.

    A training that helped makes another encoder, and an index of another fingerprint: what was said of the results of
    this one is new.
    """
    return sum(one.fingerprint == fingerprint for one in find_last_words(corrections))
