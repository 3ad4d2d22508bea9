"""Finding the picture files below a folder: the one walk that every source, ``sync`` and ``up`` share.

Files are listed by their suffix and judged by their content only when decoded, so that one bad file is reported and
the work goes on. What is left out is counted, and a folder that cannot be read is told.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from vitrieve.data.decode import list_image_suffixes
from vitrieve.data.ignore import SYSTEM, Rules
from vitrieve.data.raw import RAW_SUFFIXES
from vitrieve.data.records import printable_name
from vitrieve.errors import DataError

_NUM_KINDS = 8
"""Suffixes and names of system folders that a note spells out."""
_MAX_SUFFIX_LENGTH = 12
"""Longer ones are no suffix but a sentence after a full stop."""
_CIRCULAR, _NO_FILE = "a link in a circle", "no regular file"

_Identity = tuple[int, int]


@dataclass(kw_only=True)
class Walk:
    """What a walk has found.

    Attributes:
        paths: Picture files below the folder, with ``/``, sorted as text. Broken links are among them, so that they
            are reported as unreadable rather than passed over.
        folders: Folders that were looked into, in the same spelling.
        left_out: How many entries were left out, by reason.
        system_folders: How many of them are folders of the system, by name.
        suffixes: How many of them are files of other kinds, by suffix in lower case, with its point.
        unreadable: Folders that cannot be listed, below the folder with ``/``, and why.
    """

    paths: list[str] = field(default_factory=list)
    folders: list[str] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)
    system_folders: Counter[str] = field(default_factory=Counter)
    suffixes: Counter[str] = field(default_factory=Counter)
    unreadable: list[tuple[str, str]] = field(default_factory=list)

    def describe_left_out(self, *more: tuple[int, str]) -> tuple[str, ...]:
        """Tell what was left out, and which folders cannot be read: at most one note of each.

        Args:
            more: Further counts with their reasons, from the caller.
        """
        reasons = [*((count, reason) for reason, count in sorted(self.left_out.items())), *more]
        parts = [f"{count:,} {reason}" for count, reason in reasons if count]
        if self.system_folders:
            parts.append(f"{self.system_folders.total():,} of the system ({_count_kinds(self.system_folders)})")
        if self.suffixes:
            parts.append(_count_kinds(self.suffixes))
        notes = [f"left out: {', '.join(parts)}."] if parts else []
        num_raw = sum(self.suffixes[suffix] for suffix in RAW_SUFFIXES)
        if num_raw:
            files = "1 file is" if num_raw == 1 else f"{num_raw:,} files are"
            notes.append(
                f"{files} RAW and left out; pip install 'vitrieve[raw]' brings what reads the preview in them."
            )
        if self.unreadable:
            shown = "; ".join(f"{printable_name(path)}: {reason}" for path, reason in self.unreadable[:_NUM_KINDS])
            more_shown = "; …" if len(self.unreadable) > _NUM_KINDS else ""
            folders = "1 folder" if len(self.unreadable) == 1 else f"{len(self.unreadable):,} folders"
            notes.append(f"{folders} cannot be read, and what they hold is left out: {shown}{more_shown}.")
        return tuple(notes)

    def list_unreadable(self) -> tuple[tuple[str, str], ...]:
        """List the folders that cannot be read, spelled as ``image_id`` spells names, and why."""
        return tuple((printable_name(path), reason) for path, reason in self.unreadable)


def walk_pictures(folder: Path, exclude: Sequence[str] = ()) -> Walk:
    """Find the picture files below a folder.

    Links are followed: each real folder once below each entry of ``folder``. So a class may be a link to a folder
    elsewhere, even to another class. A link up to ``folder`` or to what contains it would make every picture part of
    every class, so these count as visited.

    Args:
        folder: Searched at any depth.
        exclude: Patterns with the rules of gitignore, which count from ``folder``.

    Raises:
        DataError: The folder is missing or cannot be listed, or a ``.vitrieveignore`` cannot be read.
        ConfigError: A pattern is none.
    """
    if not folder.is_dir():
        kind = "is not a folder" if folder.exists() else "does not exist"
        raise DataError(f"{folder} {kind}; give a folder of pictures.")
    rules = Rules(folder, exclude)
    try:
        above = {_identify(parent) for parent in (folder.resolve(), *folder.resolve().parents)}
        top = _scan(folder)
    except OSError as error:
        raise DataError(f"the folder {folder} cannot be read: {error.strerror or error}.") from None
    walk = Walk()
    for entry in top:
        pending, visited = [(entry, entry.name)], set(above)
        while pending:
            _visit(*pending.pop(), rules, walk, pending, visited)
    walk.paths.sort()
    walk.folders.sort()
    walk.unreadable.sort()
    return walk


def _visit(
    entry: os.DirEntry[str],
    path: str,
    rules: Rules,
    walk: Walk,
    pending: list[tuple[os.DirEntry[str], str]],
    visited: set[_Identity],
) -> None:
    is_folder = os.path.isdir(entry.path) if entry.is_symlink() else _is_folder(entry)
    reason = rules.why_left_out(path, is_folder=is_folder)
    if reason == SYSTEM:
        walk.system_folders[entry.name] += 1
    elif reason is not None:
        walk.left_out[reason] += 1
    elif is_folder:
        try:
            identity = _identify(Path(entry.path))
            below = [] if identity in visited else _scan(Path(entry.path))
        except OSError as error:
            walk.unreadable.append((path, error.strerror or str(error)))
            return
        if identity in visited:
            walk.left_out[_CIRCULAR] += 1
        else:
            walk.folders.append(path)
        visited.add(identity)
        pending.extend((inner, f"{path}/{inner.name}") for inner in below)
    else:
        _take_file(entry, path, walk)


def _take_file(entry: os.DirEntry[str], path: str, walk: Walk) -> None:
    suffix = os.path.splitext(entry.name)[1].lower()
    if suffix not in list_image_suffixes():
        is_suffix = 1 < len(suffix) <= _MAX_SUFFIX_LENGTH and suffix[1:].isalnum()
        walk.suffixes[suffix if is_suffix else "without a suffix"] += 1
    elif entry.is_symlink() or entry.is_file():
        walk.paths.append(path)
    else:
        walk.left_out[_NO_FILE] += 1


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # whoever reads it reports it
        return False


def _scan(folder: Path) -> list[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        return sorted(entries, key=lambda entry: entry.name)


def _identify(path: Path) -> _Identity:
    status = path.stat()
    return status.st_dev, status.st_ino


def _count_kinds(counts: Counter[str]) -> str:
    """Spell the most frequent kinds with their counts.

    >>> _count_kinds(Counter({".jxl": 500, ".txt": 2}))
    '500 .jxl, 2 .txt'
    """
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    parts = [f"{count:,} {printable_name(kind)}" for kind, count in ordered[:_NUM_KINDS]]
    rest = sum(count for _, count in ordered[_NUM_KINDS:])
    return ", ".join(parts + [f"{rest:,} of other kinds"] * (rest > 0))
