"""An index whose photographs lie under another path now: in a container, or on another machine.

The index is not changed; the paths of its images are replaced as they are read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np

from vitrieve.data.records import ImageRecord
from vitrieve.errors import ConfigError
from vitrieve.index.filter import FilterLike
from vitrieve.index.store import Hit, VectorStore


class PathMap(NamedTuple):
    """A folder that the index names, and where it is now.

    Attributes:
        old: Absolute path, as it was when the index was made.
        new: Absolute path of the same folder here.
    """

    old: Path
    new: Path


def parse_path_map(text: str) -> PathMap:
    """Read ``OLD=NEW``.

    Raises:
        ConfigError: There is no ``=``, or one of the two is no absolute path.

    >>> parse_path_map("/srv/photos=/photos").new
    PosixPath('/photos')
    """
    old, separator, new = text.partition("=")
    if not separator or not Path(old).is_absolute() or not Path(new).is_absolute():
        raise ConfigError(
            f"--map-path is {text!r}; expected OLD=NEW with two absolute paths: --map-path /home/me/photos=/photos."
        )
    return PathMap(Path(old), Path(new))


def map_paths(store: VectorStore, maps: Sequence[PathMap]) -> VectorStore:
    """Wrap a store so that the images it returns lie where they are now; without maps it is returned as it is."""
    return cast(VectorStore, _MappedStore(store, maps)) if maps else store


class _MappedStore:
    """A store whose images have other paths; everything else is the store's."""

    def __init__(self, store: VectorStore, maps: Sequence[PathMap]) -> None:
        self._store = store
        # Of two folders, one in the other, the inner one says more.
        self._maps = sorted(maps, key=lambda one: -len(one.old.parts))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def search(self, queries: np.ndarray, k: int, filter: FilterLike = ()) -> list[list[Hit]]:
        """Search the store."""
        return [
            [replace(hit, record=self._move(hit.record)) for hit in hits]
            for hits in self._store.search(queries, k, filter)
        ]

    def get(self, image_ids: Sequence[str]) -> tuple[np.ndarray, list[ImageRecord]]:
        """Read from the store."""
        vectors, records = self._store.get(image_ids)
        return vectors, [self._move(record) for record in records]

    def _move(self, record: ImageRecord) -> ImageRecord:
        for old, new in self._maps:
            if record.path.is_relative_to(old):
                return replace(record, path=new / record.path.relative_to(old))
        return record
