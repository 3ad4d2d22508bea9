"""Metadata that nobody has to write: from an image's place in the collection and from its content.

What the source itself says (columns of a manifest, class names) wins over what is derived here. All of it is text,
as every metadata is. Next file: ``content.py``.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import PurePosixPath

from vitrieve.data.decode import find_note, read_date_taken
from vitrieve.data.records import ImageRecord

NUM_FOLDER_LEVELS = 4
"""Folder levels that become a column of their own; deeper ones stand in ``folder`` alone."""


def describe_place(image_id: str) -> dict[str, str]:
    """Describe the folders above an image: all of them, and each level.

    Args:
        image_id: Path below the collection's folder. One directly in it, absolute, or leading out of it, has none.

    >>> describe_place("fruit/apple/1.jpg")
    {'folder': 'fruit/apple', 'folder_1': 'fruit', 'folder_2': 'apple'}
    """
    parts = PurePosixPath(image_id).parts[:-1]
    if not parts or ".." in parts or parts[0] == "/":
        return {}
    levels = {f"folder_{level}": name for level, name in enumerate(parts[:NUM_FOLDER_LEVELS], start=1)}
    return {"folder": "/".join(parts), **levels}


def describe_content(data: bytes, width_px: int, height_px: int) -> dict[str, str]:
    """Describe a readable image file.

    Args:
        data: The whole file.
        width_px: Of the upright picture, after EXIF orientation.
        height_px: The same.

    Returns:
        ``width_px``, ``height_px``, ``size_bytes``, where the camera wrote it ``date`` as ``2026-11-23T10:00:00``,
        and ``note`` where something is odd about the file.
    """
    date, note = read_date_taken(data), find_note(data)
    facts = {"width_px": str(width_px), "height_px": str(height_px), "size_bytes": str(len(data))}
    facts |= {} if note is None else {"note": note}
    return facts if date is None else {"date": date, **facts}


def complete_record(record: ImageRecord, content_metadata: Mapping[str, str]) -> ImageRecord:
    """Add what place and content say to a record, under what its source says."""
    return replace(record, metadata={**describe_place(record.image_id), **content_metadata, **record.metadata})


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
