"""What a walk through a folder leaves out by its name: hidden, of the system, or excluded by the user.

The user excludes by patterns with the rules of gitignore: in files ``.vitrieveignore``, each for its folder and what
lies below it, and by ``--exclude``, which has the last word and counts from the folder that is walked. Patterns
and names are compared in NFC, so that a pattern typed on one system fits the files of another.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from pathspec import GitIgnoreSpec

from vitrieve.errors import ConfigError, DataError

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
"""Where Windows puts what a check of the disk has found."""


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

    def __init__(self, folder: Path, exclude: Sequence[str] = ()) -> None:
        self.folder = folder
        try:
            self._last_word = _compile(exclude)
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
        ends = [place for place, sign in enumerate(path) if sign == "/"]
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
