"""The corrections of an index on PostgreSQL: one table in the database of the index."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from psycopg import Connection, sql
from psycopg.rows import TupleRow

from vitrieve.errors import ConfigError
from vitrieve.feedback.events import Correction
from vitrieve.feedback.store import COLUMNS, MAX_CORRECTIONS, WAIT_SECONDS, build_correction, check_new, list_values
from vitrieve.index.pgvector_server import connected, lock_name

TABLE = "vitrieve_feedback"


class PgvectorFeedback:
    """Corrections in the table ``vitrieve_feedback``; they outlive an index that is made anew under its name.

    Args:
        uri: Address of the server.
        schema: Schema of the index.
        collection: Name of the folder of the index.
    """

    def __init__(self, uri: str, schema: str, collection: str) -> None:
        self._uri = uri
        self._collection = collection
        self._table = sql.Identifier(schema, TABLE)

    def find_obstacle(self) -> str | None:
        """Return None: whether the server lets this role write is told when it refuses."""
        return None

    def add(self, *corrections: Correction) -> None:
        """Keep corrections: all of them are acknowledged when this returns, and none where it raises.

        Raises:
            DataError: As ``check_correction``.
            ConfigError: As many corrections as are kept are there.
            ArtifactError: The server refused or did not answer, or another writer does not finish.
        """
        check_new(corrections)
        with self._changing() as connection:
            self._insert(connection, corrections)

    def add_to(self, build: Callable[[list[Correction]], Sequence[Correction]]) -> None:
        """Keep corrections that follow from those before; nobody else keeps any on this server meanwhile.

        Args:
            build: Takes the whole history, in order, and returns what is kept behind it; what it raises is raised, and
                nothing is kept then.

        Raises:
            DataError: As ``add``.
            ConfigError: As ``add``.
            ArtifactError: As ``add``.
        """
        with self._changing() as connection:
            corrections = build(self._select(connection))
            check_new(corrections)
            self._insert(connection, corrections)

    @contextmanager
    def _changing(self) -> Iterator[Connection[TupleRow]]:
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
            yield connection

    def _insert(self, connection: Connection[TupleRow], corrections: Sequence[Correction]) -> None:
        names = sql.SQL(", ").join(map(sql.Identifier, COLUMNS))
        query = sql.SQL("SELECT count(*) FROM {} WHERE collection = %s").format(self._table)
        row = connection.execute(query, [self._collection]).fetchone()
        if row is not None and row[0] + len(corrections) > MAX_CORRECTIONS:
            raise ConfigError(
                f"{TABLE} has {row[0]:,} corrections of this index, and at most {MAX_CORRECTIONS:,} are kept."
            )
        places = sql.SQL(", ").join([sql.Placeholder()] * (len(COLUMNS) + 1))
        insert = sql.SQL("INSERT INTO {} (collection, {}) VALUES ({})").format(self._table, names, places)
        with connection.cursor() as cursor:
            cursor.executemany(insert, [[self._collection, *list_values(one)] for one in corrections])

    def read(self) -> list[Correction]:
        """Return the whole history, in order; empty where nothing was ever kept.

        Raises:
            ArtifactError: The server refused or did not answer.
        """
        with connected(self._uri) as connection:
            found = connection.execute("SELECT to_regclass(%s)", [self._table.as_string(connection)]).fetchone()
            return [] if found is None or found[0] is None else self._select(connection)

    def _select(self, connection: Connection[TupleRow]) -> list[Correction]:
        names = sql.SQL(", ").join(map(sql.Identifier, COLUMNS))
        query = sql.SQL("SELECT {} FROM {} WHERE collection = %s ORDER BY number").format(names, self._table)
        return [build_correction(row) for row in connection.execute(query, [self._collection]).fetchall()]
