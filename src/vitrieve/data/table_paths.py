"""What a cell with a path means: where the file is, and the name of its image.

Tables come from other machines and other programs. A path is recognized by its form: what can be read is read, and
what cannot is refused with what to do.
"""

from __future__ import annotations

import os
import posixpath
import re
import unicodedata
from pathlib import Path
from typing import Literal, NamedTuple
from urllib.parse import unquote, urlsplit

from vitrieve.errors import DataError

_DRIVE = re.compile(r"[A-Za-z]:[\\/]")
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
_LOCAL_HOSTS = ("", "localhost")


class FoundPath(NamedTuple):
    """A cell of the column ``path``, understood.

    Attributes:
        image_id: The normalized path, without ``./`` and leading ``../``.
        path: Where the file is, if it is anywhere.
        is_respelled: Whether the file was found under the other Unicode form of the name only.
    """

    image_id: str
    path: Path
    is_respelled: bool = False


def find_path(text: str, folder: Path, where: str) -> FoundPath:
    r"""Understand a path of a table.

    Args:
        text: The cell: relative to the table's folder, absolute, ``~/…`` or ``file:///…``, with slashes or backslashes.
        folder: Folder of the table.
        where: How a message names the row.

    Returns:
        The path; whether the file exists is not looked at where nothing depends on it.

    Raises:
        DataError: A path of another machine, or an address.

    >>> [find_path(text, Path("/t"), "row 1").image_id for text in ("./a.jpg", "a/../b.jpg", "../p/a.jpg", "a//b.jpg")]
    ['a.jpg', 'b.jpg', 'p/a.jpg', 'a/b.jpg']
    """
    _refuse_foreign(text, where)
    if text.lower().startswith("file://"):
        text = _read_uri(text, where)
    plain = os.path.expanduser(text) if text.startswith("~") else text
    if "\\" in plain and not os.path.lexists(folder / plain):
        plain = plain.replace("\\", "/")
    tidy = posixpath.normpath(plain)
    image_id = re.sub(r"^(\.\./)+", "", tidy)
    found = FoundPath(image_id, folder / (plain if "/../" in f"/{plain}" else tidy))
    if plain.isascii() or os.path.lexists(found.path):
        return found
    forms: tuple[Literal["NFC"], Literal["NFD"]] = ("NFC", "NFD")
    for form in forms:
        other = unicodedata.normalize(form, plain)
        if other != plain and os.path.lexists(folder / other):
            return FoundPath(image_id, folder / other, is_respelled=True)
    return found


def _refuse_foreign(text: str, where: str) -> None:
    if os.name != "nt" and (_DRIVE.match(text) or text.startswith("\\\\")):
        kind = "a path of a Windows machine" if _DRIVE.match(text) else "a network path of Windows"
        raise DataError(
            f"{where}: path is {text!r}, {kind}, which is not reached from here. Copy the images beside the table, and "
            "write their paths relative to it: photographs/a.jpg."
        )
    if _SCHEME.match(text) and not text.lower().startswith("file://"):
        raise DataError(
            f"{where}: path is {text!r}, an address; only files are read. Download the images, and write their paths "
            "relative to the table: photographs/a.jpg."
        )


def _read_uri(text: str, where: str) -> str:
    parts = urlsplit(text)
    if parts.netloc.lower() not in _LOCAL_HOSTS:
        raise DataError(
            f"{where}: path is {text!r}, a file of the machine {parts.netloc!r}; write file:///… or a path."
        )
    return unquote(parts.path)
