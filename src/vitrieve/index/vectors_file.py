"""Vectors of a file, read when they are needed.

They are not mapped into memory: where a mapped file is cut short, or its disk fails or is pulled out, while a search
reads it, the system ends the process with a bus error. A read raises, and the search is refused in one line.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from vitrieve.embed.collection import read_vectors_file
from vitrieve.errors import ArtifactError

BLOCK_BYTES = 2**22
"""Read at a time: what the processor's cache holds is multiplied while it is there."""
MIN_SHARE = 8
"""From one row in so many on, reading all of them is faster than one after the other."""


class VectorsFile:
    """``(N, E)`` float32 in a ``.npy`` file that never changes; the file stays readable when it is removed.

    Args:
        path: The file.
        shape: ``(N, E)``.

    Raises:
        ArtifactError: The file is missing, damaged, or not float32 of ``shape``.
    """

    def __init__(self, path: Path, shape: tuple[int, int]) -> None:
        self.shape = shape
        self._path = path
        try:
            self._descriptor = os.open(path, os.O_RDONLY)
        except OSError as error:
            raise ArtifactError(f"{path} cannot be read ({error}); make the artifact again.") from None
        weakref.finalize(self, os.close, self._descriptor)
        self._offset = int(getattr(read_vectors_file(path, shape), "offset", 0))
        self._held: np.ndarray | None = None

    def __len__(self) -> int:
        return self.shape[0]

    def hold(self) -> None:
        """Keep all vectors in memory from now on."""
        if self._held is None:
            self._held = self._read(0, len(self))

    def blocks(self) -> Iterator[np.ndarray]:
        """Yield the vectors in blocks of rows, in order; a block is valid until the next one.

        Raises:
            ArtifactError: The file was cut short, or its disk fails.
        """
        if self._held is not None:
            yield self._held
            return
        num_rows = max(1, BLOCK_BYTES // (4 * self.shape[1]))
        buffer = np.empty((min(num_rows, len(self)), self.shape[1]), dtype=np.float32)
        for start in range(0, len(self), num_rows):
            yield self._read(start, min(start + num_rows, len(self)), buffer)

    def take(self, rows: np.ndarray) -> np.ndarray:
        """Return some rows, ``(n, E)``, in the order that is asked for; raises as ``blocks``."""
        if self._held is not None:
            return np.asarray(self._held[rows])
        if len(rows) * MIN_SHARE >= len(self):
            return np.asarray(self._read(0, len(self))[rows])
        taken = np.empty((len(rows), self.shape[1]), dtype=np.float32)
        for place, row in enumerate(rows.tolist()):
            self._read(row, row + 1, taken[place : place + 1])
        return taken

    def _read(self, start: int, stop: int, buffer: np.ndarray | None = None) -> np.ndarray:
        """Read the rows from ``start`` to ``stop``, into the beginning of ``buffer`` if one is given."""
        rows = np.empty((stop - start, self.shape[1]), np.float32) if buffer is None else buffer[: stop - start]
        left = memoryview(rows.data).cast("B") if rows.size else memoryview(b"")
        place = self._offset + 4 * self.shape[1] * start
        while left:
            try:
                num_read = os.preadv(self._descriptor, [left], place)
            except OSError as error:
                raise ArtifactError(f"{self._path} cannot be read ({error.strerror}).") from None
            if not num_read:
                raise ArtifactError(f"{self._path} is not what was written: it has been cut short.")
            left, place = left[num_read:], place + num_read
        return rows
