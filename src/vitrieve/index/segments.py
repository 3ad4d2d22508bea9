"""The files of the exact store: segments that never change, and the state that says which count.

A segment is ``NNNNNN.npy`` (vectors), ``NNNNNN.parquet`` (rows of ``embed/rows.py``) and, once images of it are
gone, ``NNNNNN.dead.npy`` of a later number. ``state.json`` names the segments that count and is replaced in one
step: a reader sees a change whole or not at all, and so does whoever comes after a crash.

Vectors are not mapped into memory: where a mapped file is cut short, or its disk fails or is pulled out, while a search
reads it, the system ends the process with a bus error. A read raises, and the search is refused in one line.
"""

from __future__ import annotations

import json
import os
import weakref
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, reduce
from operator import or_
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from vitrieve.embed.embeddings import read_vectors_file
from vitrieve.embed.rows import read_rows, take_rows
from vitrieve.errors import ArtifactError
from vitrieve.index.filter import NOTHING, Kinds, read_kinds
from vitrieve.index.folder import FileStamp, compute_checksum, read_stamp
from vitrieve.index.store import BLOCK_ROWS, find_wrong_norms
from vitrieve.quoting import count_nouns
from vitrieve.systems import READ, read_into
from vitrieve.writing import replacing_durably, write_text_durably, write_vectors_durably

STATE_NAME = "state.json"
FOLDER_NAME = "segments"
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
            self._descriptor = os.open(path, READ)
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
        for position, row in enumerate(rows.tolist()):
            self._read(row, row + 1, taken[position : position + 1])
        return taken

    def _read(self, start: int, stop: int, buffer: np.ndarray | None = None) -> np.ndarray:
        """Read the rows from ``start`` to ``stop``, into the beginning of ``buffer`` if one is given."""
        rows = np.empty((stop - start, self.shape[1]), np.float32) if buffer is None else buffer[: stop - start]
        left = memoryview(rows.data).cast("B") if rows.size else memoryview(b"")
        offset = self._offset + 4 * self.shape[1] * start
        while left:
            try:
                num_read = read_into(self._descriptor, left, offset)
            except OSError as error:
                raise ArtifactError(f"{self._path} cannot be read ({error.strerror}).") from None
            if not num_read:
                raise ArtifactError(f"{self._path} is not what was written: it has been cut short.")
            left, offset = left[num_read:], offset + num_read
        return rows


@dataclass(frozen=True)
class Segment:
    """The content of one segment, which never changes.

    Attributes:
        name: Stem of its files.
        vectors: ``(N, E)`` float32, in their file.
        rows: The images, one row a vector.
        checksums: CRC-32 of the two files.
        stamp: Stamp of the file of vectors when it was opened.
    """

    name: str
    vectors: VectorsFile
    rows: pa.Table
    checksums: tuple[int, int]
    stamp: FileStamp | None

    def is_untouched(self, folder: Path) -> bool:
        """Say whether the file of vectors is as it was."""
        return read_stamp(vectors_path(folder, self.name)) == self.stamp

    @cached_property
    def row_of(self) -> dict[str, int]:
        """Row of every ``image_id``."""
        return {image_id: row for row, image_id in enumerate(self.rows["image_id"].to_pylist())}

    @cached_property
    def _columns(self) -> dict[str, pa.DictionaryArray]:
        return {}

    def column(self, name: str) -> pa.DictionaryArray:
        """Return one metadata column: each distinct value once, and which one each row has (null: none)."""
        if name not in self._columns:
            values = pc.map_lookup(self.rows["metadata"].combine_chunks(), name, "first")
            self._columns[name] = values.dictionary_encode()
        return self._columns[name]


@dataclass(frozen=True)
class Part:
    """A segment, and which of its rows still count.

    Attributes:
        segment: The content.
        is_alive: ``(N,)`` bool.
        dead_name: File that holds the rows that do not count; None while all do.
        dead_checksum: CRC-32 of that file; None where there is none, or a version before this one wrote it.
    """

    segment: Segment
    is_alive: np.ndarray
    dead_name: str | None = None
    dead_checksum: int | None = None

    @cached_property
    def num_alive(self) -> int:
        """Count the rows that count."""
        return int(np.count_nonzero(self.is_alive))

    @cached_property
    def _kinds(self) -> dict[str, Kinds]:
        return {}

    def find_kinds(self, name: str) -> Kinds:
        """Find of which kinds the values of one metadata column are, in the rows that count."""
        if name not in self._kinds:
            column = self.segment.column(name)
            rows = column.indices.filter(pa.array(self.is_alive)).drop_null()
            texts = column.dictionary.take(rows.unique()).to_pylist()
            self._kinds[name] = reduce(or_, set(map(read_kinds, texts)), NOTHING)
        return self._kinds[name]

    def find(self, image_id: str) -> int | None:
        """Return the row of an image; None when it is not here, or no longer counts."""
        row = self.segment.row_of.get(image_id)
        return row if row is not None and self.is_alive[row] else None


