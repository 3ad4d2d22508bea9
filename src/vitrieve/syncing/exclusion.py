"""Which files a sync leaves out when no ``--exclude`` is given: those of the last sync.

An index is true to its collection without what was excluded. A later sync that forgets the flag, or a service that
syncs every night, must not put it back.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from vitrieve.data.sources import is_folder_source
from vitrieve.quoting import quote_name
from vitrieve.syncing.stamps import STAMPS_NAME, StampFile


def choose_exclude(source: str, index: Path, given: Sequence[str]) -> tuple[tuple[str, ...], str | None]:
    """Choose the patterns of a sync.

    Args:
        source: The collection, as ``read_collection`` takes it.
        index: Folder of the index, there or not.
        given: Patterns of the command line; empty: those of the last sync; one that is blank: none from now on.

    Returns:
        The patterns, and what a person must be told about them, if anything.

    Raises:
        ArtifactError: As ``StampFile``.
    """
    patterns = tuple(pattern for pattern in given if pattern.strip())
    before = (recall_exclude(index) if is_folder_source(source) else None) or ()
    if not given:
        note = f"left out as before: {_spell(before)}; --exclude '' takes it in again." if before else None
        return before, note
    if patterns == before or not before:
        return patterns, None
    return patterns, f"left out from now on: {_spell(patterns) or 'nothing'}; before it was {_spell(before)}."


def recall_exclude(index: Path) -> tuple[str, ...] | None:
    """Read the patterns of the last sync; None where none has made this index.

    Raises:
        ArtifactError: As ``StampFile``.
    """
    if not (index / STAMPS_NAME).is_file():
        return None
    stamp_file = StampFile(index)
    try:
        return stamp_file.read_exclude()
    finally:
        stamp_file.close()


def _spell(patterns: Sequence[str]) -> str:
    return ", ".join(map(quote_name, patterns))
