"""Data sets as the library ``datasets`` of Hugging Face keeps them, read from a folder on disk; nothing is fetched.

Three layouts: Parquet files with the bytes of the pictures (``data/train-00000-of-00002.parquet``); pictures listed in
``metadata.csv`` or ``metadata.jsonl``, whose column ``file_name`` counts from the folder of that file; and class
folders without either, which are read as ``folder:DIR``. Splits come from the names of files or folders that begin
with one.
"""

from __future__ import annotations

import csv
import io
import json
import posixpath
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from vitrieve.data.folder import Role, find_role, has_given_splits, note_class_split, note_shared_classes, read_folder
from vitrieve.data.parts import PARQUET_SUFFIX, spell_part
from vitrieve.data.records import Dataset, ImageRecord, hold_out_labels, printable_name
from vitrieve.data.table import (
    NO_LABEL,
    FoundPath,
    find_path,
    is_name_type,
    note_respelled,
    note_unlabeled,
    spell_cell,
)
from vitrieve.data.walk import walk_pictures
from vitrieve.errors import DataError
from vitrieve.quoting import count_nouns, quote_name

PROTOCOLS = ("own_classes",)
METADATA_NAMES = ("metadata.csv", "metadata.jsonl")
FILE_COLUMN, LABEL_COLUMN, SPLIT_COLUMN = "file_name", "label", "split"
IMAGE_COLUMNS = ("image", "img", "picture", "jpg", "png")
"""Columns that are taken for the picture, in this order, where the file does not say which is."""
MAX_METADATA_BYTES = 1 << 30
"""A larger list of pictures is not read into memory."""


@dataclass(frozen=True, kw_only=True)
class _Row:
    """One picture as its data set describes it; an empty label is none."""

    image_id: str
    path: Path
    label: str
    role: Role | None
    metadata: Mapping[str, str]


@dataclass(kw_only=True)
class _Listing:
    """All rows, names of the classes where the data set numbers them, and what a user must be told.

    ``passed_over`` counts the labels and the splits that are lists or objects.
    """

    rows: list[_Row] = field(default_factory=list)
    passed_over: Counter[str] = field(default_factory=Counter)
    is_labeled: bool = False
    label_names: tuple[str, ...] | None = None
    notes: list[str] = field(default_factory=list)

    def tell(self, note: str) -> None:
        """Add a note, once."""
        self.notes += [note] if note not in self.notes else []


def read_huggingface(folder: Path, protocol: str = PROTOCOLS[0]) -> Dataset:
    """Read a data set of the library ``datasets`` from a folder.

    Args:
        folder: The data set's folder, as downloaded or saved.
        protocol: Only ``own_classes``.

    Returns:
        Records in the order of the files and of their rows. Where no picture has a split, whole classes are held out,
        as in a folder.

    Raises:
        DataError: The folder holds no such data set, a file of it is damaged, or only some pictures have a split.
    """
    if not folder.is_dir():
        kind = "is not a folder" if folder.exists() else "does not exist"
        raise DataError(f"{folder} {kind}; give the folder of a data set, as in hf:DIR.")
    parquet_files = _find_files(folder, f"*{PARQUET_SUFFIX}")
    metadata_files = [file for name in METADATA_NAMES for file in _find_files(folder, name)]
    if metadata_files:
        listing = _list_files(folder, sorted(metadata_files))
    elif parquet_files:
        listing = _list_parquet(folder, parquet_files)
    elif _find_files(folder, "dataset_info.json") and _find_files(folder, "*.arrow"):
        raise DataError(
            f"{folder} was written by save_to_disk, in Arrow files that are not read here; write it with "
            "dataset.to_parquet('DIR/train.parquet') and give hf:DIR."
        )
    else:
        return read_folder(folder, protocol)
    if not listing.rows:
        raise DataError(f"{folder} lists no picture; expected rows in {', '.join(METADATA_NAMES)} or Parquet files.")
    return _build_dataset(folder, protocol, listing)


