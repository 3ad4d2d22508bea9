"""A file read once: its hash, metadata and prepared picture, all of the same bytes. Next file: ``exclusion.py``."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from vitrieve.data.decode import measure_image, open_picture, read_image_bytes
from vitrieve.data.preprocess import Preprocessing, to_square
from vitrieve.data.records import ImageRecord
from vitrieve.errors import DecodeError
from vitrieve.syncing.describe import describe_content, hash_record, spell_box
from vitrieve.syncing.stamps import NO_SIGNATURE, Stamp, is_settled, sign_file

CHANGING_REASON = "the file changed while it was read; the next sync reads it again"
MEMORY_REASON = "the memory did not suffice to decode it; the next sync tries again"

FindHolder = Callable[[tuple[str, str]], Stamp | None]


@dataclass(frozen=True, kw_only=True)
class Content:
    """What became of one file.

    Attributes:
        record: The image, as its source describes it.
        stamp: What the file was; its reason says why the image can have no vector.
        square: ``(S, S, 3)`` uint8; None where there is no picture, or the store has the vector of this content.
        is_changing: The file changed while it was read, so that nothing can be said of it now.
    """

    record: ImageRecord
    stamp: Stamp
    square: np.ndarray | None = None
    is_changing: bool = False


def read_content(record: ImageRecord, preprocessing: Preprocessing, find_holder: FindHolder) -> Content:
    """Read a file once, and prepare its picture unless its vector is known.

    Args:
        record: The image.
        preprocessing: Of the encoder.
        find_holder: Finds the stamp of an image that has the vector of a content; None when there is none.
    """
    now_ns = time.time_ns()
    before = find_status(record)
    try:
        data = read_image_bytes(record.path)
    except DecodeError as error:
        return Content(record=record, stamp=_build_stamp(record, reason=str(error)))
    after = find_status(record)
    if before is None or after is None or sign_file(before) != sign_file(after):
        return Content(record=record, stamp=_build_stamp(record, reason=CHANGING_REASON), is_changing=True)
    stamp = _build_stamp(
        record,
        signature=sign_file(before) if is_settled(before, now_ns) else NO_SIGNATURE,
        sha256=hashlib.sha256(data).hexdigest(),
    )
    holder = find_holder(stamp.content_key)
    if holder is not None:
        return Content(record=record, stamp=replace(stamp, metadata=dict(holder.metadata)))
    try:
        metadata = describe_content(data, *measure_image(data))
        with open_picture(data, box=record.box) as picture:
            square = to_square(picture, preprocessing)
    except MemoryError:
        return Content(record=record, stamp=replace(stamp, reason=MEMORY_REASON), is_changing=True)
    except DecodeError as error:
        return Content(record=record, stamp=replace(stamp, reason=str(error)))
    return Content(record=record, stamp=replace(stamp, metadata=metadata), square=square)


def _build_stamp(
    record: ImageRecord, *, signature: str = NO_SIGNATURE, sha256: str = "", reason: str | None = None
) -> Stamp:
    return Stamp(
        image_id=record.image_id,
        signature=signature,
        sha256=sha256,
        box=spell_box(record),
        record_hash=hash_record(record),
        metadata={},
        reason=reason,
    )


def find_status(record: ImageRecord) -> os.stat_result | None:
    """Ask for size and times of a record's file; None when there is none, or it may not be asked for."""
    try:
        return record.path.stat()
    except (OSError, ValueError):  # ValueError: a NUL character in a manifest's path
        return None
