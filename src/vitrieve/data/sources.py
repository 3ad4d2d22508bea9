"""The one spelling of every image source, ``NAME:PATH``, and the reader behind each name.

``grocery:DIR``, ``emoji``, ``folder:DIR``, ``manifest:FILE``; an existing folder alone means ``folder:DIR``.
Next file: ``grocery.py``.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from vitrieve.data import emoji, folder, grocery, manifest
from vitrieve.data.records import Dataset
from vitrieve.errors import DataError, unknown_name_message


@dataclass(frozen=True, kw_only=True)
class _Source:
    """A name of the spelling.

    Attributes:
        path_kind: What stands after the colon (``DIR`` or ``FILE``); None when nothing does.
        protocols: Names of its protocols, the default first.
        read: Reads the path (empty when there is none) under a protocol.
    """

    path_kind: str | None
    protocols: tuple[str, ...]
    read: Callable[[str, str], Dataset]


def read_source(source: str, *, protocol: str | None = None) -> Dataset:
    """Read a data set with labels, splits and roles.

    Args:
        source: ``NAME:PATH``, or an existing folder with one subfolder for each class. A name wins over a folder
            of that name; write ``./emoji`` for the folder.
        protocol: One of ``list_protocols(source)``; None for the first.

    Raises:
        DataError: Unknown name or protocol, or the source cannot be read.
    """
    name, path = _split_source(source)
    chosen = _SOURCES[name]
    if protocol is not None and protocol not in chosen.protocols:
        raise DataError(unknown_name_message(f"protocol of {name}", protocol, chosen.protocols))
    return chosen.read(path, protocol or chosen.protocols[0])


def read_collection(source: str, *, protocol: str | None = None) -> Dataset:
    """Read what is to be embedded: a source, or any folder of images.

    Args:
        source: As for ``read_source``; a folder alone is searched at any depth and needs no class folders. Its
            images all get label 0.
        protocol: One of the source's protocols, where those hold different images; None for the first.

    Raises:
        DataError: Unknown name or protocol, or nothing that can be read.
    """
    name, path = _split_source(source)
    if name == "folder" and path == source and protocol is None:
        return folder.read_flat_folder(_path(path))
    return read_source(source, protocol=protocol)


def list_protocols(source: str) -> tuple[str, ...]:
    """Name the protocols of a source, the default first.

    >>> list_protocols("grocery:anywhere")
    ('zero_shot', 'phone_to_catalogue')

    Raises:
        DataError: Unknown name.
    """
    return _SOURCES[_split_source(source)[0]].protocols


def _split_source(source: str) -> tuple[str, str]:
    """Split ``NAME:PATH``; a bare folder is ``folder`` with the whole source as its path."""
    name, colon, path = source.partition(":")
    if name in _SOURCES:
        kind = _SOURCES[name].path_kind
        if kind and not path:
            raise DataError(f"{source!r} lacks a path; write {name}:{kind}.")
        if colon and not kind:
            raise DataError(f"{source!r}: {name} takes no path; write {name}.")
        return name, path
    is_path = source != "" and (_path(source).exists() or "/" in source)
    if is_path and _path(source).is_dir():
        return "folder", source
    if is_path and not colon:
        raise DataError(f"{source} is not a folder that exists. Give one, or write {_spellings()}.")
    raise DataError(f"{unknown_name_message('source', name, _SOURCES)} Write {_spellings()}, or an existing folder.")


def _spellings() -> str:
    return ", ".join(f"{name}:{chosen.path_kind}" if chosen.path_kind else name for name, chosen in _SOURCES.items())


def _path(text: str) -> Path:
    # The shell expands ~ only at the start of a word, not after "folder:". Path.expanduser raises for an unknown user.
    return Path(os.path.expanduser(text))


_SOURCES = {
    "grocery": _Source(
        path_kind="DIR",
        protocols=grocery.PROTOCOLS,
        read=lambda path, protocol: grocery.read_grocery(_path(path), protocol),
    ),
    "emoji": _Source(path_kind=None, protocols=emoji.PROTOCOLS, read=lambda _, protocol: emoji.read_emoji(protocol)),
    "folder": _Source(
        path_kind="DIR",
        protocols=folder.PROTOCOLS,
        read=lambda path, protocol: folder.read_folder(_path(path), protocol),
    ),
    "manifest": _Source(
        path_kind="FILE",
        protocols=manifest.PROTOCOLS,
        read=lambda path, protocol: manifest.read_manifest_file(_path(path), protocol),
    ),
}
