"""Where the pictures lie that a service was sent to keep, and the record of its changes; both beside the index.

``INDEX.pictures`` and ``INDEX.audit.jsonl`` are not inside of the folder, so that ``--overwrite`` leaves them.
"""

from __future__ import annotations

from pathlib import Path


def get_pictures_folder(index: Path) -> Path:
    """Return the folder of the pictures that a service keeps for an index."""
    index = index.absolute()
    return index.parent / f"{index.name}.pictures"


def get_audit_file(index: Path) -> Path:
    """Return the file with a line for each change that a service made."""
    index = index.absolute()
    return index.parent / f"{index.name}.audit.jsonl"


def is_written(path: Path, index: Path) -> bool:
    """Say whether an image's file is one that a service keeps: then the service changes it, and no sync does."""
    return path.parent == get_pictures_folder(index)
