"""How images and filters look in the tables of PostgreSQL.

An index is two tables. That of the images has the fields of a record, the vector, and two columns for each metadata
column: its text, and the number that the text reads as (null where it is none). Columns are named by a number and what
is readable of the name (``text_3_price``), because PostgreSQL cuts names at 63 bytes. The other table has one row: the
encoder's fingerprint, how many images there are, and for each metadata column its number and how many values of each
kind it has. That row is locked by whoever changes the index.

Values reach the server as parameters, never as text of a statement; names of columns as quoted identifiers.
"""

from __future__ import annotations

import re
import socket
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from operator import or_
from typing import Any

import numpy as np
import pyarrow as pa
from pgvector import Vector
from psycopg import Connection, sql
from psycopg.rows import TupleRow
from psycopg.types.json import Jsonb

from vitrieve.data.records import ImageRecord
from vitrieve.embed.rows import SCHEMA, build_table, to_records
from vitrieve.errors import InputError
from vitrieve.index.filter import NOTHING, ColumnTest, Kinds, Span, read_kinds, read_number
from vitrieve.index.pgvector_server import lock_name
from vitrieve.index.store import TextBlock

RECORD_COLUMNS = {
    "image_id": "text",
    "path": "text",
    "label": "int8",
    "split": "text",
    "is_query": "bool",
    "is_gallery": "bool",
    "box": "float8[]",
}
"""The fields of a record, and their types."""
MAX_GRAPH_WIDTH = 4_000
"""Dimensions of a half-precision vector that an index of pgvector takes."""
_SIGNS = {sign: sql.SQL(sign) for sign in ("=", "<", "<=", ">", ">=")}


@dataclass(kw_only=True)
class Column:
    """A metadata column.

    Attributes:
        number: Its number in the names of the table's columns.
        counts: Number of values of each kind, by ``Kinds.value``.
    """

    number: int
    counts: Counter[int] = field(default_factory=Counter)

    @property
    def kinds(self) -> Kinds:
        """Return the kinds of its values, united."""
        return reduce(or_, (Kinds(value) for value, count in self.counts.items() if count), NOTHING)


@dataclass(kw_only=True)
class About:
    """What stands beside the table of images.

    Attributes:
        fingerprint: Fingerprint of the encoder that made the vectors.
        num_images: Number of images.
        columns: The metadata columns by name.
    """

    fingerprint: str
    num_images: int
    columns: dict[str, Column]

    def make_empty(self) -> About:
        """Return what stands beside no images with the same columns."""
        columns = {name: Column(number=column.number) for name, column in self.columns.items()}
        return About(fingerprint=self.fingerprint, num_images=0, columns=columns)

    def count(self, texts: Mapping[str, Iterable[str | None]], sign: int) -> None:
        """Count the values of some columns that came (``sign`` 1) or went (-1)."""
        for name, values in texts.items():
            for value in values:
                if value is not None:
                    self.columns[name].counts[read_kinds(value).value] += sign


