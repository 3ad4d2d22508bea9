"""Pictures that visitors of the page sent, kept in memory so that a result has an address. Next: ``address.py``."""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from dataclasses import dataclass

from vitrieve.data.decode import measure_image
from vitrieve.serve.limits import Limits

ID_LENGTH = 32
"""Hexadecimal digits: 128 bits, which nobody guesses."""


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


class Uploads:
    """The pictures sent last, bounded in number and bytes; never written to disk."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._uploads: OrderedDict[str, Upload] = OrderedDict()
        self._num_bytes = 0
        self._lock = threading.Lock()

    def add(self, data: bytes) -> Upload:
        """Keep a picture, after a look at its header; drop those that were not used for longest.

        Raises:
            DecodeError: No picture, or one that is too large. Whether it is damaged, the search finds out.
        """
        width_px, height_px = measure_image(data)
        upload_id = hashlib.sha256(data).hexdigest()[:ID_LENGTH]
        upload = Upload(upload_id=upload_id, data=data, width_px=width_px, height_px=height_px)
        with self._lock:
            if upload_id not in self._uploads:
                self._num_bytes += len(data)
            self._uploads[upload_id] = upload
            self._uploads.move_to_end(upload_id)
            while len(self._uploads) > 1 and self._is_full():
                self._num_bytes -= len(self._uploads.popitem(last=False)[1].data)
        return upload

    def find(self, upload_id: str) -> Upload | None:
        """Find a picture by its id; None when it was dropped or never sent."""
        with self._lock:
            if upload_id in self._uploads:
                self._uploads.move_to_end(upload_id)
            return self._uploads.get(upload_id)

    def _is_full(self) -> bool:
        return len(self._uploads) > self._limits.num_uploads or self._num_bytes > self._limits.upload_bytes
