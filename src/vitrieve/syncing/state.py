"""What each file was when it was indexed, and the vector store changed in step with it.

The states of the files stand in one SQLite file inside the index. SQLite makes a batch of states durable whole or not
at all, and its exclusive lock, which dies with the process, lets one sync at a time work on an index.

A state without a reason says "the store holds the vector of this content under this name". It must never say so
wrongly, so a change forgets the states first, then changes the store, then writes the new states. A process killed in
between leaves an image without a state, which the next sync embeds again.
"""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vitrieve.data.records import ImageRecord
from vitrieve.errors import ArtifactError, DataError, DiskFullError
from vitrieve.index.store import MAX_BATCH_ROWS, SERVERS, VectorStore
from vitrieve.index.written import Shared, get_pictures_folder, is_sent, locking_writes
from vitrieve.writing import describe_full_disk

STATE_NAME = "sync.sqlite"
WRITES_SECONDS = 60.0
"""How long a change by a service is waited for; one takes some tenths of a second."""
FORMAT_VERSION = 1
CLOCK_TICK_NS = 2_000_000_000
"""The coarsest clock of a file system (FAT): within it a second change may leave all times as they are."""
_EXCLUDE_FACT = "exclude"
_TEXT_FACT = "text in pictures"
_IS_READ, _IS_NOT_READ = "read", "not read"
NO_SIGNATURE = ""
"""Signature of a file whose times prove nothing: its content is compared at the next sync."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FileState:
    """What a file was when it was read.

    Attributes:
        image_id: The image.
        signature: Size and times of the file, from ``sign_file``.
        sha256: Hash of the bytes, in hexadecimal; empty when they could not be read.
        box: The region that was embedded, as text; empty for the whole picture.
        record_hash: Hash of what the source said about the image, from ``read.hash_record``.
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
        status: Size and times of the file, before it was read.
        now_ns: The time then, in nanoseconds since 1970.
    """
    return max(status.st_mtime_ns, status.st_ctime_ns) < now_ns - CLOCK_TICK_NS


class StateFile:
    """The states of one index, open and locked.

    Every change is on disk when its call returns. ``close`` gives the lock back, and so does the end of the process.
    """

    def __init__(self, index: Path) -> None:
        """Open or begin the states of an index.

        Args:
            index: The index's folder, which exists.

        Raises:
            ArtifactError: Another sync works on this index, or the file is damaged, of a newer vitrieve, or may not be
                made or opened.
        """
        self.index = index
        self._path = index / STATE_NAME
        with self._explained():
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

    def read(self) -> list[FileState]:
        """Read all states."""
        with self._explained():
            rows = self._connection.execute(
                "SELECT image_id, signature, sha256, box, record_hash, metadata, reason FROM stamps"
            ).fetchall()
            return [
                FileState(
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

    def write(self, states: Sequence[FileState]) -> None:
        """Add states, and replace those whose image has one."""
        rows = [
            (one.image_id, one.signature, one.sha256, one.box, one.record_hash, json.dumps(one.metadata), one.reason)
            for one in states
        ]
        with self._transaction():
            self._connection.executemany("INSERT OR REPLACE INTO stamps VALUES (?, ?, ?, ?, ?, ?, ?)", rows)

    def forget(self, image_ids: Iterable[str]) -> None:
        """Remove the states of images; those that have none are passed over."""
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

    def read_text_choice(self) -> bool:
        """Read whether the last sync that was told read the text in pictures; False where none was told."""
        return self.read_fact(_TEXT_FACT) == _IS_READ

    def write_text_choice(self, is_read: bool) -> None:
        """Remember whether the text in pictures is read."""
        if is_read != self.read_text_choice():
            self.write_fact(_TEXT_FACT, _IS_READ if is_read else _IS_NOT_READ)

    def close(self) -> None:
        """Give the lock back; closing twice is allowed."""
        self._connection.close()


@dataclass(frozen=True, kw_only=True)
class Change:
    """An image to be put into the store.

    Attributes:
        record: The image, with all its metadata.
        state: What its file was.
        vector: ``(E,)`` float32, L2-normalized.
    """

    record: ImageRecord
    state: FileState
    vector: np.ndarray


class SyncedIndex:
    """A vector store, and the content of which each of its vectors is.

    Attributes:
        store: The vector store.
        states: States of the files by ``image_id``; the image of one without a reason is in the store.
        is_text_read: The last sync that was told read the text in pictures.
    """

    def __init__(self, store: VectorStore, state_file: StateFile) -> None:
        """Read the states, and forget those of images that the store does not hold."""
        self.store = store
        self._file = state_file
        self._index = state_file.index
        self._pictures = get_pictures_folder(self._index)
        self.is_text_read = state_file.read_text_choice()
        self._stored = set(store.image_ids())
        self.states = {state.image_id: state for state in state_file.read()}
        self._holders = {state.content_key: state.image_id for state in self.states.values() if state.reason is None}
        self._forget(
            state.image_id
            for state in self.states.values()
            if state.reason is None and state.image_id not in self._stored
        )

    def remember_text_choice(self, is_read: bool) -> None:
        """Remember for the next sync whether the text in pictures is read."""
        self._file.write_text_choice(is_read)
        self.is_text_read = is_read

    def find_holder(self, content_key: tuple[str, str]) -> FileState | None:
        """Find an image in the store whose vector is of this content. Threads may ask while others change."""
        state = self.states.get(self._holders.get(content_key, ""))
        is_holder = state is not None and state.reason is None and state.content_key == content_key
        return state if is_holder else None

    def get_vectors(self, image_ids: Sequence[str]) -> np.ndarray:
        """Return the vectors ``(N, E)`` of images in the store."""
        return self.store.get(image_ids)[0]

    def put(self, changes: Sequence[Change]) -> None:
        """Put images into the store, or replace them; of more than one change may have, some after the others."""
        for start in range(0, len(changes), MAX_BATCH_ROWS):
            self._put_batch(changes[start : start + MAX_BATCH_ROWS])

    def _put_batch(self, changes: Sequence[Change]) -> None:
        image_ids = [change.record.image_id for change in changes]
        self._forget(image_ids)
        with self._locking_writes():
            self.store.upsert(np.stack([change.vector for change in changes]), [change.record for change in changes])
        self._stored.update(image_ids)
        self._write([change.state for change in changes])

    def write_states(self, states: Sequence[FileState]) -> None:
        """Write other file times for contents that are what they were, or the reasons of images without a vector."""
        if states:
            self._write(states)

    @property
    def stored(self) -> Set[str]:
        """Names of the images in the store."""
        return self._stored

    def list_surplus(self, wanted: Iterable[str]) -> list[str]:
        """List, sorted, the images of the store that are not wanted, or not said as being there.

        What a service was sent to keep is the service's (``index/written.py``), and is never surplus.
        """
        kept = {image_id for image_id in wanted if self._is_claimed(image_id)}
        return self._leave_out_sent(sorted(self._stored - kept))

    def _leave_out_sent(self, image_ids: Sequence[str]) -> list[str]:
        """Leave out the images that a service was sent, or has removed; read none where no service can have."""
        is_on_server = self.store.info.kind in SERVERS or isinstance(self.store, Shared)
        if not is_on_server and not self._pictures.exists():
            return list(image_ids)
        return [
            record.image_id
            for start in range(0, len(image_ids), MAX_BATCH_ROWS)
            for record in self._find_records(image_ids[start : start + MAX_BATCH_ROWS])
            if not is_sent(record, self._pictures)
        ]

    def _find_records(self, image_ids: Sequence[str]) -> list[ImageRecord]:
        """Find images, without those that a service has removed since the sync began."""
        try:
            return self.store.get(image_ids)[1]
        except DataError:
            records = []
            for image_id in image_ids:
                with suppress(DataError):
                    records += self.store.get([image_id])[1]
            return records

    def remove(self, image_ids: Sequence[str]) -> None:
        """Remove images from the store, at most ``MAX_BATCH_ROWS``; the state of one that is kept for its reason stays.

        What a service was sent under one of the names since the sync looked stays.
        """
        if not image_ids:
            return
        self._forget(image_id for image_id in image_ids if self._is_claimed(image_id))
        with self._locking_writes():
            unsent = self._leave_out_sent(image_ids)
            self.store.delete(unsent)
        self._stored.difference_update(image_ids)

    def forget_others(self, wanted: Iterable[str]) -> None:
        """Forget the states of images that are not wanted and not in the store."""
        self._forget(set(self.states) - set(wanted) - self._stored)

    @contextmanager
    def _locking_writes(self) -> Iterator[None]:
        """Keep a service that changes the index out: it asks whose an image is, and then changes it."""
        with ExitStack() as stack:
            try:
                lock = locking_writes(self._index, self.store, seconds=WRITES_SECONDS, is_sync=True)
                stack.enter_context(lock)
            except TimeoutError:
                raise ArtifactError(
                    f"another service or sync has not ended its change of the index {self._index} in "
                    f"{WRITES_SECONDS:g} seconds; run the command again."
                ) from None
            yield

    def _is_claimed(self, image_id: str) -> bool:
        state = self.states.get(image_id)
        return state is not None and state.reason is None

    def _write(self, states: Sequence[FileState]) -> None:
        self._file.write(states)
        for state in states:
            self._release(state.image_id)
            self.states[state.image_id] = state
            if state.reason is None:
                self._holders[state.content_key] = state.image_id

    def _forget(self, image_ids: Iterable[str]) -> None:
        known = [image_id for image_id in image_ids if image_id in self.states]
        if not known:
            return
        self._file.forget(known)
        for image_id in known:
            self._release(image_id)

    def _release(self, image_id: str) -> None:
        """Let an image's content be looked for elsewhere: its vector is about to change."""
        state = self.states.pop(image_id, None)
        if state is not None and self._holders.get(state.content_key) == image_id:
            del self._holders[state.content_key]
