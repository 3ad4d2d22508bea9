"""The LanceDB store: embedded, on disk, the default.

A few thousand images are compared whole. Beyond, ``optimize`` builds an index of short codes that chooses candidates;
their scores always come from the full vectors. LanceDB's files never change: a change adds new ones.
"""

from __future__ import annotations

import math
import os
from collections.abc import Hashable, Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import pyarrow as pa

from vitrieve.artifacts import prepare_folder, write_manifest
from vitrieve.data.records import ImageRecord
from vitrieve.errors import ArtifactError
from vitrieve.index.filter import FilterLike, Kinds, parse_filter, resolve_filter
from vitrieve.index.folder import Identity, guarded, translating
from vitrieve.index.lance_files import (
    TABLE_NAME,
    BTree,
    HnswSq,
    IvfPq,
    IvfRq,
    SyncedFiles,
    Table,
    connect,
    find_broken_files,
    find_lost_version,
    read_version_stamp,
    table_path,
    versions_path,
)
from vitrieve.index.lance_table import (
    RECORD_COLUMNS,
    KnownKinds,
    build_rows,
    build_schema,
    metadata_columns,
    metadata_fields,
    names_sql,
    read_records,
    read_texts,
    read_vectors,
    record_names,
    to_sql,
)
from vitrieve.index.open import open_index
from vitrieve.index.resident import ResidentCopy, ResidentRows, count_bytes, has_faiss
from vitrieve.index.store import (
    PQ_SUB_VECTOR_WIDTH,
    Hit,
    IndexKind,
    IndexSettings,
    StoreInfo,
    TextBlock,
    check_batch,
    check_queries,
    check_size,
    choose,
    count_candidates,
    describe,
    error_bound,
    find_row_faults,
    rank_candidates,
    require_fingerprint,
    sort_names,
)
from vitrieve.similarity import FloatArray

MIN_INDEXED_ROWS = 5_000
"""Fewer images are compared whole: that takes a few milliseconds, and clusters of them are too small to learn from."""
BLOCK_ROWS = 8_192
"""Images written or checked at a time."""
MAX_VERSIONS = 64
"""Versions on disk at which the next change also compacts the table and drops old ones."""
KEPT_VERSION_AGE = timedelta(minutes=1)
"""A search in another process must not lose the version that it reads."""
MIN_CANDIDATES = 32
CANDIDATES_PER_HIT: dict[IndexKind, int] = {"flat": 2, "ivf_hnsw_sq": 4, "ivf_pq": 24, "ivf_rq": 10}
"""Candidates from the short codes for each image to find: shorter codes need more."""
CROWDED_ROWS = 1_000_000
"""Beyond so many images codes tell neighbors apart less well: candidates grow with the square root of their number."""
PQ_DISTANCE: Literal["l2"] = "l2"
"""This distance orders unit vectors as the inner product does. For it LanceDB codes the differences from the centers of
the lists, for the inner product the vectors themselves, which finds far fewer of the nearest (dev/LOG.md)."""
_VECTOR_INDEX, _NAME_INDEX = "vector_index", "image_id_index"


