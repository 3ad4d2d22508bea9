"""The exact store: a memory-mapped matrix, compared whole. Next: ``search/searcher.py``.

The folder holds ``vectors.npy`` (``(N, E)`` float32), ``rows.parquet`` (one row a vector) and the manifest with
the encoder's fingerprint. Exact search finds what ``similarity.top_k`` finds, at the speed of a float32 product:
the product only chooses candidates, with a bound on its error, and the candidates are compared exactly.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from vitrieve.artifacts import prepare_folder, read_manifest, sync_file, write_manifest
from vitrieve.data.records import ImageRecord
from vitrieve.embed.collection import ROWS_NAME, VECTORS_NAME, Embeddings, load_embeddings, read_vectors_file
from vitrieve.embed.rows import build_table, read_rows, to_records
from vitrieve.errors import ArtifactError, DataError
from vitrieve.similarity import FloatArray, IntArray, as_embeddings, top_k

BLOCK_ROWS = 65_536
"""Vectors checked and copied at a time."""
BLOCK_BYTES = 128 * 2**20
"""Memory for the similarities of the queries that are compared at one time."""
NORM_TOLERANCE = 1e-3
"""How far from one the length of an L2-normalised float32 row may be."""


@dataclass(frozen=True)
class ExactStore:
    """An index on disk, open for searching.

    Attributes:
        vectors: ``(N, E)`` float32, L2-normalised, a read-only memory map.
        rows: The table of ``embed/rows.py``, one row a vector.
        fingerprint: Of the encoder that made the vectors, and must make the queries.
        encoder_source: Where that encoder came from: a folder or a weights name.
        image_size: Side of that encoder's input in pixels.
        license: Licence and attribution of the images; empty when unknown.
    """

    vectors: np.ndarray
    rows: pa.Table
    fingerprint: str
    encoder_source: str
    image_size: int
    license: str

    @classmethod
    def open(cls, folder: Path | str) -> ExactStore:
        """Open an index.

        Raises:
            ArtifactError: The folder is missing, unfinished, damaged or of another kind.
        """
        folder = Path(folder)
        manifest = read_manifest(folder, "index")
        rows = read_rows(folder / ROWS_NAME)
        return cls(
            vectors=read_vectors_file(folder / VECTORS_NAME, (rows.num_rows, manifest["embedding_dim"])),
            rows=rows,
            fingerprint=manifest["fingerprint"],
            encoder_source=manifest["encoder_source"],
            image_size=manifest["image_size"],
            license=manifest["license"],
        )

    def __len__(self) -> int:
        """Count the vectors."""
        return len(self.vectors)

    def search(self, queries: np.ndarray, k: int) -> tuple[FloatArray, IntArray]:
        """Find the nearest rows of every query, exactly.

        Args:
            queries: ``(Q, E)`` embeddings of the same encoder.
            k: Neighbours to return, at least 1.

        Returns:
            Similarities ``(Q, K)`` float32, falling, and rows ``(Q, K)`` int64, K = min(k, N); ties ordered by row.

        Raises:
            InputError: ``k`` below 1, another width, or a number that is not finite.
        """
        queries = as_embeddings(queries, "query embeddings")
        if not 1 <= k < len(self) or queries.shape[1] != self.vectors.shape[1]:
            return top_k(queries, self.vectors, k)  # everything is wanted, or nothing fits
        size = max(1, BLOCK_BYTES // (4 * len(self)))
        found = [self._search_block(queries[start : start + size], k) for start in range(0, len(queries), size)]
        if not found:
            return np.empty((0, k), dtype=np.float32), np.empty((0, k), dtype=np.int64)
        return np.concatenate([one[0] for one in found]), np.concatenate([one[1] for one in found])

    def _search_block(self, queries: FloatArray, k: int) -> tuple[FloatArray, IntArray]:
        approximate = queries @ np.asarray(self.vectors).T  # (Q, N)
        similarities = np.empty((len(queries), k), dtype=np.float32)
        rows = np.empty((len(queries), k), dtype=np.int64)
        for i, query in enumerate(queries):
            kth = np.partition(approximate[i], -k)[-k]
            candidates = np.flatnonzero(approximate[i] >= kth - 2 * _error_bound(query))  # rising: ties stay in order
            nearest, places = top_k(query[None], self.vectors[candidates], k)
            similarities[i], rows[i] = nearest[0], candidates[places[0]]
        return similarities, rows

    def records(self, rows: Sequence[int] | IntArray) -> tuple[ImageRecord, ...]:
        """Return the images of some rows, in that order."""
        return to_records(self.rows.take(pa.array(rows, type=pa.int64())))


def _error_bound(query: FloatArray) -> np.float32:
    """Bound the distance of a float32 product with a normalised row from the exact similarity.

    Summing E rounded products in any order errs by less than about ``E * 2^-24`` of the product of the norms; the
    grid and the rounding of ``similarity.py`` add less than that again. Doubled for the norms' tolerance.
    """
    return np.float32(query.size * 2.0**-22 * max(1.0, float(np.linalg.norm(query))))


def build_index(embeddings: Embeddings | Path | str, out: Path | str, *, is_overwrite: bool = False) -> ExactStore:
    """Make embeddings searchable.

    Args:
        embeddings: Embeddings in memory, or their folder.
        out: Folder to write.
        is_overwrite: Replace what is there.

    Returns:
        The index, open for searching.

    Raises:
        ArtifactError: ``embeddings`` cannot be read, or ``out`` is not free.
        DataError: No vector, vectors that are not normalised or not finite, or an ``image_id`` that occurs twice.
    """
    source = embeddings if isinstance(embeddings, Embeddings) else load_embeddings(embeddings)
    _check(source)
    out = Path(out)
    if not isinstance(embeddings, Embeddings) and out.resolve() == Path(embeddings).resolve():
        raise ArtifactError(f"{out} is the folder of the embeddings; give another --out.")
    prepare_folder(out, is_overwrite=is_overwrite, is_resumable=False)
    _copy_vectors(source.vectors, out / VECTORS_NAME)
    pq.write_table(build_table(source.records, [None] * len(source.records), 0), out / ROWS_NAME)
    sync_file(out / ROWS_NAME)
    manifest = {
        "fingerprint": source.fingerprint,
        "encoder_source": source.encoder_source,
        "image_size": source.image_size,
        "store": "exact",
        "embedding_dim": source.vectors.shape[1],
        "dtype": "float32",
        "num_vectors": len(source.vectors),
        "license": source.license,
    }
    write_manifest(out, "index", manifest)
    return ExactStore.open(out)


def _check(embeddings: Embeddings) -> None:
    if not len(embeddings.vectors):
        raise DataError("there is no embedding to index.")
    for start in range(0, len(embeddings.vectors), BLOCK_ROWS):
        norms = np.linalg.norm(embeddings.vectors[start : start + BLOCK_ROWS], axis=1)
        # Written so that NaN counts as wrong. A length of zero is what normalising zeros gives.
        wrong = np.flatnonzero(~((np.abs(norms - 1) <= NORM_TOLERANCE) | (norms == 0)))
        if wrong.size:
            image_id = embeddings.records[start + int(wrong[0])].image_id
            raise DataError(
                f"the vector of {image_id} has the length {norms[wrong[0]]:.4g}; "
                "vectors must be finite and L2-normalised."
            )
    seen: set[str] = set()
    for record in embeddings.records:
        if record.image_id in seen:
            raise DataError(f"the image_id {record.image_id!r} occurs twice; every image needs its own.")
        seen.add(record.image_id)


def _copy_vectors(vectors: np.ndarray, path: Path) -> None:
    """Write ``vectors`` as float32 in blocks, so that a collection larger than the memory can be indexed."""
    copy = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=vectors.shape)
    for start in range(0, len(vectors), BLOCK_ROWS):
        copy[start : start + BLOCK_ROWS] = vectors[start : start + BLOCK_ROWS]
    copy.flush()
    sync_file(path)