def _find_files(folder: Path, pattern: str) -> list[Path]:
    found = (path for path in folder.rglob(pattern) if path.is_file())
    return sorted(path for path in found if not any(part.startswith(".") for part in path.relative_to(folder).parts))


def _build_dataset(folder: Path, protocol: str, listing: _Listing) -> Dataset:
    rows, names = listing.rows, listing.label_names or ()
    labels = [row.label or NO_LABEL for row in rows]
    label_names = (*names, *sorted(set(labels).difference(names)))
    numbers = {name: number for number, name in enumerate(label_names)}
    has_splits = has_given_splits([row.role for row in rows], [row.image_id for row in rows])
    counts = Counter(numbers[label] for label in labels)
    held_out = hold_out_labels(counts, {label for label, count in counts.items() if count > 1})
    records = []
    for row, name in zip(rows, labels, strict=True):
        label = numbers[name]
        role = (row.role if has_splits else None) or Role("test" if label in held_out else "train")
        records.append(
            ImageRecord(
                image_id=row.image_id,
                path=row.path,
                label=label,
                split=role.split,
                is_query=role.is_query,
                is_gallery=role.is_gallery,
                metadata=row.metadata,
            )
        )
    notes = note_shared_classes(records) if has_splits else note_class_split(len(counts), len(held_out))
    return Dataset(
        name=printable_name(folder.resolve().name) or "hf",
        protocol=protocol,
        records=tuple(records),
        label_names=label_names,
        notes=(*notes, *listing.notes, *note_unlabeled(sum(not row.label for row in rows), len(label_names))),
    )


# Pictures beside a list


def _list_files(folder: Path, metadata_files: Sequence[Path]) -> _Listing:
    listing, seen, found = _Listing(), set[str](), list[FoundPath]()
    for file in metadata_files:
        base = file.parent.relative_to(folder).as_posix()
        for where, cells in _read_metadata(file, listing):
            name = posixpath.normpath(posixpath.join(base, _take_name(cells, where)))
            if name in seen:
                raise DataError(f"{where}: {quote_name(name)} was listed before; a picture has one row.")
            seen.add(name)
            found.append(find_path(f"./{name}", folder, where))
            listing.rows.append(_build_file_row(name, found[-1], cells))
    if listing.rows and not any(row.path.exists() for row in listing.rows):
        raise DataError(
            f"none of the pictures that {metadata_files[0]} lists exists, for example "
            f"{quote_name(listing.rows[0].path)}."
        )
    listed = {one.path.relative_to(folder).as_posix() for one in found}
    num_unlisted = len(set(walk_pictures(folder).paths) - listed)
    if num_unlisted:
        listing.tell(
            f"{count_nouns(num_unlisted, 'picture is', 'pictures are')} in no list of the data set and left out."
        )
    for name, count in listing.passed_over.items():
        pictures = count_nouns(count, "picture has", "pictures have")
        listing.tell(f"{pictures} a list or an object as {name}, which names no {name} and is passed over.")
    listing.notes += note_respelled(found)
    return listing


def _build_file_row(name: str, found: FoundPath, cells: Mapping[str, str]) -> _Row:
    label = cells.get(LABEL_COLUMN, "").strip()
    return _Row(
        image_id=printable_name(name),
        path=found.path,
        label=printable_name(label),
        role=find_role(cells.get(SPLIT_COLUMN, "")) or find_role(name),
        metadata={key: value for key, value in cells.items() if key not in (FILE_COLUMN, LABEL_COLUMN, SPLIT_COLUMN)},
    )


def _take_name(cells: Mapping[str, str], where: str) -> str:
    name = cells.get(FILE_COLUMN, "")
    if not name:
        raise DataError(f"{where} has no {FILE_COLUMN!r}; each row names a picture relative to the folder of its file.")
    if name.startswith(("/", "~")) or "\\" in name or "\0" in name or ".." in name.split("/") or _has_drive(name):
        raise DataError(
            f"{where}: {FILE_COLUMN} is {quote_name(name)}; a picture lies below the folder of its list, named "
            "with '/'."
        )
    return name