class LanceStore:
    """An index in a LanceDB table; satisfies ``VectorStore``.

    May be sent to another process (it opens the folder again there), but not across a fork: LanceDB's threads do not
    survive one.
    """

    def __init__(self, folder: Path, info: StoreInfo, settings: IndexSettings, identity: Identity) -> None:
        """Join a folder with what its manifest says; use ``open_index``."""
        self._folder = folder
        self._identity = identity
        self._info = info
        self._kind = settings.index_kind
        self._code_bytes = settings.code_bytes
        self._process_id = os.getpid()
        self._num_changes = len(os.listdir(versions_path(folder)))
        self._files = SyncedFiles(folder)
        self._kinds = KnownKinds(folder)
        self._copy: ResidentCopy | None = None
        self._open_table: Table | None = connect(folder).open_table(TABLE_NAME)
        self._read_schema()  # refuses the table of another encoder

    @classmethod
    def open(cls, folder: Path, info: StoreInfo, manifest: dict[str, Any], identity: Identity) -> LanceStore:
        """Open an index; ``open_index`` calls it."""
        try:
            settings = IndexSettings(index_kind=manifest["index_kind"], code_bytes=manifest["code_bytes"])
            return cls(folder, info, settings, identity)
        except ArtifactError:
            raise
        except (OSError, RuntimeError, ValueError, KeyError) as error:
            reason = str(error).splitlines()[0]
            raise ArtifactError(f"{folder} cannot be read ({reason}); make the index again.") from None

    @classmethod
    def create(
        cls, folder: Path, info: StoreInfo, vectors: np.ndarray, records: Sequence[ImageRecord], settings: IndexSettings
    ) -> LanceStore:
        """Write a new index into an empty folder; ``build_index`` calls it, and has checked the arguments.

        Args:
            folder: Where to write.
            info: What the index says about itself.
            vectors: ``(N, E)`` float32, any number; may be a memory map.
            records: The ``N`` images.
            settings: Which codes to search in.
        """
        schema = build_schema(
            info.embedding_dim, sorted({name for record in records for name in record.metadata}), info.fingerprint
        )
        blocks = (
            batch
            for start in range(0, len(records), BLOCK_ROWS)
            for batch in build_rows(
                vectors[start : start + BLOCK_ROWS], records[start : start + BLOCK_ROWS], schema
            ).to_batches()
        )
        with translating(folder):
            data = pa.RecordBatchReader.from_batches(schema, blocks)
            connect(folder).create_table(TABLE_NAME, data=data, schema=schema)
            store = cls(folder, info, settings, Identity(folder))
        store.optimize()
        write_manifest(folder, "index", store._describe())
        store._identity = Identity(folder)
        return store

    def __reduce__(self) -> tuple[Any, ...]:
        return (open_index, (self._folder,))

    @property
    def info(self) -> StoreInfo:
        """Return what the index says about itself."""
        return self._info

    @property
    def kind(self) -> IndexKind:
        """Return which codes are searched once there are enough images."""
        return self._kind

    @property
    def _table(self) -> Table:
        if self._open_table is None:
            raise ArtifactError(f"the index {self._folder} is closed; open it again.")
        if os.getpid() != self._process_id:
            raise ArtifactError(
                "a LanceDB index cannot be used across a fork; open it in the new process, or start that with 'spawn'."
            )
        return self._open_table

    def _read_schema(self) -> pa.Schema:
        """Read the newest schema; the fingerprint in it is compared again, because the table may be exchanged."""
        schema = self._table.schema
        require_fingerprint(self._folder, self._info, (schema.metadata or {}).get(b"fingerprint", b"").decode())
        return schema

    def upsert(self, vectors: np.ndarray, records: Sequence[ImageRecord]) -> None:
        """Add images, and replace those whose ``image_id`` is there; as ``VectorStore.upsert``."""
        checked = check_batch(vectors, records, self._info.embedding_dim)
        if not records:
            return
        with self._identity.writing():
            new = {name for record in records for name in record.metadata} - set(self.columns())
            if new:
                self._table.add_columns(metadata_fields(sorted(new)))
            rows = build_rows(checked, records, self._read_schema())
            self._table.merge_insert("image_id").when_matched_update_all().when_not_matched_insert_all().execute(rows)
            self._finish_change()

    def delete(self, image_ids: Sequence[str]) -> int:
        """Remove images; return how many were there."""
        check_size(len(image_ids))
        if not image_ids:
            return 0
        with self._identity.writing():
            deleted = cast(Any, self._table.delete(names_sql(image_ids)))  # its stub lacks the number
            num_deleted = int(deleted.num_deleted_rows)
            self._finish_change()
        return num_deleted

    @guarded
    def search(self, queries: np.ndarray, k: int, filter: FilterLike = ()) -> list[list[Hit]]:
        """Find the nearest images of every query; as ``VectorStore.search``.

        Exact while the images are too few for an index, and where it finds fewer images than there are.
        """
        checked = check_queries(queries, k, self._info.embedding_dim)
        condition = self._to_sql(filter)
        if condition is None and (rows := self._find_resident()) is not None:
            answers = [rows.search(query, k) for query in checked]
            if None not in answers:
                return cast(list[list[Hit]], answers)
        is_indexed = self._has_index(_VECTOR_INDEX)
        num_candidates = count_candidates(k, CANDIDATES_PER_HIT[self._kind], MIN_CANDIDATES)
        if is_indexed:
            num_candidates = math.ceil(num_candidates * max(1.0, self._table.count_rows() / CROWDED_ROWS) ** 0.5)
        return [self._search_one(query, k, num_candidates, condition, is_indexed=is_indexed) for query in checked]

    @guarded
    def get(self, image_ids: Sequence[str]) -> tuple[FloatArray, list[ImageRecord]]:
        """Return vectors and images by name; as ``VectorStore.get``."""
        if (copy := self._find_resident()) is not None and (held := copy.get(image_ids)) is not None:
            return held
        table = self._table
        names = [*record_names(self._read_schema()), "vector"]
        wanted = sorted(set(image_ids))
        found: dict[str, tuple[np.ndarray, ImageRecord]] = {}
        for start in range(0, len(wanted), BLOCK_ROWS):
            rows = table.search().where(names_sql(wanted[start : start + BLOCK_ROWS])).select(names).to_arrow()
            for vector, record in zip(read_vectors(rows, self._info.embedding_dim), read_records(rows), strict=True):
                found[record.image_id] = (vector, record)
        chosen = choose(image_ids, found)
        vectors = np.array([vector for vector, _ in chosen], dtype=np.float32).reshape(-1, self._info.embedding_dim)
        return vectors, [record for _, record in chosen]

    @guarded
    def image_ids(self) -> Iterator[str]:
        """Return the names of all images, rising."""
        batches = self._table.search().select(["image_id"]).to_batches(BLOCK_ROWS)
        return sort_names(batch["image_id"] for batch in batches)

    @guarded
    def sample_ids(self, num_images: int) -> list[str]:
        """Return names of images that a scan meets first."""
        some = self._table.search().select(["image_id"]).limit(max(1, num_images)).to_arrow()  # 0: LanceDB means all
        return sorted(some["image_id"].to_pylist()[:num_images])

    @guarded
    def columns(self) -> tuple[str, ...]:
        """Return the names of the metadata columns, sorted."""
        return metadata_columns(self._read_schema())

    @guarded
    def kinds(self, columns: Sequence[str]) -> dict[str, Kinds]:
        """Find of which kinds the values of some metadata columns are; as ``VectorStore.kinds``."""
        return self._kinds.find(self._table, columns)

    @guarded
    def count(self, filter: FilterLike = ()) -> int:
        """Count the images that pass the filter."""
        self._read_schema()  # as in __init__
        return int(self._table.count_rows(self._to_sql(filter)))

    @guarded
    def read_texts(self) -> Iterator[TextBlock]:
        """Return the texts of all images, as the newest version has them."""
        names = [
            "image_id",
            "path",
            *(name for name in record_names(self._read_schema()) if name not in RECORD_COLUMNS),
        ]
        return iter([read_texts(batch) for batch in self._table.search().select(names).to_batches(BLOCK_ROWS)])

    def read_stamp(self) -> Hashable:
        """Return what tells the newest version from every other."""
        return read_version_stamp(self._folder)

    def optimize(self) -> None:
        """Compact the files, drop old versions, and build the index or take in what is new."""
        with self._identity.writing():
            self._compact()
            if self._kind == "flat" or self._table.count_rows() < MIN_INDEXED_ROWS:
                return
            if not self._has_index(_NAME_INDEX):
                self._table.create_index("image_id", config=BTree(), name=_NAME_INDEX)
            if not self._has_index(_VECTOR_INDEX):
                config = build_config(self._kind, self._code_bytes, self._info.embedding_dim)
                self._table.create_index("vector", config=config, name=_VECTOR_INDEX)
            self._files.sync(self._table.version)

    def verify(self) -> list[str]:
        """Check every file against its checksum, all columns, the vectors' norms, and that no image occurs twice."""
        faults = find_broken_files(self._folder) or find_lost_version(self._folder, self._table)
        if faults:
            return faults
        blocks = (pa.Table.from_batches([batch]) for batch in self._table.search().to_batches(BLOCK_ROWS))
        try:
            return find_row_faults(
                (rows["image_id"].to_pylist(), read_vectors(rows, self._info.embedding_dim)) for rows in blocks
            )[1]
        except (OSError, RuntimeError, ValueError) as error:
            return [f"{table_path(self._folder)} cannot be read: {str(error).splitlines()[0]}"]

    def snapshot(self, out: Path) -> None:
        """Write a copy of the index as it is now to a new folder; files are linked where the disk allows it."""
        prepare_folder(out, is_resumable=False)
        with self._identity.writing():
            self._table  # noqa: B018  a closed store is refused before anything is copied
            self._files.copy(out)
        write_manifest(out, "index", self._describe())

    def _describe(self) -> dict[str, Any]:
        return {**describe(self._info), "index_kind": self._kind, "code_bytes": self._code_bytes}

    def hold(self, max_bytes: int) -> bool:
        """Answer from a copy in memory as long as it fits and is the newest state; as ``VectorStore.hold``."""
        if not has_faiss():
            return False

        def load() -> ResidentRows | None:
            self._identity.require()
            self._read_schema()  # as in __init__
            table = self._table
            num_images = table.count_rows()
            if count_bytes(num_images, self._info.embedding_dim) > max_bytes:
                return None
            is_exact = self._kind == "flat" or num_images < MIN_INDEXED_ROWS
            return ResidentRows(table, self._info.embedding_dim, is_exact=is_exact)

        self._copy = ResidentCopy(lambda: read_version_stamp(self._folder), load)
        return self._copy.load()

    def close(self) -> None:
        """Let go of the table and of the copy in memory."""
        self._open_table = self._copy = None

    def _to_sql(self, filter: FilterLike) -> str | None:
        conditions = parse_filter(filter)
        # Without any, the table is not looked at: a search in memory must not wait for the index on disk.
        return to_sql(resolve_filter(conditions, self.columns(), self.kinds)) if conditions else None

    def _find_resident(self) -> ResidentRows | None:
        self._table  # noqa: B018  a closed store is refused, and so is one that came through a fork
        return None if self._copy is None else self._copy.find_current()

    def _search_one(
        self, query: FloatArray, k: int, num_candidates: int, condition: str | None, *, is_indexed: bool
    ) -> list[Hit]:
        if is_indexed:
            rows = self._find_candidates(query, num_candidates, condition, is_indexed=True)
            if rows.num_rows >= k:
                return self._rank(query, rows, k)[0]
        while True:  # images that tie with the last candidate would be left out by chance
            rows = self._find_candidates(query, num_candidates, condition, is_indexed=False)
            hits, is_certain = self._rank(query, rows, k)
            if is_certain or rows.num_rows < num_candidates:
                return hits
            num_candidates *= 4

    def _find_candidates(
        self, query: FloatArray, num_candidates: int, condition: str | None, *, is_indexed: bool
    ) -> pa.Table:
        table, names = self._table, record_names(self._read_schema())
        distance = PQ_DISTANCE if is_indexed and self._kind == "ivf_pq" else "dot"
        search = cast(Any, table.search(query, vector_column_name="vector")).distance_type(distance)
        search = search.limit(num_candidates)
        if not is_indexed:
            search = search.bypass_vector_index()
        elif self._kind == "ivf_hnsw_sq":
            search = search.ef(max(2 * num_candidates, 100))
        if condition is not None:
            search = search.where(condition, prefilter=True)
        return search.select([*names, "vector", "_distance"]).to_arrow()

    def _rank(self, query: FloatArray, rows: pa.Table, k: int) -> tuple[list[Hit], bool]:
        """Rank candidates by full vectors; say too whether no image beyond them can belong to the first ``k``."""
        vectors, names = read_vectors(rows, self._info.embedding_dim), rows["image_id"].to_pylist()
        hits = rank_candidates(query, vectors, names, k, lambda ranked: read_records(rows.take(pa.array(ranked))))
        farthest = 1 - max(rows["_distance"].to_pylist(), default=0.0)  # the engine's distance is 1 - inner product
        is_certain = len(hits) == k and hits[-1].score > farthest + 2 * float(error_bound(query))
        return hits, is_certain

    def _has_index(self, name: str) -> bool:
        return any(index.name == name for index in self._table.list_indices())

    def _finish_change(self) -> None:
        """Make a change durable; compact after every ``MAX_VERSIONS`` of them."""
        self._files.sync(self._table.version)
        self._num_changes += 1
        if self._num_changes >= MAX_VERSIONS:
            self._compact()

    def _compact(self) -> None:
        # Under the writer's lock no other transaction can be in progress: unverified files are a killed writer's.
        self._table.optimize(cleanup_older_than=KEPT_VERSION_AGE, delete_unverified=True)
        self._files.sync(self._table.version)
        self._num_changes = 0


def build_config(kind: IndexKind, code_bytes: int | None, embedding_dim: int) -> HnswSq | IvfPq | IvfRq:
    """Say how LanceDB is to build an index of one of the kinds of short codes."""
    if kind == "ivf_pq":
        num_bytes = code_bytes or max(1, embedding_dim // PQ_SUB_VECTOR_WIDTH)
        return IvfPq(distance_type=PQ_DISTANCE, num_sub_vectors=num_bytes)
    return IvfRq(distance_type="dot") if kind == "ivf_rq" else HnswSq(distance_type="dot")
