"""How images and filters look in a LanceDB table.

Every metadata column of the collection is two columns of the table: its text, and the number that the text reads as
(null where it is none), so that a filter in SQL means what ``filter.passes`` says.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterable, Sequence
from functools import reduce
from operator import or_
from pathlib import Path

import numpy as np
import pyarrow as pa

from vitrieve.data.records import ImageRecord
from vitrieve.embed.rows import SCHEMA as ROWS_SCHEMA
from vitrieve.embed.rows import build_table, to_record
from vitrieve.index.filter import (
    BOOLEANS,
    CODE_PATTERN,
    DATE_PATTERN,
    NOTHING,
    YEAR_PATTERN,
    ColumnTest,
    Kinds,
    read_number,
)
from vitrieve.index.lance_files import Table, read_version_stamp
from vitrieve.index.store import TextBlock

RECORD_COLUMNS = ("image_id", "path", "label", "split", "is_query", "is_gallery", "box")
_TEXT, _NUMBER = "text_", "number_"


def build_schema(embedding_dim: int, columns: Iterable[str], fingerprint: str) -> pa.Schema:
    """Build the table's schema; the fingerprint of the encoder stands in its metadata."""
    fields = [ROWS_SCHEMA.field(name) for name in RECORD_COLUMNS]
    fields.append(pa.field("vector", pa.list_(pa.float32(), embedding_dim)))
    return pa.schema([*fields, *metadata_fields(columns)], metadata={"fingerprint": fingerprint})


def metadata_fields(columns: Iterable[str]) -> list[pa.Field]:
    """Return the fields of some metadata columns."""
    return [
        pa.field(prefix + _encode(column), kind)
        for column in columns
        for prefix, kind in ((_TEXT, pa.string()), (_NUMBER, pa.float64()))
    ]


def metadata_columns(schema: pa.Schema) -> tuple[str, ...]:
    """Return the names of the metadata columns of a table, sorted."""
    return tuple(sorted(_decode(name.removeprefix(_TEXT)) for name in schema.names if name.startswith(_TEXT)))


def build_rows(vectors: np.ndarray, records: Sequence[ImageRecord], schema: pa.Schema) -> pa.Table:
    """Build rows of the table.

    Args:
        vectors: ``(N, E)`` float32.
        records: Their images; all their metadata columns are in ``schema``.
        schema: Schema of the table.
    """
    table = build_table(records, [None] * len(records), 0)
    arrays = {name: table[name] for name in RECORD_COLUMNS}
    flat = pa.array(np.ascontiguousarray(vectors, dtype=np.float32).reshape(-1))
    arrays["vector"] = pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1])
    for column in metadata_columns(schema):
        texts = [record.metadata.get(column) for record in records]
        # Adding zero makes -0.0 and 0.0 one number: the engine tells them apart.
        numbers = [None if text is None or (n := read_number(text)) is None else n + 0.0 for text in texts]
        arrays[_TEXT + _encode(column)] = pa.array(texts, pa.string())
        arrays[_NUMBER + _encode(column)] = pa.array(numbers, pa.float64())
    return pa.table([arrays[name] for name in schema.names], schema=schema)


def record_names(schema: pa.Schema) -> list[str]:
    """Return the table's columns that make up a record."""
    return [*RECORD_COLUMNS, *(name for name in schema.names if name.startswith(_TEXT))]


def read_records(rows: pa.Table) -> tuple[ImageRecord, ...]:
    """Turn rows of the table back into records."""
    texts = [
        (_decode(name.removeprefix(_TEXT)), rows[name].to_pylist())
        for name in rows.schema.names
        if name.startswith(_TEXT)
    ]
    texts.sort()
    described = rows.select(RECORD_COLUMNS).to_pylist()
    for row, values in enumerate(described):
        values["metadata"] = [(column, found[row]) for column, found in texts if found[row] is not None]
    return tuple(map(to_record, described))


def read_texts(rows: pa.RecordBatch) -> TextBlock:
    """Take the texts out of rows of the table."""
    columns = {_decode(name.removeprefix(_TEXT)): rows[name] for name in rows.schema.names if name.startswith(_TEXT)}
    return TextBlock(rows["image_id"], rows["path"], columns)


