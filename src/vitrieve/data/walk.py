"""Finding the picture files below a folder: the one walk that every source, ``sync`` and ``up`` share.

Files are listed by their suffix and judged by their content only when decoded, so that one bad file is reported and
the work goes on. What is left out is counted, and a folder that cannot be read is told.

A walk leaves out by its name what is hidden, of the system, or excluded by the user. The user excludes by patterns with
the rules of gitignore: in files ``.vitrieveignore``, each for its folder and what lies below it, and by ``--exclude``,
which has the last word and counts from the folder that is walked. Patterns and names are compared in NFC, so that a
pattern typed on one system fits the files of another.
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from pathspec import GitIgnoreSpec

from vitrieve.data.decode import list_image_suffixes
from vitrieve.data.raw import RAW_SUFFIXES
from vitrieve.data.records import printable_name
from vitrieve.errors import ConfigError, DataError
from vitrieve.quoting import count_nouns
from vitrieve.settings import list_texts

IGNORE_NAME = ".vitrieveignore"
HIDDEN, SYSTEM, EXCLUDED = "hidden", "system", "excluded"

_SYSTEM_FOLDERS = frozenset(
    (
        *("@eadir", "#recycle", "#snapshot", "@tmp", "@recycle", "@recently-snapshot", "@transcode"),  # of a NAS
        *("$recycle.bin", "recycler", "recycled", "system volume information", "config.msi"),  # of Windows
        *("lost+found", "~snapshot"),  # of Linux, of NetApp
        *("__macosx", "network trash folder", "temporary items"),  # of macOS
    )
)
"""Folders that systems put among photographs, with thumbnails, deleted files or none of the user's; in lower case."""
_RESCUED = re.compile(r"found\.\d{3}")
"""Folders into which Windows puts what a check of the disk has found."""


class _Patterns(NamedTuple):
    """Lines that are not empty, and what matches them."""

    lines: list[str]
    spec: GitIgnoreSpec


class Rules:
    """What is left out below one folder. A file ``.vitrieveignore`` is read once, when its folder is first asked about.

    Args:
        folder: The folder that is walked; it is never left out itself, whatever its name is.
        exclude: Patterns from the command line.

    Raises:
        ConfigError: A pattern of ``exclude`` is none.
    """

    def __init__(self, folder: Path, exclude: str | Sequence[str] = ()) -> None:
        self.folder = folder
        try:
            self._last_word = _compile(list_texts(exclude))
        except ValueError as error:
            raise ConfigError(
                f"--exclude: {error}; expected a pattern as in a .gitignore, such as 'drafts/'."
            ) from None
        self._specs: dict[str, _Patterns | None] = {}

    def why_left_out(self, path: str, *, is_folder: bool) -> str | None:
        """Say why an entry is left out: ``HIDDEN``, ``SYSTEM`` or ``EXCLUDED``; None when it is not.

        Args:
            path: Below the folder, with ``/``. The folders above it are not left out.
            is_folder: Whether it is a folder, or a link to one.

        Raises:
            DataError: A ``.vitrieveignore`` cannot be read, or a pattern in it is none. Going on would show what
                somebody wanted out.
        """
        above, _, name = path.rpartition("/")
        if name.startswith("."):
            return HIDDEN
        if is_folder and (name.casefold() in _SYSTEM_FOLDERS or _RESCUED.fullmatch(name.casefold())):
            return SYSTEM
        verdict = _decide(self._last_word, path, is_folder)
        while verdict is None:
            verdict = _decide(self._read(above), path[len(above) :].lstrip("/"), is_folder)
            if not above:
                break
            above = above.rpartition("/")[0]
        return EXCLUDED if verdict else None

    def is_passed_over(self, path: str) -> bool:
        """Tell whether an entry, which need not exist any more, or a folder above it is left out.

        Args:
            path: Below the folder, with ``/``.

        Raises:
            DataError: As ``why_left_out``.
        """
        ends = [position for position, sign in enumerate(path) if sign == "/"]
        if any(self.why_left_out(path[:end], is_folder=True) for end in ends):
            return True
        # What has vanished may have been a folder: then only what holds for both counts.
        return all(self.why_left_out(path, is_folder=is_folder) for is_folder in (True, False))

    def _read(self, below: str) -> _Patterns | None:
        """Read the patterns of a folder; None where there are none."""
        if below not in self._specs:
            file = self.folder / below / IGNORE_NAME
            try:
                self._specs[below] = _compile(file.read_text(encoding="utf-8-sig").splitlines())
            except (FileNotFoundError, NotADirectoryError):
                self._specs[below] = None
            except OSError as error:
                raise DataError(f"{file} cannot be read: {error.strerror or error}.") from None
            except ValueError as error:  # UnicodeDecodeError is one
                raise DataError(f"{file}: {error}; expected UTF-8 text with the rules of a .gitignore.") from None
        return self._specs[below]


def _compile(lines: Sequence[str]) -> _Patterns | None:
    patterns = [unicodedata.normalize("NFC", line) for line in lines if line.strip()]
    if not patterns:
        return None
    for pattern in patterns:
        try:
            GitIgnoreSpec.from_lines([pattern])
        except (ValueError, re.error):
            raise ValueError(f"{pattern!r} is no pattern") from None
    return _Patterns(patterns, GitIgnoreSpec.from_lines(patterns))


def _decide(patterns: _Patterns | None, path: str, is_folder: bool) -> bool | None:
    """Say whether the patterns exclude a path (True), take it in again (False) or say nothing (None)."""
    if patterns is None:
        return None
    normal = unicodedata.normalize("NFC", path)
    found = patterns.spec.check_file(f"{normal}/" if is_folder else normal)
    if is_folder and found.include and found.index is not None and patterns.lines[found.index].rstrip().endswith("/**"):
        # pathspec takes the folder itself for a part of "folder/**"; git does not, so that "!folder/this" can follow.
        return patterns.spec.check_file(normal).include
    return found.include


_NUM_KINDS = 8
"""Suffixes and names of system folders that a note spells out."""
_MAX_SUFFIX_LENGTH = 12
"""A longer suffix is none, but a sentence after a full stop."""
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
            files = count_nouns(num_raw, "file is", "files are")
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


def walk_pictures(folder: Path, exclude: str | Sequence[str] = ()) -> Walk:
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
        top = list_entries(folder)
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
            below = [] if identity in visited else list_entries(Path(entry.path))
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


def list_entries(folder: Path) -> list[os.DirEntry[str]]:
    """List what is in a folder, sorted by name.

    Raises:
        OSError: The folder cannot be listed, or may be, but nothing in it may be looked at (``chmod -R 644``).
    """
    os.stat(os.path.join(folder, os.curdir))
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
