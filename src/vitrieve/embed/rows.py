"""Image records as an Arrow table, the content of ``rows.parquet``."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from vitrieve.data.records import ImageRecord, parse_path, spell_path
from vitrieve.errors import ArtifactError

STATUS_OK = "ok"
STATUS_BAD = "bad"

SCHEMA = pa.schema(
    [
        ("image_id", pa.string()),
        ("path", pa.string()),
        ("status", pa.string()),
        ("reason", pa.string()),  # null where the status is ok
        ("row", pa.int64()),  # in vectors.npy; null where the status is bad
        ("label", pa.int64()),
        ("split", pa.string()),
        ("is_query", pa.bool_()),
        ("is_gallery", pa.bool_()),
        ("box", pa.list_(pa.float64())),
        ("metadata", pa.map_(pa.string(), pa.string())),
    ]
)


def build_table(records: Sequence[ImageRecord], reasons: Sequence[str | None], first_row: int) -> pa.Table:
    """Build the table of some records.

    Args:
        records: Any number of records.
        reasons: Reason why a record has no vector, for each record; None where it has one.
        first_row: Row in ``vectors.npy`` of the first good record.

    Returns:
        A table of ``SCHEMA``, one row for each record, in order; paths are absolute, as ``spell_path`` spells them.
    """
    columns: dict[str, list[Any]] = {name: [] for name in SCHEMA.names}
    row = first_row
    for record, reason in zip(records, reasons, strict=True):
        values = {
            "image_id": record.image_id,
            "path": spell_path(os.path.abspath(record.path)),
            "status": STATUS_OK if reason is None else STATUS_BAD,
            "reason": reason,
            "row": row if reason is None else None,
            "label": record.label,
            "split": record.split,
            "is_query": record.is_query,
            "is_gallery": record.is_gallery,
            "box": None if record.box is None else list(record.box),
            "metadata": sorted(record.metadata.items()),
        }
        row += reason is None
        for name, value in values.items():
            columns[name].append(value)
    return pa.table(columns, schema=SCHEMA)


def read_rows(path: Path) -> pa.Table:
    """Read a table of ``SCHEMA`` from a Parquet file.

    Raises:
        ArtifactError: The file is missing or damaged.
    """
    try:
        return pq.read_table(path, schema=SCHEMA)
    except (OSError, pa.ArrowException) as error:
        raise ArtifactError(f"{path} cannot be read ({error}); make the artifact again.") from None


def to_records(table: pa.Table) -> tuple[ImageRecord, ...]:
    """Turn rows of a table back into records."""
    return tuple(_to_record(values) for values in table.to_pylist())


def _to_record(values: Mapping[str, Any]) -> ImageRecord:
    box = values["box"]
    return ImageRecord(
        image_id=values["image_id"],
        path=parse_path(values["path"]),
        label=values["label"],
        split=values["split"],
        is_query=values["is_query"],
        is_gallery=values["is_gallery"],
        box=None if box is None else (box[0], box[1], box[2], box[3]),
        metadata=dict(values["metadata"]),
    )
