"""What an index remembers beside its vectors: the threshold of ``calibrate`` and the re-ranking of ``evaluate``."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Generic, NamedTuple, TypeVar

from vitrieve.errors import ArtifactError
from vitrieve.index.folder import read_stamp
from vitrieve.rerank.remember import RERANKER_NAME, KeptReranking, load_kept
from vitrieve.search.threshold import THRESHOLD_NAME, Threshold, load_threshold

LOGGER = logging.getLogger("vitrieve.search")
Value = TypeVar("Value")


class Remembered(NamedTuple):
    """What an index remembers at one moment.

    Attributes:
        threshold: Score from which on a result is a match; None: none was calibrated.
        reranking: Re-ranking for requests that leave the choice to the index; None: none was measured.
    """

    threshold: Threshold | None = None
    reranking: KeptReranking | None = None


class _File(Generic[Value]):
    """One such file: it is read at the start, and again when it has changed; several threads may share it.

    Args:
        path: The file, which may be missing.
        load: Reads it from its folder; None: there is none.

    Raises:
        ArtifactError: The file is damaged.
    """

    def __init__(self, path: Path, load: Callable[[Path], Value | None]) -> None:
        self._path = path
        self._load = load
        self._lock = threading.Lock()
        self._stamp = read_stamp(path)
        self._value = self._read()

    def find(self) -> Value | None:
        """Return what the file holds now, or what it held last where it is damaged; a warning says so once."""
        with self._lock:
            stamp = read_stamp(self._path)
            if stamp != self._stamp:
                self._stamp = stamp
                try:
                    self._value = self._read()
                except ArtifactError as error:
                    LOGGER.warning("%s Until then, what it held before is used.", error)
            return self._value

    def _read(self) -> Value | None:
        while True:
            try:
                return self._load(self._path.parent)
            except ArtifactError:
                before, self._stamp = self._stamp, read_stamp(self._path)
                if before == self._stamp:  # not written anew while it was read
                    raise


class RememberedFiles:
    """The files of what an index remembers: read when it is opened, and again when a command wrote one.

    Several threads may share it.

    Args:
        folder: Folder of the index.

    Raises:
        ArtifactError: A file is damaged.
    """

    def __init__(self, folder: Path) -> None:
        self._threshold = _File(folder / THRESHOLD_NAME, load_threshold)
        self._reranking = _File(folder / RERANKER_NAME, load_kept)

    def read(self) -> Remembered:
        """Return what the files say, of whichever encoder. Of one that was damaged since, it is what it said last."""
        return Remembered(self._threshold.find(), self._reranking.find())

    def find(self, fingerprint: str) -> Remembered:
        """Return what ``read`` does, without what was measured with another encoder.

        A file with such a figure belongs to an index that has taken the place of this one.
        """
        threshold, reranking = self.read()
        return Remembered(
            threshold=threshold if threshold is None or threshold.fingerprint == fingerprint else None,
            reranking=reranking if reranking is None or reranking.fingerprint == fingerprint else None,
        )