class Tables:
    """The names of an index on its server, and what is asked of them.

    Args:
        schema: Schema of the tables.
        name: Name of the table of images.
        embedding_dim: Length of a vector.
    """

    def __init__(self, schema: str, name: str, embedding_dim: int) -> None:
        self.name = name
        self.images = sql.Identifier(schema, name)
        self.about = sql.Identifier(schema, f"{name}_about")
        self.graph = sql.Identifier(f"{name}_graph")
        self._graph_path = sql.Identifier(schema, f"{name}_graph").as_string()
        self._half = sql.SQL("halfvec({})").format(sql.Literal(embedding_dim))
        self._width = sql.Literal(embedding_dim)

    # Making, copying and dropping

    def create(self, connection: Connection[TupleRow], fingerprint: str) -> None:
        """Make both tables, without images."""
        lock_name(connection, self.name)
        fields = sql.SQL(", ").join(
            sql.SQL("{} {} {}").format(
                sql.Identifier(name),
                sql.SQL(kind),
                sql.SQL('COLLATE "C"' if kind == "text" else ""),
            )
            for name, kind in RECORD_COLUMNS.items()
        )
        connection.execute(
            sql.SQL("CREATE TABLE {} ({}, vector vector({}) NOT NULL, PRIMARY KEY (image_id))").format(
                self.images, fields, self._width
            )
        )
        connection.execute(
            sql.SQL("CREATE TABLE {} (fingerprint text, num_images int8, columns jsonb)").format(self.about)
        )
        self._write_comment(connection)
        connection.execute(sql.SQL("INSERT INTO {} VALUES (%s, 0, '{{}}')").format(self.about), [fingerprint])

    def copy(self, connection: Connection[TupleRow], source: Tables) -> None:
        """Make both tables as copies of those of another index, with the graph where that has one."""
        lock_name(connection, self.name)
        has_graph = source.has_graph(connection)
        for target, origin in ((self.images, source.images), (self.about, source.about)):
            connection.execute(sql.SQL("CREATE TABLE {} (LIKE {})").format(target, origin))
            connection.execute(sql.SQL("INSERT INTO {} SELECT * FROM {}").format(target, origin))
        connection.execute(sql.SQL("ALTER TABLE {} ADD PRIMARY KEY (image_id)").format(self.images))
        self._write_comment(connection)
        if has_graph:
            self.build_graph(connection)

    def _write_comment(self, connection: Connection[TupleRow]) -> None:
        comment = f"an index of vitrieve, made by {socket.gethostname()}"  # what the list of tables shows
        connection.execute(sql.SQL("COMMENT ON TABLE {} IS {}").format(self.images, sql.Literal(comment)))

    def drop(self, connection: Connection[TupleRow]) -> None:
        """Remove both tables."""
        connection.execute(sql.SQL("DROP TABLE IF EXISTS {}, {}").format(self.images, self.about))

    def add_columns(self, connection: Connection[TupleRow], about: About, names: Iterable[str]) -> None:
        """Add metadata columns to the table of images, and to ``about``."""
        first = 1 + max((column.number for column in about.columns.values()), default=0)
        additions = []
        for number, name in enumerate(names, start=first):
            about.columns[name] = Column(number=number)
            text, value = column_names(name, number)
            additions += [sql.SQL('ADD COLUMN {} text COLLATE "C"').format(text)]
            additions += [sql.SQL("ADD COLUMN {} float8").format(value)]
        if additions:
            connection.execute(sql.SQL("ALTER TABLE {} {}").format(self.images, sql.SQL(", ").join(additions)))

    # What stands beside the images

    def read_about(self, connection: Connection[TupleRow], *, is_locked: bool = False) -> About:
        """Read what stands beside the images; with ``is_locked`` other writers wait until the transaction ends."""
        lock = sql.SQL("FOR UPDATE" if is_locked else "")
        row = connection.execute(
            sql.SQL("SELECT fingerprint, num_images, columns FROM {} {}").format(self.about, lock)
        ).fetchone()
        fingerprint, num_images, columns = row or ("", 0, {})
        return About(
            fingerprint=fingerprint,
            num_images=num_images,
            columns={
                name: Column(number=number, counts=Counter({int(value): count for value, count in counts.items()}))
                for name, (number, counts) in columns.items()
            },
        )

    def write_about(self, connection: Connection[TupleRow], about: About) -> None:
        """Write what has changed beside the images."""
        columns = {name: (column.number, dict(+column.counts)) for name, column in about.columns.items()}
        connection.execute(
            sql.SQL("UPDATE {} SET num_images = %s, columns = %s").format(self.about),
            [about.num_images, Jsonb(columns)],
        )

    def read_stamp(self, connection: Connection[TupleRow]) -> TupleRow | None:
        """Read what tells the row beside the images from the one that replaces it: who wrote it, and where."""
        return connection.execute(sql.SQL("SELECT xmin::text, ctid::text FROM {}").format(self.about)).fetchone()

    # The images

    def insert(
        self, connection: Connection[TupleRow], about: About, vectors: np.ndarray, records: Sequence[ImageRecord]
    ) -> None:
        """Add images, and count them in ``about``, which knows all their metadata columns."""
        columns = {name: column_names(name, column.number) for name, column in about.columns.items()}
        names = [sql.Identifier(name) for name in (*RECORD_COLUMNS, "vector")]
        names += [name for pair in columns.values() for name in pair]
        table = build_table(records, [None] * len(records), 0).select(list(RECORD_COLUMNS))
        statement = sql.SQL("COPY {} ({}) FROM STDIN (FORMAT BINARY)").format(self.images, sql.SQL(", ").join(names))
        with connection.cursor().copy(statement) as copy:
            copy.set_types([*RECORD_COLUMNS.values(), "vector", *["text", "float8"] * len(columns)])
            for vector, record, values in zip(vectors, records, table.to_pylist(), strict=True):
                texts = [record.metadata.get(name) for name in columns]
                pairs = [value for text in texts for value in (text, _read_number(text))]
                copy.write_row([*values.values(), np.asarray(vector, dtype=np.float32), *pairs])
        about.num_images += len(records)
        about.count({name: [record.metadata.get(name) for record in records] for name in columns}, 1)

    def remove(self, connection: Connection[TupleRow], about: About, image_ids: Sequence[str]) -> int:
        """Remove images, count them out of ``about``, and return how many were there."""
        texts = [column_names(name, column.number)[0] for name, column in about.columns.items()]
        returned = sql.SQL(", ").join([sql.SQL("image_id"), *texts])
        rows = connection.execute(
            sql.SQL("DELETE FROM {} WHERE image_id = ANY(%s) RETURNING {}").format(self.images, returned),
            [list(filter(is_storable, image_ids))],
        ).fetchall()
        about.num_images -= len(rows)
        about.count({name: [row[place] for row in rows] for place, name in enumerate(about.columns, start=1)}, -1)
        return len(rows)

    def select(self, about: About, rest: sql.Composable) -> sql.Composed:
        """Write a query for vectors and records; ``read_vectors`` and ``read_records`` read its rows."""
        names = [sql.Identifier(name) for name in ("vector", *RECORD_COLUMNS)]
        names += [column_names(name, column.number)[0] for name, column in about.columns.items()]
        return sql.SQL("SELECT {} FROM {} {}").format(sql.SQL(", ").join(names), self.images, rest)

    def select_texts(self, about: About, fields: Sequence[str]) -> sql.Composed:
        """Write a query for some fields and the metadata of all images."""
        names = [sql.Identifier(field) for field in fields]
        names += [column_names(name, column.number)[0] for name, column in about.columns.items()]
        return sql.SQL("SELECT {} FROM {}").format(sql.SQL(", ").join(names), self.images)

    def order(self, *, is_graph: bool) -> sql.Composed:
        """Write the order by similarity to a parameter: by the graph, or by comparing every vector that passes."""
        if is_graph:
            return sql.SQL("ORDER BY (vector::{}) <#> (%s::{}) LIMIT %s").format(self._half, self._half)
        # Adding zero keeps the graph out of it: that answers only for the expression alone.
        return sql.SQL("ORDER BY (vector <#> %s::vector({})) + 0 LIMIT %s").format(self._width)

    # The graph

    def has_graph(self, connection: Connection[TupleRow]) -> bool:
        """Say whether the graph is there."""
        row = connection.execute(
            "SELECT EXISTS (SELECT FROM pg_index WHERE indexrelid = to_regclass(%s) AND indisvalid)", [self._graph_path]
        ).fetchone()
        return bool(row and row[0])

    def build_graph(self, connection: Connection[TupleRow]) -> None:
        """Build the graph: of half-precision vectors and their inner products, which are cosines of unit vectors."""
        connection.execute(
            sql.SQL("CREATE INDEX {} ON {} USING hnsw ((vector::{}) halfvec_ip_ops)").format(
                self.graph, self.images, self._half
            )
        )


