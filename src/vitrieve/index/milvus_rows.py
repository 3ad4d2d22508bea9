"""How images and filters look in a Milvus collection. Next: ``milvus_server.py``.

pymilvus 3.0 writes primary keys into filter expressions without escaping them (its ``delete`` by ids and its query
iterator), and milvus-lite takes no templates. So every text that a filter may meet is spelled in hexadecimal: it
needs no escape and keeps its order.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from vitrieve.data.records import ImageRecord
from vitrieve.embed.rows import SCHEMA, build_table, to_records
from vitrieve.index.filter import Condition, Filter, read_number

ROW_FIELDS = ("key", "record", "vector")
NO_IMAGE_KEY = "none"
"""Key that no image has: theirs begin with x."""
_TEXT, _NUMBER = "text_", "number_"


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
    return terms | {name: number + 0.0 for name, number in numbers.items() if number is not None}


def read_records(rows: Sequence[Mapping[str, Any]]) -> tuple[ImageRecord, ...]:
    """Turn entities back into records."""
    blank = {"status": None, "reason": None, "row": None}
    values = []
    for row in rows:
        record = json.loads(row["record"]) if isinstance(row["record"], (str, bytes)) else row["record"]
        values.append({**blank, **record, "metadata": sorted(record["metadata"].items())})
    return to_records(pa.Table.from_pylist(values, schema=SCHEMA))


def read_vectors(rows: Sequence[Mapping[str, Any]], embedding_dim: int) -> np.ndarray:
    """Return the vectors of some entities: ``(N, E)`` float32."""
    return np.array([row["vector"] for row in rows], dtype=np.float32).reshape(-1, embedding_dim)


def to_expression(filter: Filter) -> str:
    """Write a filter in Milvus's language; empty for one that lets everything pass."""
    return " and ".join(f"({_to_expression(condition)})" for condition in filter)


def _to_expression(condition: Condition) -> str:
    comparisons = []
    for value in condition.values:
        is_text = isinstance(value, str)
        place = f'terms["{_TEXT if is_text else _NUMBER}{to_key(condition.column)}"]'
        literal = f'"{to_key(value)}"' if isinstance(value, str) else repr(float(value) + 0.0)
        if condition.operator == "!=":
            comparisons.append(f"(not (exists {place}) or not ({place} == {literal}))")
        else:
            sign = "==" if condition.operator == "=" else condition.operator
            comparisons.append(f"{place} {sign} {literal}")
    return (" and " if condition.operator == "!=" else " or ").join(comparisons)