def _has_drive(name: str) -> bool:
    return sys.platform == "win32" and ":" in name


def _read_metadata(file: Path, listing: _Listing) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield the rows of a list as text, each with how a message names it; ``listing`` counts what is passed over."""
    try:
        if file.stat().st_size > MAX_METADATA_BYTES:
            raise DataError(f"{file} has more than {MAX_METADATA_BYTES:,} bytes; split it, one for each folder.")
        text = file.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{file} is not UTF-8 text ({error}).") from None
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror or error}.") from None
    rows = _read_csv(file, text) if file.suffix == ".csv" else _read_lines(file, text, listing)
    for where, cells in rows:
        yield where, {_clean(str(key)): _clean(value) for key, value in cells.items()}


def _clean(text: str) -> str:
    return printable_name(text.replace("\0", "\N{REPLACEMENT CHARACTER}"))


def _read_csv(file: Path, text: str) -> Iterator[tuple[str, dict[str, str]]]:
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    try:
        columns = Counter(name for name in reader.fieldnames or () if name)
        if columns and max(columns.values()) > 1:
            raise DataError(f"{file} has the column {columns.most_common(1)[0][0]!r} twice.")
        for cells in reader:
            where = f"{file}, line {reader.line_num}"
            if None in cells or None in cells.values():
                raise DataError(f"{where} has another number of cells than the header.")
            if any(map(str.strip, cells.values())):  # spreadsheets leave empty rows, and columns without a name
                yield where, {name: cell for name, cell in cells.items() if name.strip()}
    except csv.Error as error:
        raise DataError(f"{file}, line {reader.line_num}: {error}.") from None


def _read_lines(file: Path, text: str, listing: _Listing) -> Iterator[tuple[str, dict[str, str]]]:
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{file}, line {number}"
        try:
            values = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{where} is no JSON: {error}.") from None
        if not isinstance(values, dict):
            raise DataError(f"{where} is no JSON object.")
        listing.passed_over.update(
            name for name in (LABEL_COLUMN, SPLIT_COLUMN) if isinstance(values.get(name), list | dict)
        )
        yield where, _spell_scalars(values)


def _spell_scalars(values: Mapping[str, Any]) -> dict[str, str]:
    """Spell texts, numbers and truth values; lists and objects are no metadata that a search could use."""
    return {key: spell_cell(value) for key, value in values.items() if isinstance(value, str | int | float | bool)}


# Pictures inside Parquet files


class _Columns(NamedTuple):
    """Which columns of a file say what.

    Attributes:
        image: Name of the picture's column.
        number: Number of the column of bytes among the leaves of the file.
        is_struct: Whether the picture is a structure of ``bytes`` and ``path``; else it is bytes alone.
        label: Name of the label's column; None where there is none.
        names: Names of the classes that the label numbers; None where the label is a name itself.
        others: Names of the columns that are metadata.
        note: What a user must be told; empty where it is nothing.
    """

    image: str
    number: int
    is_struct: bool
    label: str | None
    names: tuple[str, ...] | None
    others: tuple[str, ...]
    note: str


def _list_parquet(folder: Path, files: Sequence[Path]) -> _Listing:
    listing = _Listing()
    listing.tell(
        "the pictures are inside Parquet files, which give a group of rows at a time; training, which reads them in "
        "any order, is faster after vitrieve data pack."
    )
    for file in files:
        try:
            _list_one_parquet(folder, file, listing)
        except DataError:
            raise
        except (pa.ArrowException, OSError, ValueError, KeyError, TypeError, OverflowError, AttributeError) as error:
            raise DataError(f"{file} is not a readable Parquet file of pictures: {error}.") from None
    return listing


def _list_one_parquet(folder: Path, file: Path, listing: _Listing) -> None:
    relative = file.relative_to(folder).as_posix()
    with pq.ParquetFile(file) as parquet:
        columns = _find_columns(parquet, file)
        wanted = [*columns.others, *([columns.label] if columns.label else [])]
        wanted += [f"{columns.image}.path"] if columns.is_struct else []
        rows = parquet.read(columns=wanted).to_pylist() if wanted else [{} for _ in range(parquet.metadata.num_rows)]
    if columns.note:
        listing.tell(columns.note)
    if columns.label is not None:
        if listing.is_labeled and listing.label_names != columns.names:
            raise DataError(f"{file} numbers its classes otherwise than the files before it.")
        listing.is_labeled, listing.label_names = True, columns.names
    role, stem = find_role(relative), printable_name(relative.removesuffix(PARQUET_SUFFIX))
    for number, cells in enumerate(rows):
        name = (cells.get(columns.image) or {}).get("path") if columns.is_struct else None
        label = _name_label(cells.get(columns.label) if columns.label else None, columns, f"{file}, row {number + 1}")
        metadata = {key: _clean(spell_cell(cells[key])) for key in columns.others}
        listing.rows.append(
            _Row(
                image_id=f"{stem}/{number:06}",
                path=spell_part(str(file), number, columns.number, ""),
                label=label,
                role=role,
                metadata={**metadata, **({FILE_COLUMN: _clean(str(name))} if name else {})},
            )
        )


def _name_label(value: Any, columns: _Columns, where: str) -> str:
    """Name the class of a row; empty for a missing one, which is null, or -1 where classes are numbered.

    Raises:
        DataError: There is no class of that number.
    """
    if columns.names is None:
        return _clean(spell_cell(value)).strip()
    if value is None or value == -1:
        return ""
    if not isinstance(value, int) or not 0 <= value < len(columns.names):
        raise DataError(f"{where}: the label is {value!r}, and there are {len(columns.names)} classes.")
    return columns.names[value]


def _find_columns(parquet: pq.ParquetFile, file: Path) -> _Columns:
    schema = parquet.schema_arrow
    features = _read_features(schema)
    image = _find_image_column(schema, features)
    if image is None:
        raise DataError(
            f"{file} has no column of pictures; expected one called {' or '.join(IMAGE_COLUMNS)}, of bytes or of bytes "
            f"and path. Found: {', '.join(map(quote_name, schema.names))}."
        )
    is_struct = pa.types.is_struct(schema.field(image).type)
    leaf = f"{image}.bytes" if is_struct else image
    leaves = [parquet.schema.column(number).path for number in range(len(parquet.schema))]
    numbered = (name for name, one in features.items() if one.get("_type") == "ClassLabel" and name in schema.names)
    label = next(numbered, LABEL_COLUMN if LABEL_COLUMN in schema.names else None)
    note = ""
    if label is not None and not is_name_type(schema.field(label).type):
        note = f"the column {label!r} is of the type {schema.field(label).type}, which names no class, and is no label."
        label = None
    names = features.get(label, {}).get("names") if label else None
    return _Columns(
        image=image,
        number=leaves.index(leaf),
        is_struct=is_struct,
        label=label,
        names=None if names is None else tuple(_clean(str(name)) for name in names),
        others=tuple(one.name for one in schema if one.name not in (image, label) and _is_scalar(one.type)),
        note=note,
    )


def _read_features(schema: pa.Schema) -> dict[str, dict[str, Any]]:
    """Read what the library says of the columns; empty where another program wrote the file."""
    try:
        found = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))["info"]["features"]
        return {name: one for name, one in found.items() if isinstance(one, dict)}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}


def _find_image_column(schema: pa.Schema, features: Mapping[str, Mapping[str, Any]]) -> str | None:
    told = [name for name, one in features.items() if one.get("_type") == "Image"]
    for name in (*told, *IMAGE_COLUMNS):
        if name in schema.names and _holds_bytes(schema.field(name).type):
            return name
    return None


def _holds_bytes(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        names = [one.name for one in kind]
        return "bytes" in names and "path" in names and _holds_bytes(kind.field("bytes").type)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _is_scalar(kind: pa.DataType) -> bool:
    types = pa.types
    is_text = types.is_string(kind) or types.is_large_string(kind)
    is_number = types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind)
    return bool(is_text or is_number or (types.is_temporal(kind) and not types.is_duration(kind)))
