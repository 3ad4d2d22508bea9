"""What an index remembers beside its vectors: the threshold of ``calibrate`` and the re-ranking of ``evaluate``."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from vitrieve.errors import ArtifactError
from vitrieve.index.folder import FileStamp, read_stamp
from vitrieve.rerank.remember import RERANKER_NAME, KeptReranking, load_kept
from vitrieve.search.threshold import THRESHOLD_NAME, Threshold, load_threshold


class Remembered(NamedTuple):
    """What an index remembers at one moment.

    Attributes:
        threshold: Score from which on a result is a match; None: none was calibrated.
        kept: Re-ranking for requests that leave the choice to the index; None: none was measured.
    """

    threshold: Threshold | None = None
    kept: KeptReranking | None = None


class KeptRemembered:
    """What an index remembers now: read when it is opened, and again when a command wrote it; for several threads.

    Args:
        folder: Folder of the index.

    Raises:
        ArtifactError: A file is damaged.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._held = self._read()

    @property
    def held(self) -> Remembered:
        """Return what was read last, of whichever encoder."""
        return self._held[1]

    def find(self, fingerprint: str) -> Remembered:
        """Return what an index of this encoder remembers; raises as the class.

        What was measured with another encoder is left out: it is written where another index took the place of this.
        """
        if self._held[0] != self._read_stamps():
            self._held = self._read()
        threshold, kept = self.held
        return Remembered(
            threshold=threshold if threshold is None or threshold.fingerprint == fingerprint else None,
            kept=kept if kept is None or kept.fingerprint == fingerprint else None,
        )

    def _read(self) -> tuple[list[FileStamp | None], Remembered]:
        while True:
            stamps = self._read_stamps()
            try:
                return stamps, Remembered(load_threshold(self._folder), load_kept(self._folder))
            except ArtifactError:
                if stamps == self._read_stamps():  # not written anew while it was read
                    raise

    def _read_stamps(self) -> list[FileStamp | None]:
        return [read_stamp(self._folder / name) for name in (THRESHOLD_NAME, RERANKER_NAME)]
