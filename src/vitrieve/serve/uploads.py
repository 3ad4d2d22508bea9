"""The pictures that visitors sent: kept for a while, so that the address of a result can be opened again.

One process keeps them in memory. Several processes, on one machine or behind a load balancer, keep them in one folder.
There a picture's name is a hash of its bytes, so that whoever reads it knows whether it is what was sent.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from vitrieve.data.decode import measure_image
from vitrieve.errors import ArtifactError, DecodeError
from vitrieve.serve.settings import Limits
from vitrieve.systems import CHANGE, NO_FOLLOW, NO_WAIT, READ, WRITE, remove_file, replace_file, wait_for_lock

ID_LENGTH = 32
"""Hexadecimal digits: 128 bits, which nobody guesses."""
_NAME = re.compile(rf"[0-9a-f]{{{ID_LENGTH}}}")
_PART_NAME = re.compile(rf"[0-9a-f]{{{ID_LENGTH}}}\.[0-9a-f]{{16}}\.part")
_LOCK_NAME = ".lock"
PART_SECONDS = 600.0
"""Age of a file that was begun and never finished, at which it is removed: its process has ended."""


@dataclass(frozen=True, kw_only=True)
class Upload:
    """A picture that was sent in.

    Attributes:
        upload_id: A hash of its bytes, so that the same picture sent again makes an old address work again.
        data: The file.
        width_px: Width after EXIF orientation: what a box refers to.
        height_px: Height after EXIF orientation.
    """

    upload_id: str
    data: bytes
    width_px: int
    height_px: int


def build_upload(data: bytes, collection: str = "") -> Upload:
    """Look at a picture's header, and name the picture.

    Args:
        data: The file.
        collection: Name of the collection that it was sent to, where there are several: who may read one of them learns
            nothing of what was sent to another.

    Raises:
        DecodeError: No picture, or one that is too large. Whether it is damaged, the search finds out.
    """
    width_px, height_px = measure_image(data)
    salt = f"{collection}/".encode() if collection else b""
    upload_id = hashlib.sha256(salt + data).hexdigest()[:ID_LENGTH]
    return Upload(upload_id=upload_id, data=data, width_px=width_px, height_px=height_px)


class KeptUploads(Protocol):
    """The pictures sent last, bounded in number and bytes. Both methods may read files: they belong into a worker.

    Several collections have their own pictures each, and the bounds hold for all together.
    """

    def add(self, data: bytes, collection: str = "") -> Upload:
        """Keep a picture, and drop those that were not used for longest; arguments and errors as ``build_upload``."""
        ...

    def find(self, upload_id: str, collection: str = "") -> Upload | None:
        """Find a picture of a collection by its id; None when it was dropped or never sent there."""
        ...


class Uploads:
    """The pictures sent last, in the memory of this process; never written to disk."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._uploads: OrderedDict[tuple[str, str], Upload] = OrderedDict()
        self._num_bytes = 0
        self._lock = threading.Lock()

    def add(self, data: bytes, collection: str = "") -> Upload:
        """Keep a picture; as ``KeptUploads.add``."""
        upload = build_upload(data, collection)
        key = collection, upload.upload_id
        with self._lock:
            if key not in self._uploads:
                self._num_bytes += len(data)
            self._uploads[key] = upload
            self._uploads.move_to_end(key)
            while len(self._uploads) > 1 and self._is_full():
                self._num_bytes -= len(self._uploads.popitem(last=False)[1].data)
        return upload

    def find(self, upload_id: str, collection: str = "") -> Upload | None:
        """Find a picture; as ``KeptUploads.find``."""
        key = collection, upload_id
        with self._lock:
            if key in self._uploads:
                self._uploads.move_to_end(key)
            return self._uploads.get(key)

    def _is_full(self) -> bool:
        return len(self._uploads) > self._limits.num_uploads or self._num_bytes > self._limits.upload_bytes


class SharedUploads:
    """The pictures sent last, in a folder that any number of processes share; only this user can read them.

    Every change is made under a lock, so that the bounds hold whoever adds. Files of other names are never touched.

    Args:
        folder: The folder, made where it is missing.
        limits: Bounds of number, bytes and age.

    Raises:
        ArtifactError: The folder cannot be made or written.
    """

    def __init__(self, folder: Path, limits: Limits) -> None:
        self._folder = folder
        self._limits = limits
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.clean()
        except OSError as error:
            raise ArtifactError(
                f"the folder of uploads {folder} cannot be used ({error.strerror}); give a folder that this user may "
                "write."
            ) from None

    def add(self, data: bytes, collection: str = "") -> Upload:
        """Keep a picture; as ``KeptUploads.add``.

        Raises:
            OSError: The disk fails or is full.
        """
        upload = build_upload(data, collection)
        path = self._folder / upload.upload_id
        part = self._folder / f"{upload.upload_id}.{secrets.token_hex(8)}.part"
        try:
            with self._changing():
                self._remove_old(len(data), without=upload.upload_id)
                with open(os.open(part, WRITE | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                    file.write(data)
                replace_file(part, path)
        finally:
            part.unlink(missing_ok=True)
        return upload

    def find(self, upload_id: str, collection: str = "") -> Upload | None:
        """Find a picture; as ``KeptUploads.find``. A file that is not what was sent there counts as none."""
        if not _NAME.fullmatch(upload_id):
            return None
        path = self._folder / upload_id
        try:
            with open(os.open(path, READ | NO_FOLLOW | NO_WAIT), "rb") as file:
                status = os.fstat(file.fileno())
                if status.st_mtime < time.time() - self._limits.upload_seconds:
                    return None
                data = file.read(self._limits.body_bytes + 1)
            upload = build_upload(data, collection)
            if upload.upload_id != upload_id:
                return None
            os.utime(path, follow_symlinks=os.utime not in os.supports_follow_symlinks)  # it was used now
        except (OSError, DecodeError):
            return None
        return upload

    def clean(self) -> None:
        """Remove what has expired, and what is too much by now; raises OSError where the disk fails."""
        with self._changing():
            self._remove_old(0)

    def _remove_old(self, num_bytes: int, without: str = "") -> None:
        """Remove what has expired, and then what was not used for longest, until ``num_bytes`` more have room."""
        now = time.time()
        kept: list[tuple[float, int, Path]] = []
        for path in self._folder.iterdir():
            is_part = _PART_NAME.fullmatch(path.name) is not None
            if path.name == without or not (is_part or _NAME.fullmatch(path.name)):
                continue
            with suppress(FileNotFoundError):
                status = path.lstat()
                if status.st_mtime < now - (PART_SECONDS if is_part else self._limits.upload_seconds):
                    remove_file(path)
                else:
                    kept.append((status.st_mtime, status.st_size, path))
        kept.sort()
        num_files, num_bytes = len(kept) + (num_bytes > 0), num_bytes + sum(size for _, size, _ in kept)
        for _, size, path in kept:
            if num_files <= self._limits.num_uploads and num_bytes <= self._limits.upload_bytes:
                break
            remove_file(path)
            num_files, num_bytes = num_files - 1, num_bytes - size

    @contextmanager
    def _changing(self) -> Iterator[None]:
        descriptor = os.open(self._folder / _LOCK_NAME, CHANGE | os.O_CREAT, 0o600)
        try:
            wait_for_lock(descriptor)
            yield
        finally:
            os.close(descriptor)
