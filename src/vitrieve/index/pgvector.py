"""The pgvector store: the same index in a PostgreSQL database (the extra ``pgvector``).

The folder on disk holds only the manifest with the server's address and the table's name. Every call is one
transaction: a reader sees one state of the index, and a change is there whole or not at all. Whoever changes the index
locks the row beside it, on whichever machine it runs. A search that loses its server is tried once more.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
from psycopg import Connection, sql
from psycopg.rows import TupleRow

from vitrieve.artifacts import prepare_folder, write_manifest
from vitrieve.data.records import ImageRecord
from vitrieve.errors import ConfigError
from vitrieve.index.claims import Claim, Claims
from vitrieve.index.filter import FilterLike, Kinds, resolve_filter
from vitrieve.index.folder import Identity, guarded
from vitrieve.index.open import open_index, settling_claims
from vitrieve.index.pgvector_rows import (
    MAX_GRAPH_WIDTH,
    About,
    Tables,
    is_storable,
    read_records,
    read_texts,
    read_vectors,
    write_filter,
)
from vitrieve.index.pgvector_server import (
    WAIT_MILLISECONDS,
    LostError,
    Server,
    connected,
    find_schema,
    holding_name,
    lock_name,
    require_extension,
)
from vitrieve.index.store import (
    BLOCK_ROWS,
    FEEDBACK_KEY,
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

T = TypeVar("T")

MIN_INDEXED_ROWS = 5_000
"""Fewer images are compared whole, as in LanceDB."""
MIN_CANDIDATES = 32
CANDIDATES_PER_HIT = 4
"""Candidates from the graph for each image to find."""
MIN_BEAM = 100
MAX_BEAM = 1_000
"""Images that a search of the graph keeps in view, at least and at most; pgvector takes no more."""
MIN_SCANNED = 20_000
"""Images that a search with a filter looks at in the graph before it gives up; then all that pass are compared."""
PAGE_ROWS = 1_000


class PgvectorStore:
    """An index in a table of PostgreSQL; satisfies ``VectorStore``. May be sent to another process."""

    def __init__(self, folder: Path, info: StoreInfo, manifest: dict[str, Any], identity: Identity) -> None:
        """Join a folder with its table; use ``open_index``."""
        self._folder = folder
        self._identity = identity
        self._info = info
        self._kind: IndexKind = manifest["index_kind"]
        self._tables = Tables(str(manifest["schema"]), str(manifest["table"]), info.embedding_dim)
        self._where = {key: str(manifest[key]) for key in ("uri", "schema")}
        self._server = Server(self._where["uri"])

    @classmethod
    def open(cls, folder: Path, info: StoreInfo, manifest: dict[str, Any], identity: Identity) -> PgvectorStore:
        """Open an index; ``open_index`` calls it."""
        uri = str(manifest["uri"])
        with connected(uri) as connection:
            require_extension(connection, uri, is_made=False)
            tables = Tables(str(manifest["schema"]), str(manifest["table"]), info.embedding_dim)
            require_fingerprint(folder, info, tables.read_about(connection).fingerprint)
        return cls(folder, info, manifest, identity)

    @classmethod
    def create(
        cls,
        folder: Path,
        info: StoreInfo,
        vectors: np.ndarray,
        records: Sequence[ImageRecord],
        settings: IndexSettings,
        claims: Claims,
    ) -> PgvectorStore:
        """Make a new table in one transaction, and let an empty folder name it; the arguments are checked.

        Args:
            folder: Where the manifest is written.
            info: What the index says about itself.
            vectors: ``(N, E)`` float32, any number; may be a memory map.
            records: The ``N`` images.
            settings: Address of the server, and whether there is a graph.
            claims: Told of the table before it is made.
        """
        uri, kind = str(settings.uri), settings.index_kind
        if kind != "flat" and info.embedding_dim > MAX_GRAPH_WIDTH:
            raise ConfigError(
                f"pgvector's graph takes {MAX_GRAPH_WIDTH} dimensions at most, not {info.embedding_dim}; give "
                "--index-kind flat, or shorten the vectors with vitrieve reduce."
            )
        with connected(uri) as connection:
            require_extension(connection, uri, is_made=True)
            schema = find_schema(connection, uri)
        manifest = {"uri": uri, "schema": schema, "table": f"vitrieve_{uuid.uuid4().hex}", "index_kind": kind}
        if claims.feedback_key is not None:
            manifest[FEEDBACK_KEY] = claims.feedback_key
        store = cls(folder, info, manifest, Identity(folder))
        store._claim(folder, claims)
        with store._server.changing() as connection:
            store._tables.create(connection, info.fingerprint)
            store._load(connection, vectors, records)
        store._finish(folder, manifest)
        return store

    def _claim(self, folder: Path, claims: Claims) -> None:
        claims.add(Claim(kind="pgvector", uri=self._where["uri"], name=self._tables.name, folder=folder.name))

    def _load(self, connection: Connection[TupleRow], vectors: np.ndarray, records: Sequence[ImageRecord]) -> None:
        about = self._tables.read_about(connection)
        names = {name for record in records for name in record.metadata}
        self._tables.add_columns(connection, about, sorted(names))
        for start in range(0, len(records), BLOCK_ROWS):
            block = slice(start, start + BLOCK_ROWS)
            self._tables.insert(connection, about, vectors[block], records[block])
        self._tables.write_about(connection, about)
        self._build_graph(connection, about)

    def _finish(self, folder: Path, manifest: dict[str, Any]) -> None:
        with self._server.maintaining() as connection:
            connection.execute(sql.SQL("VACUUM (ANALYZE) {}").format(self._tables.images))
        write_manifest(folder, "index", {**describe(self._info), **manifest})
        self._identity = Identity(folder)

    def __reduce__(self) -> tuple[Any, ...]:
        return (open_index, (self._folder,))

    @property
    def info(self) -> StoreInfo:
        """Return what the index says about itself."""
        return self._info

    def upsert(self, vectors: np.ndarray, records: Sequence[ImageRecord]) -> None:
        """Add images, and replace those whose ``image_id`` is there; one transaction, so all of it or nothing."""
        checked = check_batch(vectors, records, self._info.embedding_dim)
        if not records:
            return
        names = {name for record in records for name in record.metadata}
        with self._identity.writing():
            if not names.issubset(self.columns()):  # by themselves: readers wait for them, and not for the images
                with self._server.changing() as connection:
                    about = self._read_about(connection, is_locked=True)
                    self._tables.add_columns(connection, about, sorted(names - set(about.columns)))
                    self._tables.write_about(connection, about)
            with self._server.changing() as connection:
                about = self._read_about(connection, is_locked=True)
                self._tables.remove(connection, about, [record.image_id for record in records])
                self._tables.insert(connection, about, checked, records)
                self._tables.write_about(connection, about)

    def delete(self, image_ids: Sequence[str]) -> int:
        """Remove images; return how many were there."""
        check_size(len(image_ids))
        if not image_ids:
            return 0
        with self._identity.writing(), self._server.changing() as connection:
            about = self._read_about(connection, is_locked=True)
            num_deleted = self._tables.remove(connection, about, image_ids)
            self._tables.write_about(connection, about)
        return num_deleted

    def locking(self, seconds: float) -> AbstractContextManager[None]:
        """Hold the server's lock of those who read this index and then change it; as ``Shared.locking``."""
        return holding_name(self._server.uri, self._tables.name, seconds)

    @guarded
    def search(self, queries: np.ndarray, k: int, filter: FilterLike = ()) -> list[list[Hit]]:
        """Find the nearest images of every query; as ``VectorStore.search``.

        Exact while the images are too few for a graph, and where the graph finds fewer images than there are.
        """
        checked = check_queries(queries, k, self._info.embedding_dim)

        def find(connection: Connection[TupleRow], about: About) -> list[list[Hit]]:
            condition = self._write_filter(filter, about)
            num_candidates = count_candidates(k, CANDIDATES_PER_HIT, MIN_CANDIDATES)
            has_graph = self._kind != "flat" and self._tables.has_graph(connection)
            if has_graph:
                set_beam(connection, num_candidates)
            search = Search(connection, self._tables, about, condition, self._info.embedding_dim)
            return [search.find(query, k, num_candidates, has_graph=has_graph) for query in checked]

        return self._read(find)

    @guarded
    def get(self, image_ids: Sequence[str]) -> tuple[FloatArray, list[ImageRecord]]:
        """Return vectors and images by name; as ``VectorStore.get``."""
        wanted = list(filter(is_storable, dict.fromkeys(image_ids)))

        def find(connection: Connection[TupleRow], about: About) -> dict[str, tuple[FloatArray, ImageRecord]]:
            statement = self._tables.select(about, sql.SQL("WHERE image_id = ANY(%s)"))
            rows = connection.cursor(binary=True).execute(statement, [wanted]).fetchall()
            vectors, records = read_vectors(rows, self._info.embedding_dim), read_records(rows, about)
            return {record.image_id: (vector, record) for vector, record in zip(vectors, records, strict=True)}

        chosen = choose(image_ids, self._read(find))
        vectors = np.array([vector for vector, _ in chosen], dtype=np.float32).reshape(-1, self._info.embedding_dim)
        return vectors, [record for _, record in chosen]

    @guarded
    def image_ids(self) -> Iterator[str]:
        """Return the names of all images, rising."""

        def read(connection: Connection[TupleRow], _: About) -> list[pa.Array]:
            with connection.cursor("names", binary=True) as cursor:
                cursor.execute(sql.SQL("SELECT image_id FROM {}").format(self._tables.images))
                pages = iter(lambda: cursor.fetchmany(BLOCK_ROWS), [])
                return [pa.array([name for (name,) in rows], pa.string()) for rows in pages]

        return sort_names(self._read(read))

    @guarded
    def sample_ids(self, num_images: int) -> list[str]:
        """Return the first names."""
        statement = sql.SQL("SELECT image_id FROM {} ORDER BY image_id LIMIT %s").format(self._tables.images)
        return self._read(lambda connection, _: [name for (name,) in connection.execute(statement, [num_images])])

    @guarded
    def columns(self) -> tuple[str, ...]:
        """Return the names of the metadata columns, sorted."""
        return self._read(lambda _, about: tuple(sorted(about.columns)))

    @guarded
    def kinds(self, columns: Sequence[str]) -> dict[str, Kinds]:
        """Find of which kinds the values of some metadata columns are; as ``VectorStore.kinds``."""
        return self._read(lambda _, about: {name: about.columns[name].kinds for name in columns})

    @guarded
    def count(self, filter: FilterLike = ()) -> int:
        """Count the images that pass the filter."""

        def count(connection: Connection[TupleRow], about: About) -> int:
            condition, values = self._write_filter(filter, about)
            if not values:
                return about.num_images
            statement = sql.SQL("SELECT count(*) FROM {} WHERE {}").format(self._tables.images, condition)
            row = connection.execute(statement, values).fetchone()
            return int(row[0]) if row else 0

        return self._read(count)

    @guarded
    def read_texts(self) -> Iterator[TextBlock]:
        """Return the texts of all images, read in one transaction."""

        def read(connection: Connection[TupleRow], about: About) -> list[TextBlock]:
            with connection.cursor("texts", binary=True) as cursor:
                cursor.execute(self._tables.select_texts(about, ("image_id", "path")))
                return [read_texts(rows, about) for rows in iter(lambda: cursor.fetchmany(PAGE_ROWS), [])]

        return iter(self._read(read))

    def read_stamp(self) -> Hashable:
        """Return which version of the row beside the images is there: whoever changes the index writes it anew."""
        return self._read(lambda connection, _: self._tables.read_stamp(connection))

    def optimize(self) -> None:
        """Build the graph where there are enough images, clear what was removed, and count values for the planner."""
        with self._identity.writing():
            with self._server.changing() as connection:
                self._build_graph(connection, self._read_about(connection, is_locked=True))
            with self._server.maintaining() as connection:
                connection.execute(sql.SQL("VACUUM (ANALYZE) {}").format(self._tables.images))

    def verify(self) -> list[str]:
        """Read every vector; say which are not normalized, and whether what was counted is what is there."""

        def check(connection: Connection[TupleRow], about: About) -> list[str]:
            found = about.make_empty()
            found.num_images, faults = find_row_faults(self._read_pages(connection, found))
            wrong = [name for name, column in about.columns.items() if column.counts != found.columns[name].counts]
            if found.num_images != about.num_images or wrong:
                columns = f" or of the columns {', '.join(wrong)}" if wrong else ""
                faults.append(
                    f"the table holds {found.num_images} images, and {about.num_images} were counted: the numbers of "
                    f"images{columns} do not agree, because the table was changed by other means; make the index again."
                )
            return faults

        return self._read(check)

    def snapshot(self, out: Path) -> None:
        """Copy the table on the server, and write a folder that names the copy."""
        with settling_claims(out) as claims:
            prepare_folder(out, is_resumable=False)
            manifest = {**self._where, "table": f"vitrieve_{uuid.uuid4().hex}", "index_kind": self._kind}
            copy = PgvectorStore(out, self._info, manifest, Identity(out))
            copy._claim(out, claims)
            with self._identity.writing(), self._server.changing() as connection:
                self._read_about(connection, is_locked=True)
                copy._tables.copy(connection, self._tables)
            copy._finish(out, manifest)
            copy.close()

    def hold(self, max_bytes: int) -> bool:
        """Hold nothing: the server has its own."""
        return False

    def close(self) -> None:
        """Close the connections."""
        self._server.close()

    @staticmethod
    def release(uri: str, name: str) -> None:
        """Remove the tables of an index from its server, for good, in whichever schema they are; there may be none.

        Args:
            uri: Address of the server.
            name: Name of the table of images.

        Raises:
            ArtifactError: The server refused or did not answer.
        """
        with connected(uri) as connection:
            connection.execute("SELECT set_config('lock_timeout', %s, true)", [str(WAIT_MILLISECONDS)])
            lock_name(connection, name)  # a transaction that makes them may still go on
            schemas = connection.execute("SELECT schemaname FROM pg_tables WHERE tablename = %s", [name]).fetchall()
            for (schema,) in schemas:
                Tables(schema, name, 0).drop(connection)

    def _read(self, work: Callable[[Connection[TupleRow], About], T]) -> T:
        """Read in one transaction; once more from the beginning where the server went away in the middle."""
        try:
            return self._read_once(work)
        except LostError:
            return self._read_once(work)

    def _read_once(self, work: Callable[[Connection[TupleRow], About], T]) -> T:
        with self._server.reading() as connection:
            return work(connection, self._read_about(connection))

    def _read_about(self, connection: Connection[TupleRow], *, is_locked: bool = False) -> About:
        """Read what stands beside the images; the fingerprint is compared again: the table may be exchanged."""
        about = self._tables.read_about(connection, is_locked=is_locked)
        require_fingerprint(self._folder, self._info, about.fingerprint)
        return about

    def _read_pages(self, connection: Connection[TupleRow], found: About) -> Iterator[tuple[list[str], FloatArray]]:
        """Yield names and vectors of all rows, a page at a time, and count their values in ``found``."""
        with connection.cursor("pages", binary=True) as cursor:
            cursor.execute(self._tables.select_texts(found, ("vector", "image_id")))
            while rows := cursor.fetchmany(PAGE_ROWS):
                found.count({name: [row[place] for row in rows] for place, name in enumerate(found.columns, 2)}, 1)
                yield [row[1] for row in rows], read_vectors(rows, self._info.embedding_dim)

    def _build_graph(self, connection: Connection[TupleRow], about: About) -> None:
        is_wanted = self._kind != "flat" and about.num_images >= MIN_INDEXED_ROWS
        if is_wanted and not self._tables.has_graph(connection):
            self._tables.build_graph(connection)

    def _write_filter(self, filter: FilterLike, about: About) -> tuple[sql.Composable, list[Any]]:
        kinds = {name: column.kinds for name, column in about.columns.items()}
        return write_filter(resolve_filter(filter, about.columns, lambda _: kinds), about)