def read_vectors(rows: pa.Table, embedding_dim: int) -> np.ndarray:
    """Return the vectors of some rows: ``(N, E)`` float32."""
    if not rows.num_rows:
        return np.empty((0, embedding_dim), dtype=np.float32)
    return np.asarray(rows["vector"].combine_chunks().flatten()).reshape(-1, embedding_dim)


def to_sql(tests: Iterable[ColumnTest]) -> str | None:
    """Write a filter as a condition in SQL; None for one that lets everything pass."""
    return " AND ".join(f"({_test_sql(test)})" for test in tests) or None


def kinds_sql(column: str) -> dict[Kinds, str]:
    """Write for each kind, as a condition in SQL, that a value of the column is of that kind, as ``read_kinds``."""
    text, number = _TEXT + _encode(column), _NUMBER + _encode(column)
    boolean = f"{text} IN ({', '.join(map(_quote, BOOLEANS))})"
    year, date, code = (
        f"regexp_like({text}, {_quote(f'^({pattern})$')})" for pattern in (YEAR_PATTERN, DATE_PATTERN, CODE_PATTERN)
    )
    return {
        Kinds.TEXT: f"{text} <> '' AND NOT ({boolean}) AND NOT {date} AND ({number} IS NULL OR {code})",
        Kinds.NUMBER: f"{number} IS NOT NULL AND NOT {year}",
        Kinds.YEAR: year,
        Kinds.BOOLEAN: boolean,
        Kinds.DATE: date,
    }


def names_sql(image_ids: Iterable[str]) -> str:
    """Write "one of these images" as a condition in SQL."""
    return f"image_id IN ({', '.join(map(_quote, image_ids))})"


def _test_sql(test: ColumnTest) -> str:
    column = _encode(test.column)
    singles: dict[str, list[str]] = {_TEXT: [], _NUMBER: []}
    parts = []
    for span in test.spans:
        prefix = _TEXT if span.is_text else _NUMBER
        comparisons = [(sign, _literal(end)) for sign, end in span.limits]
        if comparisons[0][0] == "=":
            singles[prefix].append(comparisons[0][1])
        else:
            parts.append(" AND ".join(f"{prefix}{column} {sign} {literal}" for sign, literal in comparisons))
    parts += [f"{prefix}{column} IN ({', '.join(literals)})" for prefix, literals in singles.items() if literals]
    is_met = " OR ".join(f"({part})" for part in parts)
    # Null is neither true nor false: the image has no such column, or its text is no number.
    return f"({is_met}) IS NOT TRUE" if test.is_negated else is_met


def _literal(value: str | float) -> str:
    return _quote(value) if isinstance(value, str) else f"CAST('{float(value) + 0.0!r}' AS DOUBLE)"


def _quote(text: str) -> str:
    """Write text as an SQL literal: a quote inside is doubled, and nothing else is special."""
    return "'" + text.replace("'", "''") + "'"


def _encode(column: str) -> str:
    """Spell any text as lower-case letters, digits and underscores: SQL folds case and splits at dots."""
    return re.sub(rb"[^a-z0-9]", lambda byte: b"_" + byte[0].hex().encode(), column.encode("utf-8")).decode("ascii")


def _decode(name: str) -> str:
    return re.sub(rb"_([0-9a-f]{2})", lambda code: bytes.fromhex(code[1].decode()), name.encode("ascii")).decode(
        "utf-8"
    )


class KnownKinds:
    """The kinds of columns that were asked for, of one version of the table.

    Args:
        folder: The index.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        # Replaced as one, because threads search at the same time.
        self._known: tuple[Hashable, dict[str, Kinds]] = (None, {})

    def find(self, table: Table, columns: Sequence[str]) -> dict[str, Kinds]:
        """Find the kinds of some columns, as the table is now."""
        stamp = read_version_stamp(self._folder)  # before the table is read: what is found is of then or later
        known = self._known[1] if stamp is not None and stamp == self._known[0] else {}
        found = {column: known[column] if column in known else _find_kinds(table, column) for column in columns}
        self._known = (stamp, {**known, **found})
        return found


def _find_kinds(table: Table, column: str) -> Kinds:
    """Look for one value of each kind."""
    return reduce(
        or_,
        (
            kind
            for kind, condition in kinds_sql(column).items()
            if table.search().where(condition).select(["image_id"]).limit(1).to_arrow().num_rows
        ),
        NOTHING,
    )
