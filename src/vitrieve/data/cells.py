"""Bytes of a picture that is a cell of a Parquet file: groups of rows are decoded whole, and the last ones kept."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from vitrieve.errors import DecodeError
from vitrieve.quoting import quote_name

MAX_GROUP_BYTES = 1 << 30
"""A larger group of rows is not decoded for one picture."""
KEPT_BYTES = 1 << 28
"""Decoded groups that are kept, at least the last one: whoever reads in order decodes each once."""

_Key = tuple[str, int, int, int, int]


class _Groups:
    """The groups of rows that were decoded last."""

    def __init__(self) -> None:
        self._kept: OrderedDict[_Key, pa.ChunkedArray] = OrderedDict()
        self._lock = threading.Lock()

    def read(self, path: Path, row: int, column: int) -> bytes:
        """Return the bytes of a cell; its group of rows is decoded unless it was kept."""
        status = os.stat(path)
        with self._lock:  # threads that want the same group wait for it instead of decoding it too
            with pq.ParquetFile(path, memory_map=False) as parquet:
                group, first = _find_group(parquet, row, column)
                key = (str(path), status.st_mtime_ns, status.st_size, group, column)
                if key not in self._kept:
                    self._keep(key, _decode(parquet, group, column))
            self._kept.move_to_end(key)
            value = self._kept[key][row - first].as_py()
        if value is None:
            raise DecodeError("the row has no bytes of a picture")
        return bytes(value)

    def _keep(self, key: _Key, values: pa.ChunkedArray) -> None:
        self._kept[key] = values
        while len(self._kept) > 1 and sum(one.nbytes for one in self._kept.values()) > KEPT_BYTES:
            self._kept.popitem(last=False)


_GROUPS = _Groups()


def read_cell(path: Path, row: int, column: int) -> bytes:
    """Read one picture out of a Parquet file.

    Args:
        path: The file.
        row: Position of the row in the file.
        column: Number of the column of bytes among the leaves of the file.

    Raises:
        DecodeError: The file is gone, damaged, or holds no bytes there.
    """
    try:
        return _GROUPS.read(path, row, column)
    except DecodeError:
        raise
    except OSError as error:
        raise DecodeError(f"{quote_name(path.name)} cannot be read: {error.strerror or error}") from error
    except (pa.ArrowException, ValueError, TypeError, KeyError, IndexError, OverflowError) as error:
        raise DecodeError(f"{quote_name(path.name)} is damaged: {error}") from error


def _find_group(parquet: pq.ParquetFile, row: int, column: int) -> tuple[int, int]:
    """Find the group of a row, and the position of the group's first row."""
    metadata, first = parquet.metadata, 0
    if column >= metadata.num_columns:
        raise DecodeError(f"the file has no column {column}; it has changed since it was indexed")
    for group in range(metadata.num_row_groups):
        num_rows = metadata.row_group(group).num_rows
        if row < first + num_rows:
            num_bytes = metadata.row_group(group).column(column).total_uncompressed_size
            if num_bytes > MAX_GROUP_BYTES:
                raise DecodeError(
                    f"its group of rows has {num_bytes:,} bytes of pictures; at most {MAX_GROUP_BYTES:,} are decoded. "
                    "Write the file with smaller groups (row_group_size=100)"
                )
            return group, first
        first += num_rows
    raise DecodeError(f"the file has no row {row}; it has changed since it was indexed")


def _decode(parquet: pq.ParquetFile, group: int, column: int) -> pa.ChunkedArray:
    leaf = parquet.schema.column(column).path
    values = parquet.read_row_group(group, columns=[leaf]).column(0)
    if pa.types.is_struct(values.type):
        values = pa.chunked_array(
            [chunk.field("bytes") for chunk in values.chunks], type=values.type.field("bytes").type
        )
    if not (pa.types.is_binary(values.type) or pa.types.is_large_binary(values.type)):
        raise DecodeError(f"the column {quote_name(leaf)} holds no bytes; the file has changed since it was indexed")
    return values