def _read_number(text: str | None) -> float | None:
    number = None if text is None else read_number(text)
    return None if number is None else number + 0.0  # -0.0 and 0.0 become one number


def column_names(name: str, number: int) -> tuple[sql.Identifier, sql.Identifier]:
    """Name the two columns of a metadata column, of its text and of its number.

    >>> [identifier.as_string() for identifier in column_names("Price (€)", 3)]
    ['"text_3_price"', '"number_3_price"']
    """
    readable = re.sub("[^a-z0-9]+", "_", name.lower()).strip("_")[:40]
    return sql.Identifier(f"text_{number}_{readable}"), sql.Identifier(f"number_{number}_{readable}")


def read_vectors(rows: Sequence[TupleRow], embedding_dim: int) -> np.ndarray:
    """Return the vectors of some rows: ``(N, E)`` float32."""
    vectors: list[Vector] = [row[0] for row in rows]
    return np.array([vector.to_numpy() for vector in vectors], dtype=np.float32).reshape(-1, embedding_dim)


def read_texts(rows: Sequence[TupleRow], about: About) -> TextBlock:
    """Turn rows of a name, a path and the metadata into a block of texts."""
    names, paths, *columns = (pa.array(values, pa.string()) for values in zip(*rows, strict=True))
    return TextBlock(names, paths, dict(zip(about.columns, columns, strict=True)))


