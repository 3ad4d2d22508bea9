"""The corrections of an index on PostgreSQL: one table in the database of the index."""

from __future__ import annotations

from psycopg import sql

from vitrieve.errors import ConfigError
from vitrieve.feedback.events import Correction, check_correction
from vitrieve.feedback.store import COLUMNS, MAX_CORRECTIONS, build_correction, list_values
from vitrieve.index.pgvector_rows import lock_name
from vitrieve.index.pgvector_server import connected

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
            ArtifactError: The server refused or did not answer.
        """
        for correction in corrections:
            check_correction(correction)
        fields = sql.SQL(", ").join(sql.SQL("{} text NOT NULL").format(sql.Identifier(name)) for name in COLUMNS)
        names = sql.SQL(", ").join(map(sql.Identifier, COLUMNS))
        with connected(self._uri) as connection:
            lock_name(connection, TABLE)  # two that make the table at once would fail
            connection.execute(
                sql.SQL(
                    "CREATE TABLE IF NOT EXISTS {} (number bigserial PRIMARY KEY, collection text NOT NULL, {})"
                ).format(self._table, fields)
            )
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
        names = sql.SQL(", ").join(map(sql.Identifier, COLUMNS))
        with connected(self._uri) as connection:
            found = connection.execute("SELECT to_regclass(%s)", [self._table.as_string(connection)]).fetchone()
            if found is None or found[0] is None:
                return []
            query = sql.SQL("SELECT {} FROM {} WHERE collection = %s ORDER BY number").format(names, self._table)
            return [build_correction(row) for row in connection.execute(query, [self._collection]).fetchall()]
