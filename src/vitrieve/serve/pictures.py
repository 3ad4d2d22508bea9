"""Pictures of the index and small copies of them, found by exact name, never by a path.

A request's ``image_id`` is only ever compared with the names in the index. The file that is then read is the one
that the index names, so nothing a client writes becomes part of a path.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass
from typing import BinaryIO

from fastapi import HTTPException

from vitrieve.data.decode import (
    measure_image,
    open_file_to_send,
    open_image_file,
    read_image_bytes,
    read_open_file,
    shrink,
)
from vitrieve.data.parts import stat_open
from vitrieve.data.records import ImageRecord
from vitrieve.errors import DataError, DecodeError
from vitrieve.index.store import VectorStore, find_name
from vitrieve.serve.body import NUM_BYTES, find_image_type
from vitrieve.serve.settings import Limits
from vitrieve.systems import read_at

SIDES_PX = (160, 320, 640, 1280)
"""Longest sides that can be asked for: a few, so that a stranger cannot fill the memory with all others."""


@dataclass(frozen=True, kw_only=True)
class PictureFile:
    """An image file that may be sent: the open file whose content was looked at, wherever its path leads by now.

    Attributes:
        file: The open file, for reading; whoever sends it closes it.
        media_type: Media type that the content shows.
    """

    file: BinaryIO
    media_type: str


class Pictures:
    """Looks images up in the index, and keeps the small copies that were made last.

    All methods read files or the index, so they belong into a worker.
    """

    def __init__(self, store: VectorStore, limits: Limits) -> None:
        self._store = store
        self._limits = limits
        self._cache: OrderedDict[tuple[object, ...], bytes] = OrderedDict()
        self._cache_bytes = 0
        self._lock = threading.Lock()

    def find(self, image_id: str) -> ImageRecord:
        """Find an image by its name, in whichever Unicode form.

        Raises:
            HTTPException: 404 when the index has none of that name.
        """
        try:
            return self._store.get([find_name(self._store, image_id)])[1][0]
        except DataError:
            raise HTTPException(404, f"the index has no image {image_id[:200]!r}.") from None

    def read(self, record: ImageRecord) -> bytes:
        """Read the file of an image.

        Raises:
            HTTPException: 410 when it is gone or cannot be read; the message names no path.
        """
        try:
            return read_image_bytes(record.path)
        except DecodeError:
            raise _is_gone(record) from None

    def find_file(self, image_id: str) -> PictureFile:
        """Find the file of an image, to send it as it is.

        Raises:
            HTTPException: 404 unknown, 410 gone, or no longer an image (whatever it is now is not sent).
        """
        record = self.find(image_id)
        try:
            file = open_file_to_send(record.path)
        except (DecodeError, OSError):
            raise _is_gone(record) from None
        try:
            media_type = find_image_type(read_at(file.fileno(), NUM_BYTES, 0))
        except OSError:
            media_type = None
        if media_type is None:
            file.close()
            raise _is_gone(record)
        return PictureFile(file=file, media_type=media_type)

    def build_thumbnail(self, image_id: str, side_px: int) -> bytes:
        """Build, or take from memory, a small JPEG copy of an image of the index; its box where it has one.

        Raises:
            HTTPException: 404 unknown, 410 gone or no longer readable.
        """
        record = self.find(image_id)
        try:
            with open_image_file(record.path) as file:
                status = stat_open(file)
                stamp = (status.st_dev, status.st_ino, status.st_mtime_ns, status.st_size)
                key = (str(record.path), record.box, side_px, *stamp)
                return self._take(key) or self._keep(key, shrink(read_open_file(file), side_px, record.box))
        except (OSError, DecodeError, ValueError):
            raise _is_gone(record) from None

    def measure(self, record: ImageRecord) -> tuple[int, int] | None:
        """Return width and height of an image after EXIF orientation; None when it cannot be read."""
        try:
            return measure_image(read_image_bytes(record.path))
        except DecodeError:
            return None

    def shrink_upload(self, upload_id: str, data: bytes, side_px: int) -> bytes:
        """Build, or take from memory, a small copy of a picture that was sent in."""
        key = (upload_id, side_px)
        return self._take(key) or self._keep(key, shrink(data, side_px))

    def _take(self, key: tuple[object, ...]) -> bytes | None:
        with self._lock:
            if key in self._cache:
                self._cache.move_to_end(key)
            return self._cache.get(key)

    def _keep(self, key: tuple[object, ...], jpeg: bytes) -> bytes:
        with self._lock:
            if key not in self._cache:
                self._cache[key] = jpeg
                self._cache_bytes += len(jpeg)
            while self._cache_bytes > self._limits.thumbnail_bytes:
                self._cache_bytes -= len(self._cache.popitem(last=False)[1])
        return jpeg


def _is_gone(record: ImageRecord) -> HTTPException:
    return HTTPException(410, f"the picture of {record.image_id!r} is gone or can no longer be read.")