@dataclass(frozen=True)
class State:
    """The whole store at one moment.

    Attributes:
        fingerprint: Fingerprint of the encoder; the manifest must say the same.
        next_number: No file has this number or a higher one.
        columns: Metadata columns, sorted.
        parts: Oldest first.
    """

    fingerprint: str
    next_number: int = 1
    columns: tuple[str, ...] = ()
    parts: tuple[Part, ...] = ()

    @cached_property
    def num_alive(self) -> int:
        """Count the images."""
        return sum(part.num_alive for part in self.parts)

    @cached_property
    def starts(self) -> np.ndarray:
        """First row of every part, and the number of all rows: positions in the store count dead rows too."""
        return np.cumsum([0, *(len(part.is_alive) for part in self.parts)])

    def find_kinds(self, columns: Iterable[str]) -> dict[str, Kinds]:
        """Find of which kinds the values of some metadata columns are."""
        return {name: reduce(or_, (part.find_kinds(name) for part in self.parts), NOTHING) for name in columns}

    def hold(self, max_bytes: int) -> bool:
        """Keep the vectors in memory, where they fit; say whether they are there."""
        num_bytes = 4 * sum(part.segment.vectors.shape[0] * part.segment.vectors.shape[1] for part in self.parts)
        is_held = 0 < num_bytes <= max_bytes
        for part in self.parts if is_held else ():
            part.segment.vectors.hold()
        return is_held

    def find(self, image_id: str) -> int | None:
        """Return the position of an image; None when it is not there."""
        for number, part in enumerate(self.parts):
            row = part.find(image_id)
            if row is not None:
                return int(self.starts[number]) + row
        return None

    def take(self, positions: np.ndarray) -> tuple[np.ndarray, pa.Table]:
        """Return vectors and rows of some positions, in that order."""
        numbers = np.searchsorted(self.starts, positions, side="right") - 1
        order = np.argsort(numbers, kind="stable")
        vectors, tables = [], []
        for number in np.unique(numbers):
            rows = positions[order][numbers[order] == number] - self.starts[number]
            segment = self.parts[number].segment
            vectors.append(segment.vectors.take(rows))
            tables.append(take_rows(segment.rows, rows))
        back = np.argsort(order, kind="stable")
        return np.concatenate(vectors)[back], take_rows(pa.concat_tables(tables), back)


def find_faults(folder: Path, part: Part) -> list[str]:
    """Check the files of a part against their checksums, and every vector."""
    name = part.segment.name
    paths, checksums = [vectors_path(folder, name), rows_path(folder, name)], [*part.segment.checksums]
    if part.dead_name is not None and part.dead_checksum is not None:
        paths.append(dead_path(folder, part.dead_name))
        checksums.append(part.dead_checksum)
    faults = [
        f"{path} is not what was written."
        for path, checksum in zip(paths, checksums, strict=True)
        if compute_checksum(path) != checksum
    ]
    num_wrong = sum(find_wrong_norms(block)[1].size for block in part.segment.vectors.blocks())
    if num_wrong:
        vectors_are = count_nouns(num_wrong, "vector that is", "vectors that are")
        faults.append(f"{paths[0]} holds {vectors_are} not L2-normalized.")
    return faults


