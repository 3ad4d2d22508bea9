"""The parts of an index's images, for re-ranking: computed when they are first needed, and kept beside the index.

``parts.sqlite`` holds them as bytes (``rerank/parts.py``) by the name of the image. Beside them stands a digest of the
image's vector: an image that was embedded anew has another one, so that parts of a picture that has changed are not
taken. What an index no longer holds is dropped when all parts are computed.
"""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vitrieve.data.records import ImageRecord
from vitrieve.errors import ConfigError, DecodeError, FingerprintError, first_line
from vitrieve.index.open import open_index, require_encoder
from vitrieve.index.store import VectorStore, read_info
from vitrieve.progress import print_message, track
from vitrieve.rerank.names import AUTO, NO_RERANKING
from vitrieve.rerank.parts import ByteArray, PartKind, compute_parts, stack_parts
from vitrieve.rerank.remember import KeptReranking, save_kept
from vitrieve.runtime.encoder import Encoder

if TYPE_CHECKING:
    from vitrieve.evaluation.protocols import EvaluationData
    from vitrieve.evaluation.run import Evaluation

PARTS_NAME = "parts.sqlite"
WAIT_SECONDS = 30.0
FILL_SIZE = 256
"""Images whose parts are computed and written at a time."""
_TABLE = (
    "CREATE TABLE IF NOT EXISTS parts (kind TEXT, image_id TEXT, digest BLOB, num_parts INTEGER, parts BLOB, "
    "PRIMARY KEY (kind, image_id)) WITHOUT ROWID"
)


class PartStore:
    """The parts of the images of one index; threads and processes may share its file.

    Args:
        folder: Folder of the index; None: nothing is kept, and parts are computed again each time.
        encoder: Encoder of the index.
    """

    def __init__(self, folder: Path | None, encoder: Encoder) -> None:
        self._path = None if folder is None else folder / PARTS_NAME
        self._encoder = encoder
        self._is_told = False

    def find(self, kind: PartKind, records: Sequence[ImageRecord], vectors: np.ndarray) -> ByteArray:
        """Return the parts of images, and compute those that are missing.

        Args:
            kind: Which parts.
            records: Images of the index, at least one.
            vectors: ``(N, E)`` their vectors in the index.

        Returns:
            ``(N, P, D)`` bytes; zeros for an image that cannot be read any more.

        Raises:
            DecodeError: None of the images can be read.
            ConfigError: The encoder puts out no patches.
        """
        return stack_parts(self._find(kind, records, vectors))

    def _find(self, kind: PartKind, records: Sequence[ImageRecord], vectors: np.ndarray) -> list[ByteArray | None]:
        digests = [hashlib.blake2b(vector.tobytes(), digest_size=16).digest() for vector in vectors]
        found = self._read(kind, records, digests)
        missing = [row for row, one in enumerate(found) if one is None]
        computed = compute_parts(self._encoder, [records[row] for row in missing], kind)
        for row, one in zip(missing, computed, strict=True):
            found[row] = one
        self._write(kind, [(records[row].image_id, digests[row], found[row]) for row in missing])
        return found

    def fill(self, kind: PartKind, store: VectorStore, *, show_progress: bool = False) -> int:
        """Compute what is missing for every image of an index, and drop what it no longer holds.

        Args:
            kind: Which parts.
            store: The index.
            show_progress: Report progress on standard error.

        Returns:
            Bytes of the parts of all images that can be read.

        Raises:
            DecodeError: None of the images can be read.
            ConfigError: As ``find``.
        """
        image_ids = sorted(store.image_ids())
        starts = range(0, len(image_ids), FILL_SIZE)
        num_bytes = 0
        with closing(
            track(starts, f"{kind} of the index", total=len(image_ids), weight=FILL_SIZE, is_shown=show_progress)
        ) as tracked:
            for start in tracked:
                vectors, records = store.get(image_ids[start : start + FILL_SIZE])
                num_bytes += sum(one.nbytes for one in self._find(kind, records, vectors) if one is not None)
        if image_ids and not num_bytes:
            stack_parts([None] * len(image_ids))  # says so
        self._drop_others(image_ids)
        return num_bytes

    def _read(self, kind: PartKind, records: Sequence[ImageRecord], digests: Sequence[bytes]) -> list[ByteArray | None]:
        found: list[ByteArray | None] = [None] * len(records)
        if self._path is None or not self._path.is_file():
            return found
        with self._forgiving(), self._open() as connection:
            if not connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'parts'").fetchone():
                return found  # whoever made the file was stopped before it wrote anything
            for number, (record, digest) in enumerate(zip(records, digests, strict=True)):
                row = connection.execute(
                    "SELECT num_parts, parts FROM parts WHERE kind = ? AND image_id = ? AND digest = ?",
                    (kind, record.image_id, digest),
                ).fetchone()
                if row is not None:
                    found[number] = np.frombuffer(row[1], dtype=np.int8).reshape(row[0], -1)
        return found

    def _write(self, kind: PartKind, parts: Sequence[tuple[str, bytes, ByteArray | None]]) -> None:
        rows = [(kind, name, digest, len(one), one.tobytes()) for name, digest, one in parts if one is not None]
        if self._path is None or not rows:
            return
        with self._forgiving(), self._open() as connection:
            connection.execute(_TABLE)
            connection.executemany("INSERT OR REPLACE INTO parts VALUES (?, ?, ?, ?, ?)", rows)

    def _drop_others(self, image_ids: Sequence[str]) -> None:
        if self._path is None or not self._path.is_file():
            return
        with self._forgiving(), self._open() as connection:
            connection.execute("CREATE TEMPORARY TABLE kept (image_id TEXT PRIMARY KEY) WITHOUT ROWID")
            connection.executemany("INSERT INTO kept VALUES (?)", ((name,) for name in image_ids))
            connection.execute("DELETE FROM parts WHERE image_id NOT IN (SELECT image_id FROM kept)")

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        """Open the file for one change or several reads: a connection belongs to its thread."""
        assert self._path is not None
        with closing(sqlite3.connect(self._path, timeout=WAIT_SECONDS)) as connection, connection:
            yield connection

    @contextmanager
    def _forgiving(self) -> Iterator[None]:
        """Go on where the file cannot be used, because what it holds can be computed again.

        A full disk, no right to write or another process that keeps the file are told of once and cost time. A damaged
        file is removed.
        """
        assert self._path is not None
        try:
            yield
        except sqlite3.OperationalError as error:
            self._tell(f"cannot be used ({error}): parts of pictures that it lacks are computed for every search.")
        except sqlite3.DatabaseError as error:
            self._path.unlink(missing_ok=True)
            self._tell(f"was damaged ({error}) and is removed: parts of pictures are computed and kept again.")

    def _tell(self, what: str) -> None:
        if not self._is_told:
            print_message(f"{self._path} {what}")
        self._is_told = True