class Search:
    """A search in one transaction.

    Args:
        connection: The transaction.
        tables: What is searched.
        about: What stands beside the images.
        condition: The filter in SQL, and the values of its parameters.
        embedding_dim: Length of a vector.
    """

    def __init__(
        self,
        connection: Connection[TupleRow],
        tables: Tables,
        about: About,
        condition: tuple[sql.Composable, list[Any]],
        embedding_dim: int,
    ) -> None:
        self._cursor = connection.cursor(binary=True)
        self._about = about
        self._values = condition[1]
        self._embedding_dim = embedding_dim
        self._statements = {
            is_graph: tables.select(about, sql.SQL("WHERE {} {}").format(condition[0], tables.order(is_graph=is_graph)))
            for is_graph in (True, False)
        }

    def find(self, query: FloatArray, k: int, num_candidates: int, *, has_graph: bool) -> list[Hit]:
        """Find the nearest images of one query ``(E,)``."""
        if has_graph:
            length = float(np.linalg.norm(query)) or 1.0  # a half-precision number ends at 65,504
            rows = self._find_candidates(query / np.float32(length), num_candidates, is_graph=True)
            if len(rows) >= k:
                return self._rank(query, rows, k)[0]
        while True:  # images that tie with the last candidate would be left out by chance
            rows = self._find_candidates(query, num_candidates, is_graph=False)
            hits, is_certain = self._rank(query, rows, k)
            if is_certain or len(rows) < num_candidates:
                return hits
            num_candidates *= 4

    def _find_candidates(self, query: FloatArray, num_candidates: int, *, is_graph: bool) -> list[TupleRow]:
        return self._cursor.execute(self._statements[is_graph], [*self._values, query, num_candidates]).fetchall()

    def _rank(self, query: FloatArray, rows: list[TupleRow], k: int) -> tuple[list[Hit], bool]:
        """Rank candidates by full vectors; say too whether no image beyond them can belong to the first ``k``."""
        vectors, names = read_vectors(rows, self._embedding_dim), [row[1] for row in rows]
        hits = rank_candidates(
            query, vectors, names, k, lambda ranked: read_records([rows[row] for row in ranked], self._about)
        )
        farthest = float(vectors[-1] @ query) if rows else 0.0  # they come in the order of their similarity
        return hits, len(hits) == k and hits[-1].score > farthest + 2 * float(error_bound(query))


def set_beam(connection: Connection[TupleRow], num_candidates: int) -> None:
    """Say for this transaction how thoroughly to search the graph, and to go on where a filter leaves too few."""
    settings = {
        "hnsw.ef_search": min(MAX_BEAM, max(2 * num_candidates, MIN_BEAM)),
        "hnsw.iterative_scan": "relaxed_order",
        "hnsw.max_scan_tuples": max(MIN_SCANNED, 4 * num_candidates),
    }
    calls = sql.SQL(", ").join([sql.SQL("set_config(%s, %s, true)")] * len(settings))
    values = [str(value) for pair in settings.items() for value in pair]
    connection.execute(sql.SQL("SELECT {}").format(calls), values)