def read_state(folder: Path, known: Iterable[Part] = ()) -> State:
    """Read the state of a store.

    Args:
        folder: The index.
        known: Parts of an earlier state; what has not changed is not read again.

    Raises:
        ArtifactError: A file is missing or damaged; or a writer has just replaced the state that was read.
    """
    path = folder / STATE_NAME
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
        if state.pop("crc32", None) not in (None, _compute_state_checksum(state)):
            raise ValueError("it is not what was written")
        parts = {(part.segment.name, part.dead_name): part for part in known}
        segments = {part.segment.name: part.segment for part in known}
        return State(
            fingerprint=state["fingerprint"],
            next_number=state["next_number"],
            columns=tuple(state["columns"]),
            parts=tuple(
                parts.get((one["name"], one["dead"])) or _read_part(folder, one, segments, state["embedding_dim"])
                for one in state["segments"]
            ),
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        if isinstance(error, ArtifactError):
            raise
        raise ArtifactError(f"{path} cannot be read ({error}); make the index again.") from None


def require_mended(folder: Path, old: State, new: State) -> None:
    """Refuse segments whose file somebody has touched since the old state was read, unless it holds what was written.

    Raises:
        ArtifactError: A file is damaged.
    """
    stamps = {part.segment.name: part.segment.stamp for part in old.parts}
    for segment in (part.segment for part in new.parts):
        path = vectors_path(folder, segment.name)
        if stamps.get(segment.name, segment.stamp) != segment.stamp and compute_checksum(path) != segment.checksums[0]:
            raise ArtifactError(f"{path} is not what was written.")


def _read_part(folder: Path, entry: dict[str, Any], known: dict[str, Segment], embedding_dim: int) -> Part:
    name, shape = entry["name"], (entry["num_rows"], embedding_dim)
    segment = known.get(name) or Segment(
        name=name,
        vectors=VectorsFile(vectors_path(folder, name), shape),
        rows=read_rows(rows_path(folder, name)),
        checksums=(entry["vectors_crc32"], entry["rows_crc32"]),
        stamp=read_stamp(vectors_path(folder, name)),
    )
    if segment.rows.num_rows != shape[0]:
        raise ArtifactError(f"{rows_path(folder, name)} holds {segment.rows.num_rows} rows, not {shape[0]}.")
    is_alive = np.ones(shape[0], dtype=np.bool_)
    if entry["dead"] is not None:
        is_alive[_read_dead(dead_path(folder, entry["dead"]), shape[0])] = False
    return Part(segment, is_alive, entry["dead"], entry.get("dead_crc32"))


def _read_dead(path: Path, num_rows: int) -> np.ndarray:
    try:
        dead: np.ndarray = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise ArtifactError(f"{path} cannot be read ({error}); make the index again.") from None
    if dead.dtype != np.int64 or dead.ndim != 1 or (dead.size and not 0 <= dead.min() <= dead.max() < num_rows):
        raise ArtifactError(f"{path} does not hold rows of a segment of {num_rows}; make the index again.")
    return dead


def write_state(folder: Path, state: State, embedding_dim: int) -> None:
    """Replace the state of a store; its files are written already. From here on the change is there."""
    contents: dict[str, Any] = {
        "fingerprint": state.fingerprint,
        "embedding_dim": embedding_dim,
        "next_number": state.next_number,
        "columns": list(state.columns),
        "segments": [
            {
                "name": part.segment.name,
                "num_rows": len(part.is_alive),
                "dead": part.dead_name,
                "dead_crc32": part.dead_checksum,
                "vectors_crc32": part.segment.checksums[0],
                "rows_crc32": part.segment.checksums[1],
            }
            for part in state.parts
        ],
    }
    contents["crc32"] = _compute_state_checksum(contents)
    write_text_durably(folder / STATE_NAME, json.dumps(contents, indent=1) + "\n")


def _compute_state_checksum(contents: dict[str, Any]) -> int:
    return zlib.crc32(json.dumps(contents, sort_keys=True).encode())


def write_segment(folder: Path, number: int, blocks: Sequence[np.ndarray], rows: pa.Table) -> Part:
    """Write a segment: durable, but not part of the store before ``write_state`` names it.

    Args:
        folder: The index.
        number: Its number, not used before.
        blocks: ``(n, E)`` float32 vectors, one block after another.
        rows: One row for each vector.
    """
    name = f"{number:06}"
    path = vectors_path(folder, name)
    shape = (sum(len(block) for block in blocks), blocks[0].shape[1])
    # A block at a time: a collection larger than the memory can be indexed.
    starts = ((block, start) for block in blocks for start in range(0, len(block), BLOCK_ROWS))
    write_vectors_durably(path, shape, (block[start : start + BLOCK_ROWS] for block, start in starts))
    with replacing_durably(rows_path(folder, name)) as temporary:
        pq.write_table(rows, temporary)
    segment = Segment(
        name=name,
        vectors=VectorsFile(path, shape),
        rows=rows,
        checksums=(compute_checksum(path), compute_checksum(rows_path(folder, name))),
        stamp=read_stamp(path),
    )
    return Part(segment, np.ones(shape[0], dtype=np.bool_))


def write_dead(folder: Path, number: int, part: Part, rows: Sequence[int]) -> Part:
    """Return ``part`` without some more of its rows; the file with the dead ones gets ``number``."""
    is_alive = part.is_alive.copy()
    is_alive[list(rows)] = False
    name = f"{number:06}"
    path = dead_path(folder, name)
    dead = np.flatnonzero(~is_alive).astype(np.int64)
    with replacing_durably(path, num_bytes=dead.nbytes) as temporary, temporary.open("wb") as file:
        np.save(file, dead)
    return replace(part, is_alive=is_alive, dead_name=name, dead_checksum=compute_checksum(path))


def list_files(state: State) -> set[str]:
    """Return the names of the files that a state needs."""
    names = {f"{part.segment.name}{ending}" for part in state.parts for ending in (".npy", ".parquet")}
    return names | {f"{part.dead_name}.dead.npy" for part in state.parts if part.dead_name is not None}


def vectors_path(folder: Path, name: str) -> Path:
    """Return where a segment's vectors are."""
    return folder / FOLDER_NAME / f"{name}.npy"


def rows_path(folder: Path, name: str) -> Path:
    """Return where a segment's images are."""
    return folder / FOLDER_NAME / f"{name}.parquet"


def dead_path(folder: Path, name: str) -> Path:
    """Return where the rows of a segment are listed that no longer count."""
    return folder / FOLDER_NAME / f"{name}.dead.npy"
