"""Changes of an index by a service: pictures and metadata come and go, one lock for all processes, one line for each.

The rule of what is whose: a picture that was sent lies in ``INDEX.pictures`` under a name that is made of hashes, so
nothing a client writes becomes part of a path. What ``vitrieve sync`` indexed from its folder belongs to that folder
and is not changed here; what was sent here is left alone by sync. No file of anybody else is ever changed or removed.

A change is made in an order in which a process that is killed leaves no image without its file: the new file, the
index, the line of the record, and then the old file goes.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import numpy as np
from fastapi import HTTPException

from vitrieve.data.records import ImageRecord
from vitrieve.errors import DataError
from vitrieve.index.store import find_name
from vitrieve.index.written import get_audit_file, get_pictures_folder, is_written
from vitrieve.search.searcher import Searcher
from vitrieve.serve.settings import MAX_TEXT, Limits
from vitrieve.syncing.state import STATE_NAME
from vitrieve.systems import CHANGE, NO_FOLLOW, WRITE, remove_file, replace_file, try_lock

MAX_FIELDS = 64
"""Metadata columns of one image that is sent."""
MAX_COLUMNS = 256
"""Metadata columns of an index that a service adds to: each is a column of the store."""
AUDIT_BYTES = 64 * 2**20
"""Size at which the record of changes is put aside; the one before it is then dropped."""
_LOCK_NAME = ".lock"
_LOCK_PAUSE_SECONDS = 0.02

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
            known = self._find(change.image_id)
            if known is None and change.kind != "put":
                raise HTTPException(404, f"the index has no image {change.image_id[:200]!r}.")
            if known is not None:
                self._require_ours(known[1])
            with self._open_audit() as audit:
                changed = self._apply(change, vector, known)
                self._write_line(audit, change, changed, author)
            if known is not None and change.kind != "patch" and is_written(known[1].path, self._index):
                new = None if change.image is None else self._name_file(changed.image_id, change.image)
                if known[1].path != new:
                    remove_file(known[1].path)
        return changed

    def _apply(
        self, change: Change, vector: np.ndarray | None, known: tuple[np.ndarray, ImageRecord] | None
    ) -> Changed:
        store = self._searcher.store
        if change.kind == "delete":
            assert known is not None
            store.delete([known[1].image_id])
            return Changed(image_id=known[1].image_id, status="deleted", metadata={})
        metadata = self._merge({} if known is None else known[1].metadata, change.metadata)
        if change.kind == "patch":
            assert known is not None
            record = replace(known[1], metadata=metadata)
            store.upsert(known[0], [record])
            return Changed(image_id=record.image_id, status="updated", metadata=metadata)
        assert change.image is not None
        assert vector is not None
        name = change.image_id if known is None else known[1].image_id
        path = self._keep(name, change.image)
        record = ImageRecord(image_id=name, path=path, label=0, split="test", metadata=metadata)
        if known is not None:
            record = replace(known[1], path=path, box=None, metadata=metadata)
        store.upsert(vector, [record])
        return Changed(image_id=name, status="created" if known is None else "replaced", metadata=metadata)

    def _find(self, image_id: str) -> tuple[np.ndarray, ImageRecord] | None:
        store = self._searcher.store
        try:
            vectors, records = store.get([find_name(store, image_id)])
        except DataError:
            return None
        return vectors, records[0]

    def _require_ours(self, record: ImageRecord) -> None:
        if (self._index / STATE_NAME).exists() and not is_written(record.path, self._index):
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

    def _name_file(self, image_id: str, image: bytes) -> Path:
        name = hashlib.sha256(image_id.encode()).hexdigest()[:24]
        return self._pictures / f"{name}-{hashlib.sha256(image).hexdigest()[:24]}"

    def _keep(self, image_id: str, image: bytes) -> Path:
        path = self._name_file(image_id, image)
        if shutil.disk_usage(self._pictures).free < self._limits.free_bytes + len(image):
            raise HTTPException(507, "the disk is nearly full, so the picture is not kept.")
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
        """Let one process and one thread at a time read, change and write."""
        until = time.monotonic() + self._limits.request_seconds
        try:
            self._pictures.mkdir(mode=0o700, exist_ok=True)
            descriptor = os.open(self._pictures / _LOCK_NAME, CHANGE | os.O_CREAT | NO_FOLLOW, 0o600)
        except OSError as error:
            raise HTTPException(409, f"this service may not write beside its index ({error.strerror}).") from None
        try:
            while not try_lock(descriptor):
                if time.monotonic() >= until:
                    raise HTTPException(503, "other changes of the index have not ended; try again later.")
                time.sleep(_LOCK_PAUSE_SECONDS)
            yield
        finally:
            os.close(descriptor)

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

    def _write_line(self, audit: int, change: Change, changed: Changed, author: Author) -> None:
        line = {
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "what": change.kind,
            "status": changed.status,
            "image_id": changed.image_id,
            "columns": sorted(change.metadata or {}),
            "sha256": None if change.image is None else hashlib.sha256(change.image).hexdigest(),
            "token": author.token,
            "address": author.address,
            "request_id": author.request_id,
        }
        os.write(audit, (json.dumps(line) + "\n").encode())
        os.fsync(audit)
