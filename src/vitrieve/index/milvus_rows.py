"""How images and filters look in a Milvus collection.

pymilvus 3.0 writes primary keys into filter expressions without escaping them (its ``delete`` by ids and its query
iterator), and milvus-lite takes no templates. So every text that a filter may meet is spelled in hexadecimal: it
needs no escape and keeps its order.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from vitrieve.data.records import ImageRecord, spell_path
from vitrieve.embed.rows import SCHEMA, build_table, to_records
from vitrieve.index.filter import ColumnTest, Kinds, Span, read_kinds, read_number
from vitrieve.index.store import TextBlock

ROW_FIELDS = ("key", "record", "vector")
NO_IMAGE_KEY = "none"
"""Key that no image has: theirs begin with x."""
_TEXT, _NUMBER, _KINDS = "text_", "number_", "kinds_"


def to_key(text: str) -> str:
    """Spell any text so that it needs no escaping and orders as the text does.

    >>> to_key("it's")
    'x69742773'
    """
    return "x" + text.encode("utf-8").hex()


def from_key(key: str) -> str:
    """Undo ``to_key``."""
    return bytes.fromhex(key[1:]).decode("utf-8")


def build_rows(vectors: np.ndarray, records: Sequence[ImageRecord]) -> list[dict[str, Any]]:
    """Build the entities of some images: key, vector, the record, and what filters look at."""
    values = build_table(records, [None] * len(records), 0).drop_columns(["status", "reason", "row"]).to_pylist()
    return [
        {
            "key": to_key(record.image_id),
            "vector": np.asarray(vector, dtype=np.float32),
            "record": {**value, "metadata": dict(value["metadata"])},
            "terms": _build_terms(record.metadata),
        }
        for vector, record, value in zip(vectors, records, values, strict=True)
    ]


def _build_terms(metadata: Mapping[str, str]) -> dict[str, str | float]:
    terms: dict[str, str | float] = {_TEXT + to_key(column): to_key(text) for column, text in metadata.items()}
    numbers = {_NUMBER + to_key(column): read_number(text) for column, text in metadata.items()}
    kinds = {_KINDS + to_key(column): read_kinds(text).value for column, text in metadata.items() if text}
    return terms | {name: number + 0.0 for name, number in numbers.items() if number is not None} | kinds


def read_records(rows: Sequence[Mapping[str, Any]]) -> tuple[ImageRecord, ...]:
    """Turn entities back into records."""
    blank = {"status": None, "reason": None, "row": None}
    values = []
    for row in rows:
        record = json.loads(row["record"]) if isinstance(row["record"], (str, bytes)) else row["record"]
        values.append({**blank, **record, "metadata": sorted(record["metadata"].items())})
    return to_records(pa.Table.from_pylist(values, schema=SCHEMA))


def read_texts(rows: Sequence[Mapping[str, Any]]) -> TextBlock:
    """Turn entities into a block of texts."""
    records = read_records(rows)
    columns = sorted({column for record in records for column in record.metadata})
    return TextBlock(
        pa.array([record.image_id for record in records], pa.string()),
        pa.array([spell_path(record.path) for record in records], pa.string()),
        {column: pa.array([record.metadata.get(column) for record in records], pa.string()) for column in columns},
    )


def read_vectors(rows: Sequence[Mapping[str, Any]], embedding_dim: int) -> np.ndarray:
    """Return the vectors of some entities: ``(N, E)`` float32."""
    return np.array([row["vector"] for row in rows], dtype=np.float32).reshape(-1, embedding_dim)


def to_expression(tests: Iterable[ColumnTest]) -> str:
    """Write a filter in Milvus's language; empty for one that lets everything pass."""
    return " and ".join(f"({_write_test(test)})" for test in tests)


def other_kinds_expression(column: str, known: Iterable[Kinds]) -> str:
    """Write that an image has a value of other kinds than these."""
    term = f'terms["{_KINDS}{to_key(column)}"]'
    return " and ".join([f"exists {term}", *(f"{term} != {kinds.value}" for kinds in known)])


def unknown_kinds_expression(column: str) -> str:
    """Write that an image has a value of which no kind is written down: those of indexes before there were kinds."""
    text, kinds = (f'terms["{prefix}{to_key(column)}"]' for prefix in (_TEXT, _KINDS))
    return f'exists {text} and not (exists {kinds}) and not ({text} == "{to_key("")}")'


def _write_test(test: ColumnTest) -> str:
    column = to_key(test.column)
    if test.is_negated:
        return " and ".join(
            f"(not (exists {_name_term(column, span)}) or not ({_write(column, span)}))" for span in test.spans
        )
    return " or ".join(f"({_write(column, span)})" for span in test.spans)


def _name_term(column: str, span: Span) -> str:
    return f'terms["{_TEXT if span.is_text else _NUMBER}{column}"]'


def _write(column: str, span: Span) -> str:
    term = _name_term(column, span)
    literals = [
        (sign, f'"{to_key(end)}"' if isinstance(end, str) else repr(float(end) + 0.0)) for sign, end in span.limits
    ]
    return " and ".join(f"{term} {'==' if sign == '=' else sign} {literal}" for sign, literal in literals)
