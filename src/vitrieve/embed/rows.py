"""Image records as an Arrow table, the content of ``rows.parquet``."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from vitrieve.data.records import (
    SPLITS,
    Box,
    ImageRecord,
    RecordColumns,
    RecordTable,
    find_absolute,
    parse_path,
    spell_path,
)
from vitrieve.errors import ArtifactError

STATUS_OK = "ok"
STATUS_BAD = "bad"
GROUP_ROWS = 2048
"""Records of a row group: what the file says of each group takes 35 kB of memory, whoever reads it."""
NUM_GROUPS_HELD = 16
"""Row groups that ``StoredRecords`` keeps: who asks for neighbors reads them once."""

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
            "path": spell_path(find_absolute(record.path)),
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
        with pq.ParquetFile(path) as file:
            # Elsewhere pyarrow's datasets would read it, and importing them imports pandas, where that is installed.
            if file.schema_arrow.equals(SCHEMA):
                return file.read().replace_schema_metadata()
        return pq.read_table(path, schema=SCHEMA)
    except (OSError, pa.ArrowException) as error:
        raise ArtifactError(f"{path} cannot be read ({error}); make the artifact again.") from None


def take_rows(table: pa.Table, rows: np.ndarray | Sequence[int]) -> pa.Table:
    """Return the rows at some places of a table, in that order.

    Args:
        table: Any table.
        rows: ``(K,)`` places, integers; ``pa.array`` of an array would import pandas, where that is installed.
    """
    places = np.ascontiguousarray(rows, dtype=np.int64)
    return table.take(pa.Array.from_buffers(pa.int64(), len(places), [None, pa.py_buffer(places)]))


def to_records(table: pa.Table) -> tuple[ImageRecord, ...]:
    """Turn rows of a table back into records."""
    return tuple(map(to_record, table.to_pylist()))


def to_record(values: Mapping[str, Any]) -> ImageRecord:
    """Turn the values of a row, metadata as pairs among them, back into a record."""
    return ImageRecord(
        image_id=values["image_id"],
        path=parse_path(values["path"]),
        label=values["label"],
        split=values["split"],
        is_query=values["is_query"],
        is_gallery=values["is_gallery"],
        box=_to_box(values["box"]),
        metadata=dict(values["metadata"]),
    )


def _to_box(sides: Sequence[float] | None) -> Box | None:
    return None if sides is None else (sides[0], sides[1], sides[2], sides[3])


class StoredRecords(RecordTable):
    """The records of the good rows of a file, each made when it is asked for, a row group at a time.

    Memory holds a byte for each row and a few row groups, whatever the size of the file. The file stays open: what is
    read is what was there when it was opened, also where another one takes its place.

    Args:
        path: A Parquet file of ``SCHEMA``.

    Raises:
        ArtifactError: The file is missing or damaged; reading the records may raise it too.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()  # several threads must not read from one file
        try:
            self._file = pq.ParquetFile(path)
        except (OSError, pa.ArrowException) as error:
            raise self._explain(error) from None
        num_good, num_rows = [], []
        for table in self._read_groups(range(self._file.num_row_groups), ["status"]):
            num_rows.append(len(table))
            num_good.append(pc.sum(pc.equal(table["status"], STATUS_OK), min_count=0).as_py() or 0)
        self._bad_groups = np.flatnonzero(np.array(num_rows) > np.array(num_good))
        self._ends = np.cumsum(num_good, dtype=np.int64)  # good rows up to the end of each group
        self._read_held = lru_cache(NUM_GROUPS_HELD)(self._read)

    def __len__(self) -> int:
        """Count the records."""
        return int(self._ends[-1]) if len(self._ends) else 0

    def _make(self, row: int) -> ImageRecord:
        group = int(np.searchsorted(self._ends, row, side="right"))
        records = self._read_held(group)
        return records[row - (int(self._ends[group]) - len(records))]

    def __iter__(self) -> Iterator[ImageRecord]:
        """Make the records one after the other."""
        for group in range(len(self._ends)):
            yield from self._read(group)

    def read_columns(self) -> RecordColumns:
        """Return the columns of all records."""
        shape = len(self)
        labels, splits = np.empty(shape, np.int64), np.empty(shape, np.int8)
        is_query, is_gallery = np.empty(shape, np.bool_), np.empty(shape, np.bool_)
        arrays: tuple[np.ndarray, ...] = (labels, splits, is_query, is_gallery)
        start = 0
        names = ["label", "split", "is_query", "is_gallery"]
        for table in self._read_good(names):
            rows = slice(start, start + len(table))
            codes = pc.index_in(table["split"], value_set=pa.array(SPLITS))
            columns = (table["label"], codes, table["is_query"], table["is_gallery"])
            for out, column in zip(arrays, columns, strict=True):
                if column.null_count:
                    raise self._explain(ValueError("a label, a split or a role is missing"))
                out[rows] = column.to_numpy()
            start = rows.stop
        return RecordColumns(labels, splits, is_query, is_gallery)

    def read_ids(self) -> Iterator[str]:
        """Yield the name of every record."""
        for table in self._read_good(["image_id"]):
            yield from table["image_id"].to_pylist()

    def read_boxes(self) -> Iterator[Box | None]:
        """Yield the box of every record."""
        for table in self._read_good(["box"]):
            yield from map(_to_box, table["box"].to_pylist())

    def read_failures(self) -> tuple[tuple[str, str], ...]:
        """Read ``(image_id, reason)`` of the bad rows."""
        found: list[tuple[str, str]] = []
        for table in self._read_groups(self._bad_groups.tolist(), ["status", "image_id", "reason"]):
            bad = table.filter(pc.not_equal(table["status"], STATUS_OK))
            found += zip(bad["image_id"].to_pylist(), bad["reason"].to_pylist(), strict=True)
        return tuple(found)

    def _read_good(self, names: Sequence[str]) -> Iterator[pa.Table]:
        """Read some columns of the good rows, a row group at a time."""
        for table in self._read_groups(range(len(self._ends)), ["status", *names]):
            yield table.filter(pc.equal(table["status"], STATUS_OK))

    def _read_groups(self, groups: Iterable[int], names: Sequence[str]) -> Iterator[pa.Table]:
        for group in groups:
            try:
                with self._lock:
                    table = self._file.read_row_group(group, columns=list(names))
                if table.column_names != list(names):
                    raise ValueError(f"it lacks one of the columns {', '.join(names)}")
            except (OSError, ValueError, pa.ArrowException) as error:
                raise self._explain(error) from None
            yield table

    def __reduce__(self) -> tuple[Any, ...]:
        """Go to another process as a tuple: there the file may be another one."""
        return (tuple, (list(self),))

    def _read(self, group: int) -> tuple[ImageRecord, ...]:
        try:
            with self._lock:
                table = self._file.read_row_group(group)
            return to_records(table.filter(pc.equal(table["status"], STATUS_OK)))
        except (OSError, KeyError, TypeError, ValueError, pa.ArrowException) as error:
            raise self._explain(error) from None

    def _explain(self, error: Exception) -> ArtifactError:
        return ArtifactError(f"{self._path} cannot be read ({error}); make the artifact again.")
