"""A file is read once: its hash, its metadata and the prepared picture are of the same bytes."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import PurePosixPath

import numpy as np
from PIL import Image

from vitrieve.data.decode import (
    MEMORY_REASON,
    PictureFacts,
    open_described_picture,
    open_image_file,
    read_open_file,
)
from vitrieve.data.parts import stat_open, stat_picture
from vitrieve.data.preprocess import Preprocessing, find_enough_px, to_square
from vitrieve.data.records import ImageRecord
from vitrieve.errors import DecodeError
from vitrieve.progress import print_message
from vitrieve.quoting import quote_name
from vitrieve.syncing.state import NO_SIGNATURE, FileState, is_settled, sign_file

NUM_FOLDER_LEVELS = 4
"""Folder levels that become a column of their own; deeper ones stand in ``folder`` alone."""


def describe_folders(image_id: str) -> dict[str, str]:
    """Describe the folders above an image: all of them, and each level.

    Args:
        image_id: Path below the collection's folder. One directly in it, absolute, or leading out of it, has none.

    >>> describe_folders("fruit/apple/1.jpg")
    {'folder': 'fruit/apple', 'folder_1': 'fruit', 'folder_2': 'apple'}
    """
    parts = PurePosixPath(image_id).parts[:-1]
    if not parts or ".." in parts or parts[0] == "/":
        return {}
    levels = {f"folder_{level}": name for level, name in enumerate(parts[:NUM_FOLDER_LEVELS], start=1)}
    return {"folder": "/".join(parts), **levels}


def describe_content(facts: PictureFacts, size_bytes: int) -> dict[str, str]:
    """Describe a readable image file.

    Args:
        facts: What it says of its picture.
        size_bytes: Size of the file.

    Returns:
        ``width_px``, ``height_px``, ``size_bytes``, where the camera wrote it ``date`` as ``2026-11-23T10:00:00``,
        and ``note`` where something is odd about the file.
    """
    described = {"width_px": str(facts.width_px), "height_px": str(facts.height_px), "size_bytes": str(size_bytes)}
    described |= {} if facts.note is None else {"note": facts.note}
    return described if facts.date_taken is None else {"date": facts.date_taken, **described}


def complete_record(record: ImageRecord, content_metadata: Mapping[str, str]) -> ImageRecord:
    """Add what folders and content say to a record, under what its source says; a picture without text has none."""
    content = {name: value for name, value in content_metadata.items() if value or name != TEXT_COLUMN}
    return replace(record, metadata={**describe_folders(record.image_id), **content, **record.metadata})


def spell_box(record: ImageRecord) -> str:
    """Spell the region of a record; empty for the whole picture."""
    return "" if record.box is None else ",".join(map(repr, record.box))


def hash_record(record: ImageRecord) -> str:
    """Hash what the source says about an image, so that a changed label or column is noticed."""
    said = [
        str(record.path.absolute()),
        record.label,
        record.split,
        record.is_query,
        record.is_gallery,
        spell_box(record),
        sorted(record.metadata.items()),
    ]
    return hashlib.sha256(json.dumps(said).encode("utf-8")).hexdigest()


CHANGING_REASON = "the file changed while it was read; the next sync reads it again"
LATER_REASON = f"{MEMORY_REASON}; the next sync tries again"

TEXT_COLUMN = "text_in_picture"
"""Metadata column of the text that is read in a picture."""
ReadText = Callable[[Image.Image], str]
FindHolder = Callable[[tuple[str, str]], FileState | None]


@dataclass(frozen=True, kw_only=True)
class ReadFile:
    """One file after it was read.

    Attributes:
        record: The image, as its source describes it.
        state: What the file was; its reason says why the image can have no vector.
        square: ``(S, S, 3)`` uint8; None where there is no picture, or the store has the vector of this content.
        is_undecided: Nothing can be said of the content now: the file could not be read, or changed while it was read.
    """

    record: ImageRecord
    state: FileState
    square: np.ndarray | None = None
    is_undecided: bool = False


def read_file(
    record: ImageRecord,
    preprocessing: Preprocessing,
    find_holder: FindHolder,
    read_text: ReadText | None = None,
) -> ReadFile:
    """Read a file once, and prepare its picture unless its vector is known.

    Args:
        record: The image.
        preprocessing: Preprocessing of the encoder.
        find_holder: Finds the state of an image that has the vector of a content; None when there is none.
        read_text: Reads the text in a picture whose text is not known yet; None: it is not read. Where it fails, the
            picture is described without its text.
    """
    now_ns = time.time_ns()
    try:
        with open_image_file(record.path) as file:  # the open file's size and times, wherever the path leads by then
            before = stat_open(file)
            data = read_open_file(file)
            after = stat_open(file)
    except MemoryError:
        return ReadFile(record=record, state=_build_state(record, reason=LATER_REASON), is_undecided=True)
    except DecodeError as error:
        # What the system refuses may come back, as a drive does; it says nothing about the content.
        is_undecided = isinstance(error.__cause__, OSError)
        return ReadFile(record=record, state=_build_state(record, reason=str(error)), is_undecided=is_undecided)
    if sign_file(before) != sign_file(after):
        return ReadFile(record=record, state=_build_state(record, reason=CHANGING_REASON), is_undecided=True)
    state = _build_state(
        record,
        signature=sign_file(before) if is_settled(before, now_ns) else NO_SIGNATURE,
        sha256=hashlib.sha256(data).hexdigest(),
    )
    holder = find_holder(state.content_key)
    if holder is not None and (read_text is None or TEXT_COLUMN in holder.metadata):
        return ReadFile(record=record, state=replace(state, metadata=dict(holder.metadata)))
    try:
        enough_px = find_enough_px(preprocessing) if read_text is None else None  # letters need every pixel
        with open_described_picture(data, box=record.box, enough_px=enough_px) as (picture, facts):
            metadata = describe_content(facts, len(data))
            square = to_square(picture, preprocessing) if holder is None else None
            if read_text is not None:
                metadata |= _describe_text(record, picture, read_text)
    except MemoryError:
        return ReadFile(record=record, state=replace(state, reason=LATER_REASON), is_undecided=True)
    except DecodeError as error:
        return ReadFile(record=record, state=replace(state, reason=str(error)))
    return ReadFile(record=record, state=replace(state, metadata=metadata), square=square)


def _describe_text(record: ImageRecord, picture: Image.Image, read_text: ReadText) -> dict[str, str]:
    """Read the text in a picture; where that fails nothing is said of it, and so the next sync tries again."""
    try:
        return {TEXT_COLUMN: read_text(picture)}
    except Exception as error:  # of OpenCV, which share no base class with those of ONNX Runtime
        reason = str(error) or type(error).__name__  # a MemoryError says nothing
        print_message(f"no text was read in {quote_name(record.image_id)}; the next sync tries again: {reason}")
        return {}


def _build_state(
    record: ImageRecord, *, signature: str = NO_SIGNATURE, sha256: str = "", reason: str | None = None
) -> FileState:
    return FileState(
        image_id=record.image_id,
        signature=signature,
        sha256=sha256,
        box=spell_box(record),
        record_hash=hash_record(record),
        metadata={},
        reason=reason,
    )


def find_status(record: ImageRecord) -> os.stat_result | None:
    """Ask for size and times of a record's file; None when there is none.

    Raises:
        OSError: The system does not tell: a permission is missing, a disk fails, a server of files is away.
    """
    try:
        return stat_picture(record.path)
    except (FileNotFoundError, NotADirectoryError, ValueError):  # ValueError: a NUL character in a manifest's path
        return None