def check_remembers(index: Path | str, encoders: Sequence[Encoder], data: EvaluationData, rerank: str) -> None:
    """Refuse, before anything is measured, what an index could not remember.

    Args:
        index: Folder of the index.
        encoders: What is to be measured.
        data: What it is to be measured on.
        rerank: Re-ranking that is asked for.

    Raises:
        ConfigError: Not one choice is asked for.
        ArtifactError: The index cannot be read.
        FingerprintError: It was made by another encoder.
    """
    if rerank != AUTO or len(encoders) != 1 or len(data.datasets) != 1:
        raise ConfigError(
            "an index remembers the one re-ranking that --rerank auto keeps: give --index with --rerank auto, one "
            "encoder and one protocol."
        )
    info, _ = read_info(Path(index))
    require_encoder(info, encoders[0], advice="Evaluate the index's own encoder.")


def keep_reranking(
    evaluation: Evaluation, index: Path | str, encoder: Encoder, *, show_progress: bool = False
) -> KeptReranking:
    """Let an index remember the re-ranking that an evaluation chose, for searches that leave the choice to it.

    ``keep_reranking(evaluate(encoder, "grocery", rerank="auto"), "index", encoder)``. That none was better is
    remembered, too. Where the choice compares parts of pictures, those of all images of the index are computed now and
    kept beside it; where none of its pictures can be read, a message says so.

    Args:
        evaluation: Evaluation of one encoder under one protocol with ``rerank="auto"``.
        index: Folder of the index.
        encoder: The encoder that was measured, which made the index.
        show_progress: Report progress on standard error.

    Returns:
        What the index remembers.

    Raises:
        ConfigError: The evaluation chose nothing, or several times.
        FingerprintError: The index was made by another encoder, or another one was measured.
        ArtifactError: The index cannot be read or written.
    """
    choices = [report for report in evaluation.rerankings if report.chooses]
    if len(choices) != 1:
        raise ConfigError(
            f"the evaluation chose a re-ranking {len(choices)} times; an index remembers one: measure one encoder "
            "under one protocol with --rerank auto."
        )
    (choice,) = choices
    info, _ = read_info(Path(index))
    require_encoder(info, encoder, advice="Give the index's own encoder.")
    if choice.fingerprint != encoder.fingerprint:
        raise FingerprintError("the evaluation measured another encoder than the index's; give the one it measured.")
    name, head = (NO_RERANKING, None) if choice.chosen is None else (choice.chosen.name, choice.chosen.head)
    kept = KeptReranking(name=name, fingerprint=choice.fingerprint, reason=choice.reason, head=head)
    save_kept(kept, index)
    if choice.chosen is not None and choice.chosen.parts is not None:
        with closing(open_index(index)) as store:
            try:
                PartStore(Path(index), encoder).fill(choice.chosen.parts, store, show_progress=show_progress)
            except DecodeError as error:  # the choice counts, and searches compute what they need
                print_message(
                    f"the index remembers {name}, but holds no parts of its pictures yet: {first_line(error)}"
                )
    return kept
