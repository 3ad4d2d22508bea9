"""The exact store: vectors in files, every one of them compared. It is for up to a few 100,000 images.

Exact search finds what ``similarity.top_k`` finds, at the speed
of a float32 product: the product only chooses candidates, with a bound on its error, and the candidates are
compared exactly. The files are those of ``segments.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from vitrieve.artifacts import prepare_folder, write_manifest
from vitrieve.data.records import ImageRecord
from vitrieve.embed.rows import build_table, take_rows, to_records
from vitrieve.errors import ArtifactError
from vitrieve.index.filter import FilterLike, Kinds, resolve_filter
from vitrieve.index.folder import FileStamp, Identity, guarded, link_or_copy, read_stamp
from vitrieve.index.open import open_index
from vitrieve.index.segments import (
    FOLDER_NAME,
    STATE_NAME,
    Part,
    State,
    find_faults,
    list_files,
    read_state,
    require_mended,
    write_dead,
    write_segment,
    write_state,
)
from vitrieve.index.store import (
    BLOCK_ROWS,
    Hit,
    IndexSettings,
    StoreInfo,
    TextBlock,
    check_batch,
    check_queries,
    check_size,
    choose,
    describe,
    error_bound,
    rank_candidates,
    require_fingerprint,
    sort_names,
)
from vitrieve.quoting import count_nouns
from vitrieve.similarity import FloatArray, multiply
from vitrieve.systems import remove_file
from vitrieve.writing import sync_folder

BLOCK_BYTES = 128 * 2**20
"""Memory for the similarities of the queries that are compared at one time."""
NUM_READ_ATTEMPTS = 10
"""How often a reader meets a writer that has just replaced what it was about to open, before it gives up."""


class ExactStore:
    """An index on disk that is never wrong; satisfies ``VectorStore``.

    A change writes new files and then replaces ``state.json``. Small segments are merged into the new one as they
    come, so that their number grows with the logarithm of the images.
    """

    def __init__(self, folder: Path, info: StoreInfo, identity: Identity) -> None:
        """Join a folder with what its manifest says; use ``open_index``."""
        self._folder = folder
        self._identity = identity
        self._info = info
        # The state and the stamp of its file, replaced together: threads search while another one refreshes.
        self._max_held_bytes = 0
        self._current: tuple[FileStamp | None, State] | None = (None, State(info.fingerprint))
        self._read()

    @classmethod
    def open(cls, folder: Path, info: StoreInfo, manifest: dict[str, Any], identity: Identity) -> ExactStore:
        """Open an index; ``open_index`` calls it."""
        return cls(folder, info, identity)

    @classmethod
    def create(
        cls, folder: Path, info: StoreInfo, vectors: np.ndarray, records: Sequence[ImageRecord], settings: IndexSettings
    ) -> ExactStore:
        """Write a new index into an empty folder; ``build_index`` calls it, and has checked the arguments.

        Args:
            folder: Where to write.
            info: What the index says about itself.
            vectors: ``(N, E)`` float32, any number; may be a memory map.
            records: The ``N`` images.
            settings: Settings that an exact store does not have.
        """
        (folder / FOLDER_NAME).mkdir(exist_ok=True)
        state = State(info.fingerprint)
        if len(records):
            parts = (write_segment(folder, 1, [vectors], _to_table(records)),)
            state = State(info.fingerprint, 2, _list_columns(records), parts)
        sync_folder(folder / FOLDER_NAME)
        write_state(folder, state, info.embedding_dim)
        write_manifest(folder, "index", describe(info))
        return cls(folder, info, Identity(folder))

    def __reduce__(self) -> tuple[Any, ...]:
        return (open_index, (self._folder,))

    @property
    def info(self) -> StoreInfo:
        """Return what the index says about itself."""
        return self._info

    def upsert(self, vectors: np.ndarray, records: Sequence[ImageRecord]) -> None:
        """Add images, and replace those whose ``image_id`` is there; as ``VectorStore.upsert``."""
        checked = check_batch(vectors, records, self._info.embedding_dim)
        if not records:
            return

        def change(state: State) -> State:
            state, _ = self._kill(state, [record.image_id for record in records])
            columns = tuple(sorted({*state.columns, *_list_columns(records)}))
            return self._append(replace(state, columns=columns), checked, _to_table(records))

        self._change(change)

    def delete(self, image_ids: Sequence[str]) -> int:
        """Remove images; return how many were there."""
        check_size(len(image_ids))
        num_deleted = 0

        def change(state: State) -> State:
            nonlocal num_deleted
            state, num_deleted = self._kill(state, image_ids)
            return state

        self._change(change)
        return num_deleted

    @guarded
    def search(self, queries: np.ndarray, k: int, filter: FilterLike = ()) -> list[list[Hit]]:
        """Find the nearest images of every query, exactly; as ``VectorStore.search``."""
        checked = check_queries(queries, k, self._info.embedding_dim)
        state = self._read()
        allowed = _find_allowed(state, filter)  # (N,)
        num_allowed = int(np.count_nonzero(allowed))
        if num_allowed == 0:
            return [[] for _ in checked]
        size = max(1, BLOCK_BYTES // (4 * len(allowed)))
        hits: list[list[Hit]] = []
        for start in range(0, len(checked), size):
            block = checked[start : start + size]
            if k >= num_allowed:
                hits += [_rank(state, query, np.flatnonzero(allowed), k) for query in block]
                continue
            for query, similarities in zip(block, _approximate(state, block), strict=True):
                similarities[~allowed] = -np.inf
                kth = np.partition(similarities, -k)[-k]
                candidates = np.flatnonzero(similarities >= kth - 2 * error_bound(query))
                hits.append(_rank(state, query, candidates, k))
        return hits

    @guarded
    def get(self, image_ids: Sequence[str]) -> tuple[FloatArray, list[ImageRecord]]:
        """Return vectors and images by name; as ``VectorStore.get``."""
        state = self._read()
        if not image_ids:
            return np.empty((0, self._info.embedding_dim), dtype=np.float32), []
        positions = {name: position for name in image_ids if (position := state.find(name)) is not None}
        vectors, rows = state.take(np.array(choose(image_ids, positions), dtype=np.int64))
        return vectors, list(to_records(rows))

    @guarded
    def image_ids(self) -> Iterator[str]:
        """Return the names of all images, rising."""
        return sort_names(
            names.slice(start, BLOCK_ROWS)
            for part in self._read().parts
            for names in part.segment.rows["image_id"].filter(pa.array(part.is_alive)).chunks
            for start in range(0, len(names), BLOCK_ROWS)
        )

    @guarded
    def sample_ids(self, num_images: int) -> list[str]:
        """Return the names of the first images, as they were written."""
        names: list[str] = []
        for part in self._read().parts:
            rows = np.flatnonzero(part.is_alive)[: num_images - len(names)]
            names += part.segment.rows["image_id"].take(pa.array(rows)).to_pylist()
        return sorted(names)

    @guarded
    def columns(self) -> tuple[str, ...]:
        """Return the names of the metadata columns, sorted."""
        return self._read().columns

    @guarded
    def kinds(self, columns: Sequence[str]) -> dict[str, Kinds]:
        """Find of which kinds the values of some metadata columns are; as ``VectorStore.kinds``."""
        return self._read().find_kinds(columns)

    @guarded
    def count(self, filter: FilterLike = ()) -> int:
        """Count the images that pass the filter."""
        return int(np.count_nonzero(_find_allowed(self._read(), filter)))

    @guarded
    def read_texts(self) -> Iterator[TextBlock]:
        """Return the texts of all images."""
        state = self._read()
        return (_read_texts(part, state.columns) for part in state.parts)

    def read_stamp(self) -> Hashable:
        """Return what tells the newest state from every other."""
        return read_stamp(self._folder / STATE_NAME)

    def optimize(self) -> None:
        """Merge all segments into one, without the images that are gone."""

        def merge(state: State) -> State:
            if len(state.parts) < 2 and all(part.dead_name is None for part in state.parts):
                return state
            return self._merge(replace(state, parts=()), state.parts, [], [])

        self._change(merge)

    def verify(self) -> list[str]:
        """Check every file against its checksum, every vector, and that no image occurs twice.

        Raises:
            ArtifactError: A writer replaces the files faster than they are read.
        """
        for _ in range(NUM_READ_ATTEMPTS):
            try:
                state = self._read()
            except ArtifactError as error:
                return [str(error)]
            try:
                faults = [fault for part in state.parts for fault in find_faults(self._folder, part)]
                break
            except OSError as error:
                if self._is_newest(state):
                    return [f"{error.filename or self._folder} cannot be read: {error.strerror or error}"]
        else:
            raise ArtifactError(f"{self._folder} is changed all the time; verify it when nobody writes.")
        names = list(self.image_ids())
        if len(set(names)) != len(names):
            faults.append(count_nouns(len(names) - len(set(names)), "image occurs", "images occur") + " twice.")
        return faults

    def _is_newest(self, state: State) -> bool:
        """Say whether no writer has replaced a state, and removed what it names."""
        with suppress(ArtifactError):
            return list_files(self._read()) == list_files(state)
        return True

    def snapshot(self, out: Path) -> None:
        """Write a copy of the index as it is now to a new folder; files are linked where the disk allows it."""
        prepare_folder(out, is_resumable=False)
        with self._identity.writing():
            state = self._read()
            (out / FOLDER_NAME).mkdir()
            for name in list_files(state):
                link_or_copy(self._folder / FOLDER_NAME / name, out / FOLDER_NAME / name)
        sync_folder(out / FOLDER_NAME)
        write_state(out, state, self._info.embedding_dim)
        write_manifest(out, "index", describe(self._info))

    def hold(self, max_bytes: int) -> bool:
        """Keep the vectors in memory as long as they fit; as ``VectorStore.hold``."""
        self._max_held_bytes = max_bytes
        return self._read().hold(max_bytes)

    def close(self) -> None:
        """Let go of the files."""
        self._current = None

    def _read(self) -> State:
        """Return the newest state; a writer may have changed it since."""
        if self._current is None:
            raise ArtifactError(f"the index {self._folder} is closed; open it again.")
        last_stamp, last_state = self._current
        for attempt in range(1, NUM_READ_ATTEMPTS + 1):
            stamp = read_stamp(self._folder / STATE_NAME)
            untouched = [part for part in last_state.parts if part.segment.is_untouched(self._folder)]
            if stamp is not None and stamp == last_stamp and len(untouched) == len(last_state.parts):
                return last_state
            try:
                state = read_state(self._folder, untouched)
                require_mended(self._folder, last_state, state)
                break
            except ArtifactError:
                # Damage, or a writer that has replaced the state meanwhile and removed what the old one named.
                if attempt == NUM_READ_ATTEMPTS or read_stamp(self._folder / STATE_NAME) == stamp:
                    raise
        require_fingerprint(self._folder, self._info, state.fingerprint)
        self._identity.require()  # before the state is kept: it may be that of another index
        state.hold(self._max_held_bytes)
        self._current = (stamp, state)
        return state

    def _change(self, change: Callable[[State], State]) -> None:
        """Replace the state by ``change`` of it, under the lock, and remove what is no longer needed."""
        with self._identity.writing():
            old = self._read()
            new = change(old)
            if new is old:
                return
            sync_folder(self._folder / FOLDER_NAME)
            write_state(self._folder, new, self._info.embedding_dim)
            needed = list_files(new)
            for path in (self._folder / FOLDER_NAME).iterdir():  # also what a killed writer left
                if path.name not in needed:
                    remove_file(path)

    def _kill(self, state: State, image_ids: Sequence[str]) -> tuple[State, int]:
        """Return the state without some images, and how many of them were there."""
        parts, number, num_killed = [], state.next_number, 0
        for part in state.parts:
            rows = {row for image_id in image_ids if (row := part.find(image_id)) is not None}
            num_killed += len(rows)
            if rows:
                part = write_dead(self._folder, number, part, sorted(rows))
                number += 1
            if part.num_alive:
                parts.append(part)
        if not num_killed:
            return state, 0
        return State(state.fingerprint, number, state.columns, tuple(parts)), num_killed

    def _append(self, state: State, vectors: FloatArray, rows: pa.Table) -> State:
        """Return the state with more images: the last segments are merged with them while they are no larger."""
        num_kept, num_merged = len(state.parts), len(vectors)
        while num_kept and state.parts[num_kept - 1].num_alive <= 2 * num_merged:
            num_kept -= 1
            num_merged += state.parts[num_kept].num_alive
        kept = replace(state, parts=state.parts[:num_kept])
        return self._merge(kept, state.parts[num_kept:], [vectors], [rows])

    def _merge(self, state: State, parts: Sequence[Part], blocks: list[np.ndarray], tables: list[pa.Table]) -> State:
        """Return the state with one segment more: what counts of ``parts``, then the blocks."""
        vectors = [part.segment.vectors.take(np.flatnonzero(part.is_alive)) for part in parts] + blocks
        rows = [part.segment.rows.filter(pa.array(part.is_alive)) for part in parts] + tables
        merged = write_segment(self._folder, state.next_number, vectors, pa.concat_tables(rows))
        return replace(state, next_number=state.next_number + 1, parts=(*state.parts, merged))


def _rank(state: State, query: FloatArray, candidates: np.ndarray, k: int) -> list[Hit]:
    vectors, rows = state.take(candidates)
    names = rows["image_id"].to_pylist()
    return rank_candidates(query, vectors, names, k, lambda ranked: to_records(take_rows(rows, ranked)))


def _approximate(state: State, queries: FloatArray) -> FloatArray:
    similarities = np.empty((len(queries), int(state.starts[-1])), dtype=np.float32)
    start = 0
    for part in state.parts:
        for block in part.segment.vectors.blocks():
            found = similarities[:, start : start + len(block)]
            if len(queries) == 1:
                found[:] = multiply(queries, block)
            else:
                np.matmul(queries, block.T, out=found)
            start += len(block)
    return similarities


def _find_allowed(state: State, filter: FilterLike) -> np.ndarray:
    """Say for every position whether its image counts and passes the filter: ``(N,)`` bool."""
    tests = resolve_filter(filter, state.columns, state.find_kinds)
    allowed = [part.is_alive.copy() for part in state.parts]
    for test in tests:
        for one, part in zip(allowed, state.parts, strict=True):
            column = part.segment.column(test.column)
            # Each distinct value is tested once; the last one is that of images without the column.
            verdicts = np.array([test.holds(text) for text in (*column.dictionary.to_pylist(), None)])
            one &= verdicts[column.indices.fill_null(len(column.dictionary)).to_numpy(zero_copy_only=False)]
    return np.concatenate(allowed) if allowed else np.empty(0, dtype=np.bool_)


def _read_texts(part: Part, columns: Sequence[str]) -> TextBlock:
    rows = pa.array(np.flatnonzero(part.is_alive))
    names, paths = (part.segment.rows[name].take(rows).combine_chunks() for name in ("image_id", "path"))
    return TextBlock(names, paths, {name: part.segment.column(name).take(rows).dictionary_decode() for name in columns})


def _to_table(records: Sequence[ImageRecord]) -> pa.Table:
    """Build the rows of records, block by block: while they are Python's, they take ten times the memory."""
    starts = range(0, max(1, len(records)), BLOCK_ROWS)
    blocks = ((start, records[start : start + BLOCK_ROWS]) for start in starts)
    return pa.concat_tables([build_table(block, [None] * len(block), start) for start, block in blocks])


def _list_columns(records: Sequence[ImageRecord]) -> tuple[str, ...]:
    return tuple(sorted({name for record in records for name in record.metadata}))
