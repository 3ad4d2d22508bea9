"""Embeddings: vectors and the records that they belong to, in memory and as a folder.

The folder holds ``vectors.npy`` (``(N, E)`` float32, good images only), ``rows.parquet`` (every image, with its status)
and the manifest.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from vitrieve.artifacts import read_manifest, replacing_folder, write_manifest
from vitrieve.data.records import ImageRecord, read_boxes
from vitrieve.embed.rows import STATUS_OK, StoredRecords, read_rows, to_records
from vitrieve.errors import ArtifactError, DataError
from vitrieve.progress import print_message
from vitrieve.quoting import count_nouns, quote_name
from vitrieve.writing import write_bytes_durably, write_vectors_durably

VECTORS_NAME = "vectors.npy"
ROWS_NAME = "rows.parquet"


MAX_HELD_RECORDS = 100_000
"""Records that loaded embeddings hold in memory, which takes a kilobyte for each; of more, they are read when they are
asked for."""
MAPPED_BLOCK_SIZE = 8192
"""Vectors that are mapped at a time."""


@dataclass(frozen=True, kw_only=True)
class Embeddings:
    """The embeddings of a collection.

    Attributes:
        vectors: ``(N, E)`` float32, L2-normalized; a read-only memory map when loaded from disk.
        records: The ``N`` images that have a vector, in the order of the rows: a tuple, or what reads them from disk
            when they are asked for.
        failures: ``(image_id, reason)`` of every image that has none.
        fingerprint: Fingerprint of the encoder.
        encoder_source: Origin of the encoder: a folder or a weights name.
        image_size: Side of the encoder's input in pixels.
        license: License and attribution of the images; empty when unknown.
    """

    vectors: np.ndarray
    records: Sequence[ImageRecord]
    failures: tuple[tuple[str, str], ...]
    fingerprint: str
    encoder_source: str
    image_size: int
    license: str = ""

    def __post_init__(self) -> None:
        """Check that vectors and records belong together."""
        if self.vectors.ndim != 2 or self.vectors.dtype != np.float32:
            raise DataError(f"vectors must be (N, E) float32, not {self.vectors.shape} {self.vectors.dtype}.")
        if len(self.vectors) != len(self.records):
            raise DataError(f"{len(self.vectors)} vectors do not belong to {len(self.records)} records.")


def find_other_region(embeddings: Embeddings, rows: Iterable[int], wanted: Sequence[ImageRecord]) -> str | None:
    """Find an image whose vector is of another region of it than the one that is wanted.

    A picture in a shard is no region of the file that it was packed from, but what was in the box.

    Args:
        embeddings: Embeddings of the images, and perhaps of others.
        rows: Row of each image, as many as there are images.
        wanted: The images, of the same names.

    Returns:
        Its name; None where there is none.
    """
    stored = {row: box for row, box in enumerate(read_boxes(embeddings.records)) if box is not None}
    for place, (row, box) in enumerate(zip(rows, read_boxes(wanted), strict=True)):
        if box != stored.get(row) and embeddings.records[row].path.name == wanted[place].path.name:
            return wanted[place].image_id
    return None


def tell_other_files(embeddings: Embeddings, rows: Iterable[int], wanted: Sequence[ImageRecord]) -> None:
    """Say how many vectors were computed from other files, of the same names in other folders, which are still there.

    Args:
        embeddings: Embeddings of the images, and perhaps of others.
        rows: Row of each image, as many as there are images.
        wanted: The images, of the same names.
    """
    find_real = functools.cache(Path.resolve)  # of each folder once
    pairs = [(embeddings.records[row].path, one.path) for row, one in zip(rows, wanted, strict=True)]
    others = [
        (stored, now)
        for stored, now in pairs
        if stored.name == now.name and find_real(stored.parent) != find_real(now.parent) and stored.exists()
    ]
    if others:
        counted = count_nouns(len(others), "vector was", "vectors were")
        stored, now = map(quote_name, others[0])
        print_message(
            f"{counted} computed from other files of the same names ({stored}; the data has {now}). If the pictures "
            "differ, embed those of the data (vitrieve embed)."
        )


def tell_changed_files(folder: Path, wanted: Sequence[ImageRecord]) -> None:
    """Say how many pictures were written since their vectors were computed.

    Args:
        folder: Folder of the embeddings; older ones do not say when they were begun.
        wanted: Images that have a vector there.
    """
    begun = read_manifest(folder, "embeddings").get("begun")
    if not isinstance(begun, int | float):
        return

    @functools.cache
    def is_written_since(path: Path) -> bool:
        """Ask the disk of a file, once for all its regions; one that is gone, or in a shard, has not changed."""
        try:
            return path.stat().st_mtime > begun
        except OSError:
            return False

    changed = [record for record in wanted if is_written_since(record.path)]
    if changed:
        counted = count_nouns(len(changed), "picture was", "pictures were")
        print_message(
            f"{counted} written after {folder} was begun, the first of them {quote_name(changed[0].image_id)}. If they "
            f"show something else now, embed them again (vitrieve embed --reuse {folder})."
        )


def write_mapped_embeddings(
    source: Path,
    out: Path,
    map_block: Callable[[np.ndarray], np.ndarray],
    *,
    manifest: Mapping[str, Any],
    is_overwrite: bool = False,
) -> Embeddings:
    """Write embeddings that are made of stored ones, a block at a time; the pictures are not read.

    Args:
        source: Folder of the stored embeddings.
        out: Folder to write.
        map_block: Function from ``(n, D)`` to ``(n, E)`` float32, rows of unit length.
        manifest: ``fingerprint``, ``encoder_source`` and ``embedding_dim`` of the encoder that the new ones are of.
        is_overwrite: Replace what ``out`` holds.

    Returns:
        The new embeddings, read back from the folder.

    Raises:
        ArtifactError: ``source`` cannot be read, or ``out`` is not free.
    """
    vectors = load_embeddings(source).vectors
    blocks = (
        map_block(vectors[start : start + MAPPED_BLOCK_SIZE]) for start in range(0, len(vectors), MAPPED_BLOCK_SIZE)
    )
    with replacing_folder(out, kind="embeddings", is_overwrite=is_overwrite, is_resumable=False) as folder:
        write_vectors_durably(folder / VECTORS_NAME, (len(vectors), manifest["embedding_dim"]), blocks)
        rows = (source / ROWS_NAME).read_bytes()
        write_bytes_durably(folder / ROWS_NAME, rows)
        write_manifest(folder, "embeddings", {**read_manifest(source, "embeddings"), **manifest})
    return load_embeddings(out)


def load_embeddings(folder: Path | str) -> Embeddings:
    """Load embeddings from a folder; the vectors stay on disk, as a memory map, and so do the records of many.

    Raises:
        ArtifactError: The folder is missing, unfinished, damaged or of another kind.
    """
    folder = Path(folder)
    manifest = read_manifest(folder, "embeddings")
    try:
        return _build_embeddings(folder, manifest, *_load_records(folder / ROWS_NAME))
    except ArtifactError:
        raise
    except (KeyError, TypeError, ValueError, OverflowError, pa.ArrowException) as error:
        raise ArtifactError(
            f"{folder} is damaged ({type(error).__name__}: {error}); make the embeddings again."
        ) from None


def _load_records(path: Path) -> tuple[Sequence[ImageRecord], tuple[tuple[str, str], ...]]:
    """Return the records of the good rows, and ``(image_id, reason)`` of the bad ones."""
    try:
        num_rows = pq.read_metadata(path).num_rows
    except (OSError, pa.ArrowException) as error:
        raise ArtifactError(f"{path} cannot be read ({error}); make the artifact again.") from None
    if num_rows > MAX_HELD_RECORDS:
        records = StoredRecords(path)
        return records, records.read_failures()
    table = read_rows(path)
    good = table.filter(pc.equal(table["status"], STATUS_OK))
    bad = table.filter(pc.not_equal(table["status"], STATUS_OK)).select(["image_id", "reason"]).to_pylist()
    return to_records(good), tuple((failure["image_id"], failure["reason"]) for failure in bad)


def _build_embeddings(
    folder: Path,
    manifest: Mapping[str, Any],
    records: Sequence[ImageRecord],
    failures: tuple[tuple[str, str], ...],
) -> Embeddings:
    vectors = read_vectors_file(folder / VECTORS_NAME, (len(records), manifest["embedding_dim"]))
    return Embeddings(
        vectors=vectors,
        records=records,
        failures=failures,
        fingerprint=manifest["fingerprint"],
        encoder_source=manifest["encoder_source"],
        image_size=manifest["image_size"],
        license=manifest["license"],
    )


def read_vectors_file(path: Path, shape: tuple[int, int]) -> np.ndarray:
    """Map the vectors of an artifact into memory, read-only.

    Raises:
        ArtifactError: The file is missing, damaged, or not float32 of ``shape``.
    """
    try:
        vectors: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # numpy reads the header as Python: a damaged one raises anything
        raise ArtifactError(f"{path} cannot be read ({error}); make the artifact again.") from None
    if vectors.shape != shape or vectors.dtype != np.float32:
        raise ArtifactError(
            f"{path} holds {vectors.shape} {vectors.dtype}, but its manifest and rows promise {shape} float32; "
            "make the artifact again."
        )
    return vectors
