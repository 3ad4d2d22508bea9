"""The corrections of an index on PostgreSQL: one table in the database of the index, for all indexes there."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from psycopg import Connection, sql
from psycopg.rows import TupleRow

from vitrieve.feedback.events import Correction
from vitrieve.feedback.store import COLUMNS, MAX_CORRECTIONS, WAIT_SECONDS, FeedbackStore, Rows, build_correction
from vitrieve.index.pgvector_server import connected, lock_name
from vitrieve.index.store import find_feedback_key

TABLE = "vitrieve_feedback"


class PgvectorFeedback(FeedbackStore):
    """Corrections in the table ``vitrieve_feedback``; they outlive an index that is made anew in its place.

    Whoever opens the index finds them, whatever its folder is called. Whether the server lets this role write is told
    when it refuses.

    Args:
        manifest: Manifest of the index.
    """

    def __init__(self, manifest: Mapping[str, Any]) -> None:
        self._uri = str(manifest["uri"])
        self._collection = find_feedback_key(manifest)
        self._table = sql.Identifier(str(manifest["schema"]), TABLE)

    def _describe_full(self, count: int) -> str:
        return f"{TABLE} has {count:,} corrections of this index, and at most {MAX_CORRECTIONS:,} are kept."

    @contextmanager
    def _changing(self) -> Iterator[Rows]:
        """Open one transaction that has the table for itself; the table is made where it is missing."""
        fields = sql.SQL(", ").join(sql.SQL("{} text NOT NULL").format(sql.Identifier(name)) for name in COLUMNS)
        with connected(self._uri) as connection:
            connection.execute("SELECT set_config('lock_timeout', %s, true)", [f"{WAIT_SECONDS:.3f}s"])
            lock_name(connection, TABLE)
            connection.execute(
                sql.SQL(
                    "CREATE TABLE IF NOT EXISTS {} (number bigserial PRIMARY KEY, collection text NOT NULL, {})"
                ).format(self._table, fields)
            )
            yield PgvectorRows(connection, self._table, self._collection)

    def read(self) -> list[Correction]:
        """Return the whole history, in order; empty where nothing was ever kept.

        Raises:
            ArtifactError: The server refused or did not answer.
        """
        with connected(self._uri) as connection:
            found = connection.execute("SELECT to_regclass(%s)", [self._table.as_string(connection)]).fetchone()
            is_there = found is not None and found[0] is not None
            return PgvectorRows(connection, self._table, self._collection).read() if is_there else []


class PgvectorRows:
    """The corrections of one index in the table.

    Args:
        connection: A transaction.
        table: The table.
        collection: Name that stands for the index.
    """

    def __init__(self, connection: Connection[TupleRow], table: sql.Identifier, collection: str) -> None:
        self._connection = connection
        self._table = table
        self._collection = collection

    def count(self) -> int:
        """Count them."""
        query = sql.SQL("SELECT count(*) FROM {} WHERE collection = %s").format(self._table)
        row = self._connection.execute(query, [self._collection]).fetchone()
        return int(row[0]) if row else 0

    def read(self) -> list[Correction]:
        """Return all of them, in order."""
        names = sql.SQL(", ").join(map(sql.Identifier, COLUMNS))
        query = sql.SQL("SELECT {} FROM {} WHERE collection = %s ORDER BY number").format(names, self._table)
        return [build_correction(row) for row in self._connection.execute(query, [self._collection]).fetchall()]

    def write(self, values: Iterable[list[str]]) -> None:
        """Put corrections behind them, as values of ``COLUMNS``."""
        names = sql.SQL(", ").join(map(sql.Identifier, COLUMNS))
        places = sql.SQL(", ").join([sql.Placeholder()] * (len(COLUMNS) + 1))
        insert = sql.SQL("INSERT INTO {} (collection, {}) VALUES ({})").format(self._table, names, places)
        with self._connection.cursor() as cursor:
            cursor.executemany(insert, [[self._collection, *row] for row in values])
