"""Changes of an index by a service: pictures and metadata come and go, one lock for all processes, one line for each.

The rule of what is whose: a picture that was sent lies in ``INDEX.pictures`` under a name that is made of hashes, so
nothing a client writes becomes part of a path. What ``vitrieve sync`` indexed from its folder belongs to that folder
and is not changed here; what was sent here is left alone by sync. No file of anybody else is ever changed or removed.

A change is made in an order in which a process that is killed leaves no image without its file, and no change without
its line: what is intended is noted, then come the new file, the index, the line of the record, and the old file goes.
Whoever changes the index next, or begins to serve it, finds what was noted, looks whether it was made, and ends it.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np
from fastapi import HTTPException

from vitrieve.data.records import ImageRecord
from vitrieve.errors import DataError, DiskFullError
from vitrieve.index.store import find_name
from vitrieve.index.written import (
    get_audit_file,
    get_pictures_folder,
    is_kept,
    is_sent,
    locking_writes,
    name_picture,
)
from vitrieve.search.searcher import Searcher
from vitrieve.serve.settings import MAX_TEXT, Limits
from vitrieve.syncing.state import STATE_NAME
from vitrieve.systems import NO_FOLLOW, WRITE, remove_file, replace_file
from vitrieve.writing import write_bytes_durably

MAX_FIELDS = 64
"""Metadata columns of one image that is sent."""
MAX_COLUMNS = 256
"""Metadata columns of an index that a service adds to: each is a column of the store."""
AUDIT_BYTES = 64 * 2**20
"""Size at which the record of changes is put aside; the one before it is then dropped."""
MAX_LINE_BYTES = 4 * 2**20
"""What a line of the record takes at most: 65 names of 4,096 characters, each of up to 12 bytes, take less."""
_INTENT_NAME = ".intent"

Kind = Literal["put", "patch", "delete"]


@dataclass(frozen=True, kw_only=True)
class Author:
    """Who asks for a change, as the record names it.

    Attributes:
        token: First digits of a hash of the token.
        address: Address of the client, or of the proxy before it.
        request_id: Number of the request in the log.
    """

    token: str
    address: str
    request_id: str


@dataclass(frozen=True, kw_only=True)
class Change:
    """One change that is asked for.

    Attributes:
        kind: ``put`` adds or replaces a picture, ``patch`` changes metadata, ``delete`` removes.
        image_id: Name of the image.
        image: File of the picture, for ``put``.
        metadata: Columns; None as a value takes a column away. For ``put``, None keeps what the image has.
    """

    kind: Kind
    image_id: str
    image: bytes | None = None
    metadata: Mapping[str, str | None] | None = None


@dataclass(frozen=True, kw_only=True)
class Changed:
    """What became of a change.

    Attributes:
        image_id: Name of the image, as the index spells it.
        status: ``created``, ``replaced``, ``updated`` or ``deleted``.
        metadata: Metadata that it has now.
    """

    image_id: str
    status: Literal["created", "replaced", "updated", "deleted"]
    metadata: Mapping[str, str]


def check_change(change: Change) -> None:
    """Refuse a change that no index could take.

    Raises:
        HTTPException: 422.
    """
    texts = [change.image_id, *(change.metadata or {}), *filter(None, (change.metadata or {}).values())]
    for text in texts:
        if len(text) > MAX_TEXT or "\0" in text or not _is_utf_8(text):
            raise HTTPException(422, f"a name or a value is no text of at most {MAX_TEXT:,} characters without NUL.")
    if "" in (change.image_id, *(change.metadata or {})):
        raise HTTPException(422, "an image and a metadata column need a name.")
    if len(change.metadata or {}) > MAX_FIELDS:
        raise HTTPException(422, f"an image has at most {MAX_FIELDS} metadata columns here.")


def _is_utf_8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


class Changes:
    """Makes changes of one index. All methods read and write files, so they belong into a worker.

    Args:
        searcher: Index and encoder.
        limits: Bounds of the service.

    Raises:
        HTTPException: 409 where the index cannot be changed by a service.
    """

    def __init__(self, searcher: Searcher, limits: Limits) -> None:
        if searcher.folder is None:
            raise HTTPException(409, "this service searches a store without a folder, so it keeps no picture.")
        self._searcher = searcher
        self._limits = limits
        self._index = searcher.folder.absolute()
        self._pictures = get_pictures_folder(self._index)
        self._audit = get_audit_file(self._index)
        self._intent = self._pictures / _INTENT_NAME

    def encode(self, change: Change) -> np.ndarray | None:
        """Check a change, and embed its picture; None where it has none.

        Raises:
            HTTPException: 422.
            DecodeError: No picture that can be read.
        """
        check_change(change)
        if change.kind != "put":
            return None
        assert change.image is not None
        return self._searcher.encoder.encode([change.image])

    def make(self, change: Change, vector: np.ndarray | None, author: Author) -> Changed:
        """Make a change whose picture was embedded, durably, and write its line.

        Args:
            change: The change.
            vector: What ``encode`` returned.
            author: Who asked.

        Raises:
            HTTPException: 404 no such image, 409 not to be changed here, 422 too many columns, 503 another process
                changes the index and does not end, 507 the disk is nearly full.
            ArtifactError: The index cannot be written, or another one took its place.
        """
        with self._locked():
            self._settle()
            known = self._find(change.image_id)
            if known is None and change.kind != "put":
                raise HTTPException(404, f"the index has no image {change.image_id[:200]!r}.")
            if known is not None:
                self._require_ours(known[1])
            planned = self._plan(change, None if known is None else known[1])
            line = self._build_line(change, planned, author)
            old = None if known is None or not is_kept(known[1].path, self._pictures) else known[1].path.name
            with self._open_audit() as audit:
                self._require_room(change)
                intent = {"line": line, "metadata": dict(planned.metadata), "old": old}
                self._note(intent)
                self._apply(change, planned, vector, known)
                _append(audit, line)
            self._end(intent, is_made=True)
        return planned

    def _note(self, intent: Mapping[str, Any]) -> None:
        try:
            write_bytes_durably(self._intent, json.dumps(intent).encode())
        except DiskFullError:
            raise HTTPException(507, "the disk is full, so nothing is changed.") from None

    def settle(self) -> None:
        """End what a process began that was killed in the middle of a change; nothing where there is none.

        Raises:
            HTTPException: As ``make``.
            ArtifactError: The index cannot be read.
        """
        if self._intent.exists():
            with self._locked():
                self._settle()

    def _settle(self) -> None:
        """Find out whether a change was made whose end nobody noted, and note it; the lock is held."""
        if not self._intent.exists():
            return
        intent = json.loads(self._intent.read_bytes())
        line = intent["line"]
        known = self._find(line["image_id"])
        if line["what"] == "delete":
            is_made = known is None
        elif line["file"] not in (None, intent["old"]):  # another host may have changed the metadata since
            is_made = known is not None and known[1].path == self._pictures / line["file"]
        else:
            is_made = known is not None and dict(known[1].metadata) == intent["metadata"]
        if self._read_last_line() != line:
            with self._open_audit() as audit:
                if not self._is_whole():
                    os.write(audit, b"\n")
                _append(audit, {**line, "status": line["status"] if is_made else "not made", "is_found_later": True})
        self._end(intent, is_made=is_made, named=None if known is None else known[1].path.name)

    def _end(self, intent: Mapping[str, Any], *, is_made: bool, named: str | None = None) -> None:
        """Remove the file that no image names any more, and forget what was intended.

        Args:
            intent: What was noted.
            is_made: Whether the change was made.
            named: File that the image names now, which stays.
        """
        new, old = intent["line"]["file"], intent["old"]
        unneeded = old if is_made else new
        if unneeded not in (None, named) and new != old and intent["line"]["what"] != "patch":
            remove_file(self._pictures / unneeded)
        self._intent.unlink(missing_ok=True)

    def _plan(self, change: Change, known: ImageRecord | None) -> Changed:
        """Say what a change will come to."""
        name = change.image_id if known is None else known.image_id
        if change.kind == "delete":
            return Changed(image_id=name, status="deleted", metadata={})
        metadata = self._merge({} if known is None else known.metadata, change.metadata)
        if change.kind == "patch":
            return Changed(image_id=name, status="updated", metadata=metadata)
        return Changed(image_id=name, status="created" if known is None else "replaced", metadata=metadata)

    def _apply(
        self,
        change: Change,
        planned: Changed,
        vector: np.ndarray | None,
        known: tuple[np.ndarray, ImageRecord] | None,
    ) -> None:
        store, name = self._searcher.store, planned.image_id
        if change.kind == "delete":
            store.delete([name])
        elif change.kind == "patch":
            assert known is not None
            store.upsert(known[0], [replace(known[1], metadata=planned.metadata)])
        else:
            assert change.image is not None
            assert vector is not None
            path = self._keep(name, change.image)
            record = ImageRecord(image_id=name, path=path, label=0, split="test", metadata=planned.metadata)
            if known is not None:
                record = replace(known[1], path=path, box=None, metadata=planned.metadata)
            store.upsert(vector, [record])

    def _find(self, image_id: str) -> tuple[np.ndarray, ImageRecord] | None:
        store = self._searcher.store
        try:
            vectors, records = store.get([find_name(store, image_id)])
        except DataError:
            return None
        return vectors, records[0]

    def _require_ours(self, record: ImageRecord) -> None:
        if (self._index / STATE_NAME).exists() and not is_sent(record, self._pictures):
            raise HTTPException(
                409,
                f"the image {record.image_id[:200]!r} comes from the folder that vitrieve sync follows; change it "
                "there.",
            )

    def _merge(self, old: Mapping[str, str], new: Mapping[str, str | None] | None) -> dict[str, str]:
        merged: dict[str, str | None] = {**old, **(new or {})}
        metadata = {column: value for column, value in merged.items() if value is not None}
        known = set(self._searcher.store.columns())
        if set(metadata) - known and len(known | set(metadata)) > MAX_COLUMNS:
            raise HTTPException(
                422, f"the index has {len(known)} metadata columns; a service adds up to {MAX_COLUMNS}."
            )
        return metadata

    def _require_room(self, change: Change) -> None:
        if change.image is None:
            return
        if shutil.disk_usage(self._pictures).free < self._limits.free_bytes + len(change.image):
            raise HTTPException(507, "the disk is nearly full, so the picture is not kept.")

    def _keep(self, image_id: str, image: bytes) -> Path:
        path = self._pictures / name_picture(image_id, image)
        part = path.with_name(f".{path.name}.part")
        try:
            with open(os.open(part, WRITE | os.O_CREAT | os.O_TRUNC | NO_FOLLOW, 0o600), "wb") as file:
                file.write(image)
                file.flush()
                os.fsync(file.fileno())
            replace_file(part, path)
        finally:
            part.unlink(missing_ok=True)
        return path

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Let one process and one thread at a time read, change and write; of all machines, where the store can."""
        with ExitStack() as stack:
            try:
                lock = locking_writes(self._index, self._searcher.store, seconds=self._limits.request_seconds)
                stack.enter_context(lock)
            except TimeoutError:
                raise HTTPException(503, "other changes of the index have not ended; try again later.") from None
            except OSError as error:
                raise HTTPException(409, f"this service may not write beside its index ({error.strerror}).") from None
            yield

    @contextmanager
    def _open_audit(self) -> Iterator[int]:
        """Open the record before anything is changed: where it cannot be written, nothing is."""
        try:
            if self._audit.exists() and self._audit.stat().st_size > AUDIT_BYTES:
                self._audit.replace(self._audit.with_name(f"{self._audit.name}.1"))
            flags = WRITE | os.O_CREAT | os.O_APPEND | NO_FOLLOW
            descriptor = os.open(self._audit, flags, 0o600)
        except OSError as error:
            raise HTTPException(409, f"the record of changes cannot be written ({error.strerror}).") from None
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    def _build_line(self, change: Change, planned: Changed, author: Author) -> dict[str, Any]:
        file = None if change.image is None else name_picture(planned.image_id, change.image)
        return {
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "what": change.kind,
            "status": planned.status,
            "image_id": planned.image_id,
            "columns": sorted(change.metadata or {}),
            "sha256": None if change.image is None else hashlib.sha256(change.image).hexdigest(),
            "file": file,
            "token": author.token,
            "address": author.address,
            "request_id": author.request_id,
        }

    def _is_whole(self) -> bool:
        """Say whether the record ends with the end of a line; a process may have been killed in the middle of one."""
        with self._audit.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - 1))
            return file.read() in (b"", b"\n")

    def _read_last_line(self) -> dict[str, Any] | None:
        """Read the last line of the record; None where there is none that is whole."""
        try:
            with self._audit.open("rb") as file:
                size = file.seek(0, os.SEEK_END)
                file.seek(max(0, size - MAX_LINE_BYTES))
                lines = file.read().splitlines()
            return dict(json.loads(lines[-1])) if lines else None
        except (OSError, ValueError):
            return None


def _append(audit: int, line: Mapping[str, Any]) -> None:
    """Append a line durably.

    Raises:
        OSError: It could not be written, or only its beginning; then ``Changes._settle`` writes it later.
    """
    left = (json.dumps(line) + "\n").encode()
    while left:  # a disk that becomes full takes the beginning without an error
        left = left[os.write(audit, left) :]
    os.fsync(audit)