def read_records(rows: Sequence[TupleRow], about: About) -> tuple[ImageRecord, ...]:
    """Turn rows back into records."""
    blank = {"status": None, "reason": None, "row": None}
    end = 1 + len(RECORD_COLUMNS)
    values: list[dict[str, Any]] = []
    for row in rows:
        pairs = zip(about.columns, row[end:], strict=False)
        metadata = sorted((name, text) for name, text in pairs if text is not None)
        values.append({**blank, **dict(zip(RECORD_COLUMNS, row[1:end], strict=True)), "metadata": metadata})
    return to_records(pa.Table.from_pylist(values, schema=SCHEMA))


def write_filter(tests: Iterable[ColumnTest], about: About) -> tuple[sql.Composable, list[Any]]:
    """Write a filter as a condition in SQL, and return the values of its parameters beside it."""
    conditions: list[sql.Composable] = [sql.SQL("TRUE")]
    values: list[Any] = []
    for test in tests:
        text, number = column_names(test.column, about.columns[test.column].number)
        parts = []
        singles: dict[bool, list[str | float]] = {}
        for span in test.spans:
            if span.limits[0][0] == "=":
                ends = [end for _, end in span.limits if not isinstance(end, str) or is_storable(end)]
                singles.setdefault(span.is_text, []).extend(ends)
            else:
                parts.append(_write_span(span, text if span.is_text else number))
                values += [_to_parameter(end) for _, end in span.limits]
        for is_text, alternatives in singles.items():
            parts.append(sql.SQL("{} = ANY(%s)").format(text if is_text else number))
            values.append(alternatives)
        is_met = sql.SQL(" OR ").join(parts)
        # Null is neither true nor false: the image has no such column, or its text is no number.
        conditions.append(sql.SQL("({}) IS NOT TRUE" if test.is_negated else "({})").format(is_met))
    return sql.SQL(" AND ").join(conditions), values


def _write_span(span: Span, name: sql.Identifier) -> sql.Composed:
    return sql.SQL("({})").format(
        sql.SQL(" AND ").join(sql.SQL("{} {} %s").format(name, _SIGNS[sign]) for sign, _ in span.limits)
    )


def _to_parameter(end: str | float) -> str | float:
    if not isinstance(end, str):
        return float(end) + 0.0
    if not is_storable(end):
        raise InputError(f"a condition compares with {end!r}; expected UTF-8 without the character NUL.")
    return end


def is_storable(text: str) -> bool:
    """Say whether PostgreSQL can hold a text: it is UTF-8, and has no NUL; no image has any other."""
    try:
        return b"\0" not in text.encode()
    except UnicodeEncodeError:
        return False
