"""The user's own images, listed in a table: one row an image, as CSV or Parquet.

Columns: ``path`` (relative to the table's folder); optional ``label`` (needed to train and to measure), ``split``
(train, validation, test), ``is_query``, ``is_gallery`` (true, false, 1, 0, or empty, which says nothing), the box
``x_1, y_1, x_2, y_2`` in pixels, ``junk_group`` (for a query, the images of its own group are neither right nor wrong
in an evaluation); every other column is metadata. A malformed table is an error that names the row; a listed image
that turns out to be missing or damaged is reported by whoever decodes it, unless not a single one is there.

Tables come from other machines and other programs. A path is recognized by its form: what can be read is read, and
what cannot is refused with what to do.
"""

from __future__ import annotations

import csv
import io
import math
import os
import posixpath
import re
import sys
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any, Literal, NamedTuple
from urllib.parse import unquote, urlsplit

from vitrieve.data.folder import note_alike, note_class_split, note_shared_classes
from vitrieve.data.layout import name_some
from vitrieve.data.records import (
    SPLITS,
    Dataset,
    ImageRecord,
    Split,
    find_measurable,
    hold_out_labels,
    printable_name,
)
from vitrieve.data.remote import parse_address, shorten_addresses
from vitrieve.errors import DataError
from vitrieve.quoting import count_nouns, quote_name
from vitrieve.systems import DRIVE


def is_name_type(kind: Any) -> bool:
    """Say whether values of a type of Arrow are names: a list as a label would become the class ``['a', 'b']``."""
    from pyarrow import types

    value = kind.value_type if types.is_dictionary(kind) else kind
    return _is_text(kind) or bool(types.is_integer(value) or types.is_boolean(value))


def _is_text(kind: Any) -> bool:
    from pyarrow import types

    value = kind.value_type if types.is_dictionary(kind) else kind
    return bool(
        types.is_string(value) or types.is_large_string(value) or types.is_string_view(value) or types.is_null(value)
    )


def _check_type(file: Path, name: str, kind: Any) -> None:
    """Refuse a column of which the values are no paths, or no labels."""
    if _is_text(kind) if name == "path" else is_name_type(kind):
        return
    labels = "one label a row" if name == "label" else "labels with semicolons between"
    accepted = "text" if name == "path" else f"text or whole numbers, {labels}"
    raise DataError(f"{file}: the column {name!r} is of the type {kind}; accepted: {accepted}.")


def mend_gaps(cells: list[object]) -> list[object]:
    """Make whole numbers with gaps, which pandas keeps as floating-point numbers (``2020.0``), whole again."""
    given = [cell for cell in cells if not _is_missing(cell)]
    if len(given) == len(cells) or not all(isinstance(cell, float) and cell.is_integer() for cell in given):
        return cells
    return [int(cell) if isinstance(cell, float) and cell.is_integer() else None for cell in cells]


def note_unlabeled(num_unlabeled: int, num_classes: int) -> tuple[str, ...]:
    """Say how many pictures have no label where others have one; ``num_classes`` counts ``NO_LABEL``, too."""
    if not num_unlabeled or num_classes == 1:
        return ()
    pictures = count_nouns(num_unlabeled, "picture has", "pictures have")
    return (f"{pictures} no label, and the class {NO_LABEL!r} instead; figures that count this class say nothing.",)


def _is_missing(cell: object) -> bool:
    return cell is None or (isinstance(cell, float) and math.isnan(cell))


def spell_cell(cell: object) -> str:
    """Spell a typed cell: ``true``, dates and times in ISO 8601; a missing one (null, NaN) is empty."""
    if _is_missing(cell):
        return ""
    if isinstance(cell, bool):
        return str(cell).lower()
    return cell.isoformat() if isinstance(cell, date) else str(cell)


_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
_LOCAL_HOSTS = ("", "localhost")


class FoundPath(NamedTuple):
    """A cell of the column ``path``, understood.

    Attributes:
        image_id: The normalized path, without ``./`` and leading ``../``.
        path: Place of the file, which need not exist.
        is_respelled: Whether the file was found under the other Unicode form of the name only.
    """

    image_id: str
    path: Path
    is_respelled: bool = False


def find_path(text: str, folder: Path, where: str) -> FoundPath:
    r"""Understand a path of a table.

    Args:
        text: The cell: relative to the table's folder, absolute, ``~/…`` or ``file:///…``, with slashes or backslashes.
        folder: Folder of the table.
        where: How a message names the row.

    Returns:
        The path; whether the file exists is not looked at where nothing depends on it.

    Raises:
        DataError: A path of another machine, or an address.

    >>> [find_path(text, Path("/t"), "row 1").image_id for text in ("./a.jpg", "a/../b.jpg", "../p/a.jpg", "a//b.jpg")]
    ['a.jpg', 'b.jpg', 'p/a.jpg', 'a/b.jpg']
    """
    _refuse_foreign(text, where)
    if text.lower().startswith("file://"):
        text = _read_uri(text, where)
    plain = os.path.expanduser(text) if text.startswith("~") else text
    if "\\" in plain and (sys.platform == "win32" or not os.path.lexists(folder / plain)):
        plain = plain.replace("\\", "/")
    tidy = posixpath.normpath(plain)
    image_id = re.sub(r"^(\.\./)+", "", tidy)
    found = FoundPath(image_id, folder / (plain if "/../" in f"/{plain}" else tidy))
    if ":/" in tidy and parse_address(Path(os.path.abspath(found.path))) is not None:  # a shard on a server
        raise _build_address_error(text, where)
    if plain.isascii() or os.path.lexists(found.path):
        return found
    forms: tuple[Literal["NFC"], Literal["NFD"]] = ("NFC", "NFD")
    for form in forms:
        other = unicodedata.normalize(form, plain)
        if other != plain and os.path.lexists(folder / other):
            return FoundPath(image_id, folder / other, is_respelled=True)
    return found


def _refuse_foreign(text: str, where: str) -> None:
    if sys.platform != "win32" and (DRIVE.match(text) or text.startswith("\\\\")):
        kind = "a path of a Windows machine" if DRIVE.match(text) else "a network path of Windows"
        raise DataError(
            f"{where}: path is {text!r}, {kind}, which is not reached from here. Copy the images beside the table, and "
            "write their paths relative to it: photographs/a.jpg."
        )
    if _SCHEME.match(text) and not text.lower().startswith("file://"):
        raise _build_address_error(text, where)


def _build_address_error(text: str, where: str) -> DataError:
    return DataError(
        f"{where}: path is {shorten_addresses(text)!r}, an address; only files are read. Download the images, and "
        "write their paths relative to the table: photographs/a.jpg."
    )


def _read_uri(text: str, where: str) -> str:
    parts = urlsplit(text)
    if parts.netloc.lower() not in _LOCAL_HOSTS:
        raise DataError(
            f"{where}: path is {text!r}, a file of the machine {parts.netloc!r}; write file:///… or a path."
        )
    path = unquote(parts.path)
    return path[1:] if sys.platform == "win32" and DRIVE.match(path, 1) else path


PROTOCOLS = ("own_classes",)
REQUIRED_COLUMNS = ("path",)
ROLE_COLUMNS = ("is_query", "is_gallery")
BOX_COLUMNS = ("x_1", "y_1", "x_2", "y_2")
KNOWN_COLUMNS = (*REQUIRED_COLUMNS, "label", "split", *ROLE_COLUMNS, *BOX_COLUMNS)
JUNK_COLUMN = "junk_group"
"""It is metadata, too, so that a search can filter by it; an empty cell means no group."""

_CSV_SUFFIXES = (".csv",)
_PARQUET_SUFFIXES = (".parquet", ".pq")
TABLE_SUFFIXES = _CSV_SUFFIXES + _PARQUET_SUFFIXES
_TRUE_AND_FALSE = {"true": True, "false": False, "1": True, "0": False, "1.0": True, "0.0": False}
NO_LABEL = "image"
"""Name of the one class of a table without labels, as of a folder without classes."""
_MISSING_LABELS = ("nan", "none", "null")
"""How other programs spell that a label is missing."""

Box = tuple[float, float, float, float]


@dataclass(frozen=True, kw_only=True)
class _Row:
    """One row as text, and how a message names it."""

    where: str
    cells: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class _Entry:
    """One row, checked; the image_id and the label's number need the whole table."""

    where: str
    found: FoundPath
    label_name: str
    split: Split | None
    is_query: bool
    is_gallery: bool
    box: Box | None
    metadata: Mapping[str, str]


def read_table(file: Path, protocol: str = PROTOCOLS[0]) -> Dataset:
    """Read a table of images.

    Without a column ``split``, the labels are sorted and every fifth, from the fifth, is for testing; the notes
    say so. Labels are names, sorted as text, also where they look like numbers.

    Args:
        file: ``.csv`` (comma-separated, UTF-8, with a header) or ``.parquet``.
        protocol: Only ``own_classes``.

    Returns:
        Records in the order of the rows. ``image_id`` is the path as written; where a path occurs in several
        rows, ``#x_1,y_1,x_2,y_2`` is added.

    Raises:
        DataError: The file is missing or malformed (the message names the row), none of its images exists, or one has
            too many labels.
    """
    columns, rows = _open_table(file)
    _check_columns(file, columns)
    readable_rows, notes = _replace_nul(list(rows))
    entries = _join_roles([_check_row(row, file.parent) for row in readable_rows])
    if not entries:
        raise DataError(f"{file} has a header but no rows.")
    label_names = tuple(sorted({entry.label_name for entry in entries}))
    records = _build_records(entries, label_names)
    if not any(os.path.exists(record.path) for record in records):
        raise DataError(
            f"none of the images of {file} exists, for example {entries[0].where}: {entries[0].found.image_id!r}. "
            f"Paths are relative to the folder of the table, {file.parent.resolve()}."
        )
    more_labels, label_names = _read_more_labels(records, label_names)
    return Dataset(
        name=printable_name(file.stem),
        protocol=protocol,
        records=records,
        more_labels=more_labels,
        label_names=label_names,
        junk_key=JUNK_COLUMN if JUNK_COLUMN in columns else None,
        notes=(
            *_note_split(records, columns, label_names),
            *_note_label_of_all(records, more_labels, label_names),
            *notes,
            *_note_spellings(entries, columns),
            *note_alike(label_names),
        ),
    )


MORE_LABELS_COLUMN = "more_labels"
"""Further labels of an image, with semicolons between; positives share one of all their labels."""
MAX_MORE_LABELS = 100
"""Further labels of one image: training keeps so many numbers for every image as the one with the most has."""


def _read_more_labels(
    records: Sequence[ImageRecord], label_names: tuple[str, ...]
) -> tuple[dict[str, tuple[int, ...]], tuple[str, ...]]:
    """Return the further labels of each image that has some, and the names with those that are new."""
    listed = {record.image_id: _split_labels(record, label_names[record.label]) for record in records}
    names = dict.fromkeys((*label_names, *sorted({name for found in listed.values() for name in found})))
    numbers = {name: number for number, name in enumerate(names)}
    more = {image_id: tuple(sorted(numbers[name] for name in found)) for image_id, found in listed.items() if found}
    return more, tuple(names)


def _split_labels(record: ImageRecord, own: str) -> set[str]:
    """Read the further labels of an image: each once, without its own and without empty ones."""
    names = {name.strip() for name in record.metadata.get(MORE_LABELS_COLUMN, "").split(";")} - {"", own}
    if len(names) > MAX_MORE_LABELS:
        raise DataError(
            f"{quote_name(record.image_id)} has {len(names):,} labels in {MORE_LABELS_COLUMN}; an image takes at most "
            f"{MAX_MORE_LABELS}. Keep those that tell images apart."
        )
    return names


def _note_label_of_all(
    records: Sequence[ImageRecord], more_labels: Mapping[str, tuple[int, ...]], label_names: tuple[str, ...]
) -> tuple[str, ...]:
    """Tell of labels that all images to train on carry: then no two of these are told apart."""
    trained = [record for record in records if record.split != "test"]
    if not more_labels or len(trained) < 2:
        return ()
    carried = ({record.label, *more_labels.get(record.image_id, ())} for record in trained)
    shared = sorted(set[int].intersection(*carried))
    if not shared:
        return ()
    names = name_some([quote_name(label_names[label]) for label in shared])
    return (
        f"every one of the {len(trained):,} images to train on carries {names}: images that share a label are never "
        f"told apart, so training learns nothing from labels; leave it out of 'label' and '{MORE_LABELS_COLUMN}'.",
    )


def _note_split(records: tuple[ImageRecord, ...], columns: list[str], label_names: tuple[str, ...]) -> tuple[str, ...]:
    if "label" not in columns:
        return ("the table has no column 'label': its images can be searched, but not trained on or measured.",)
    if "split" in columns:
        return note_shared_classes(records)
    return note_class_split(len(label_names), _count_test_classes(records))


def note_respelled(found: Sequence[FoundPath]) -> tuple[str, ...]:
    """Tell how many files have the other Unicode form of the name that a table gives."""
    num_respelled = sum(one.is_respelled for one in found)
    if not num_respelled:
        return ()
    return (f"{num_respelled} of {len(found)} files were found under the other Unicode form of the name (NFC, NFD).",)


def _note_spellings(entries: list[_Entry], columns: list[str]) -> tuple[str, ...]:
    notes = [*note_respelled([entry.found for entry in entries])]
    missing = [(entry.where, name) for entry in entries if (name := _find_missing(entry)) is not None]
    if missing and "label" in columns:
        notes.append(
            f"{len(missing)} of {len(entries)} rows have the label {missing[0][1]!r} ({missing[0][0]}), "
            "which often stands for a missing one; it is read as the name of a class."
        )
    return tuple(notes)


def _find_missing(entry: _Entry) -> str | None:
    """Return a label of an entry that may stand for a missing one; None where there is none."""
    more = entry.metadata.get(MORE_LABELS_COLUMN, "").split(";")
    return next((name for name in (entry.label_name, *map(str.strip, more)) if name.lower() in _MISSING_LABELS), None)


def _replace_nul(rows: list[_Row]) -> tuple[list[_Row], tuple[str, ...]]:
    """Replace the NUL character, which neither a path nor a store can hold, and say where it was."""
    found = [number for number, row in enumerate(rows) if any("\0" in cell for cell in row.cells.values())]
    for number in found:
        cells = {name: cell.replace("\0", "\N{REPLACEMENT CHARACTER}") for name, cell in rows[number].cells.items()}
        rows[number] = replace(rows[number], cells=cells)
    if not found:
        return rows, ()
    return rows, (f"{len(found)} of {len(rows)} rows have a NUL character, the first in {rows[found[0]].where}.",)


def _join_roles(entries: list[_Entry]) -> list[_Entry]:
    """Make one entry of the rows of one image that differ in its roles: as a query, and as an image of the gallery."""
    joined: dict[tuple[object, ...], _Entry] = {}
    for entry in entries:
        key = (entry.found.path, entry.box, entry.label_name, entry.split)
        first = joined.get(key)
        if first is None:
            joined[key] = entry
            continue
        if (first.is_query, first.is_gallery) == (entry.is_query, entry.is_gallery):
            raise DataError(
                f"{entry.where}: {entry.found.image_id!r} was listed before ({first.where}) with the same roles; "
                "remove one of the two rows (in pandas: table.drop_duplicates())."
            )
        joined[key] = replace(
            first, is_query=first.is_query or entry.is_query, is_gallery=first.is_gallery or entry.is_gallery
        )
    return list(joined.values())


def _open_table(file: Path) -> tuple[list[str], Iterator[_Row]]:
    """Open a table as text: its checked column names, and its rows one by one."""
    if not file.is_file():
        kind = "is not a file" if file.exists() else "does not exist"
        raise DataError(f"{file} {kind}; give a table of images as table:FILE.csv or table:FILE.parquet.")
    if file.suffix.lower() in _CSV_SUFFIXES:
        return _read_csv(file)
    if file.suffix.lower() in _PARQUET_SUFFIXES:
        return _read_parquet(file)
    raise DataError(f"{file} must end in {' or '.join(TABLE_SUFFIXES)}.")


def _read_csv(file: Path) -> tuple[list[str], Iterator[_Row]]:
    """Read with the csv module: pyarrow guesses types (the label 01 would become 1) and numbers no rows."""
    try:
        # utf-8-sig: spreadsheets put a byte-order mark before the first column's name.
        text = file.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{file} is not UTF-8 text ({error}); save it as CSV UTF-8.") from None
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror or error}.") from None
    lines = _number_lines(file, text)
    _, header = next(lines, (1, []))
    columns = [name.strip() for name in header]
    _check_columns(file, columns)
    return columns, _check_lengths(file, columns, lines)


def _number_lines(file: Path, text: str) -> Iterator[tuple[int, list[str]]]:
    """Yield the cells of each line that is not empty, with the line's number, from 1.

    Spreadsheets write the rows that were emptied as lines of separators.
    """
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        for cells in reader:
            if any(map(str.strip, cells)):
                yield reader.line_num, cells
    except csv.Error as error:
        raise DataError(f"{file}, line {reader.line_num}: {error}.") from None


def _check_lengths(file: Path, columns: list[str], lines: Iterator[tuple[int, list[str]]]) -> Iterator[_Row]:
    for number, cells in lines:
        where = f"{file}, line {number}"
        if len(cells) != len(columns):
            raise DataError(f"{where}: {len(cells)} cells, but the header has {len(columns)} columns.")
        yield _Row(where=where, cells=dict(zip(columns, cells, strict=True)))


def _read_parquet(file: Path) -> tuple[list[str], Iterator[_Row]]:
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(file)
        columns = list(table.column_names)
        lists = [mend_gaps(column.to_pylist()) for column in table.columns]
    except (pyarrow.ArrowException, OSError, ValueError, OverflowError) as error:  # text that is not UTF-8, odd dates
        raise DataError(f"{file} is not a readable Parquet file: {error}.") from None
    _check_columns(file, columns)
    for name in ("path", "label", MORE_LABELS_COLUMN):
        if name in columns:
            _check_type(file, name, table.schema.field(name).type)
    values = zip(*lists, strict=True)
    rows = (
        _Row(where=f"{file}, row {number}", cells=dict(zip(columns, map(spell_cell, cells), strict=True)))
        for number, cells in enumerate(values, start=1)
    )
    return columns, rows


def _check_columns(file: Path, columns: list[str]) -> None:
    """Refuse a table that lacks a column, or spells one so that it would silently become metadata."""
    # A column without a name is passed over (_is_metadata); spreadsheets write several behind the last one.
    repeated = [name for name, count in Counter(columns).items() if name and count > 1]
    if repeated:
        raise DataError(f"{file} has the column {repeated[0]!r} twice.")
    known = {_fold(name): name for name in (*KNOWN_COLUMNS, JUNK_COLUMN)}
    for name in columns:
        meant = known.get(_fold(name), name)
        if meant != name:
            raise DataError(f"{file} has a column {name!r}; write it {meant!r} (or rename it, if it is metadata).")
    found = ", ".join(map(repr, columns)) or "nothing"
    for name in REQUIRED_COLUMNS:
        if name not in columns:
            advice = " Columns are separated by commas." if file.suffix.lower() in _CSV_SUFFIXES else ""
            raise DataError(f"{file} has no column {name!r}. Found: {found}.{advice}")
    given = [name for name in BOX_COLUMNS if name in columns]
    if given and len(given) < len(BOX_COLUMNS):
        missing = next(name for name in BOX_COLUMNS if name not in columns)
        raise DataError(f"{file} has the box column {given[0]!r} but not {missing!r}; a box needs all four.")


def _fold(name: str) -> str:
    return "".join(character for character in name.lower() if character.isalnum())


def _check_row(row: _Row, folder: Path) -> _Entry:
    cells = row.cells
    for name in ("path", "label"):
        if name in cells and not cells[name].strip():
            raise DataError(f"{row.where}: {name} is empty.")
    return _Entry(
        where=row.where,
        found=find_path(cells["path"], folder, row.where),
        label_name=unicodedata.normalize("NFC", cells.get("label", NO_LABEL).strip()),
        split=_read_split(row),
        is_query=_read_flag(row, "is_query"),
        is_gallery=_read_flag(row, "is_gallery"),
        box=_read_box(row),
        metadata={name: value for name, value in cells.items() if _is_metadata(name, value)},
    )


def _is_metadata(name: str, value: str) -> bool:
    return bool(name) and name not in KNOWN_COLUMNS and not (name == JUNK_COLUMN and not value.strip())


def _read_split(row: _Row) -> Split | None:
    """Read the split; None where the table has no such column."""
    if "split" not in row.cells:
        return None
    value = row.cells["split"].strip()
    for split in SPLITS:
        if value == split:
            return split
    raise DataError(f"{row.where}: split is {value!r}; accepted: {', '.join(SPLITS)}.")


def _read_flag(row: _Row, name: str) -> bool:
    """Read a role; true where the table has no such column, or an empty cell, which says nothing."""
    value = row.cells.get(name, "").strip() or "true"
    if value.lower() not in _TRUE_AND_FALSE:
        raise DataError(f"{row.where}: {name} is {value!r}; accepted: {', '.join(_TRUE_AND_FALSE)}.")
    return _TRUE_AND_FALSE[value.lower()]


def _read_box(row: _Row) -> Box | None:
    texts = [row.cells.get(name, "").strip() for name in BOX_COLUMNS]
    if not any(texts):
        return None
    try:
        x_1, y_1, x_2, y_2 = map(float, texts)
    except ValueError:
        raise DataError(f"{row.where}: the box {texts} is not four numbers (or four empty cells).") from None
    if not all(map(math.isfinite, (x_1, y_1, x_2, y_2))) or x_1 >= x_2 or y_1 >= y_2:
        raise DataError(f"{row.where}: the box {texts} must be finite, with x_1 < x_2 and y_1 < y_2.")
    return x_1, y_1, x_2, y_2


def _build_records(entries: list[_Entry], label_names: tuple[str, ...]) -> tuple[ImageRecord, ...]:
    labels = {name: label for label, name in enumerate(label_names)}
    held_out = _hold_out(entries, labels)
    num_rows = Counter(entry.found.path for entry in entries)
    first_row: dict[str, _Entry] = {}
    records = []
    for entry in entries:
        image_id = _build_image_id(entry, is_repeated=num_rows[entry.found.path] > 1)
        first = first_row.setdefault(image_id, entry)
        if first is not entry:
            raise DataError(
                f"{entry.where}: {image_id!r} was listed before ({first.where}), "
                + (
                    "with another label or split; an image has one of each."
                    if first.found.path == entry.found.path
                    else "for another file; move the table up, above both folders."
                )
            )
        label = labels[entry.label_name]
        records.append(
            ImageRecord(
                image_id=image_id,
                path=entry.found.path,
                label=label,
                split=entry.split or ("test" if label in held_out else "train"),
                is_query=entry.is_query,
                is_gallery=entry.is_gallery,
                box=entry.box,
                metadata=entry.metadata,
            )
        )
    return tuple(records)


def _hold_out(entries: list[_Entry], labels: Mapping[str, int]) -> frozenset[int]:
    """Choose the classes for testing among those of which a query has another image to find."""
    roles = (
        ImageRecord(
            image_id="",
            path=Path(),
            label=labels[entry.label_name],
            split="test",
            is_query=entry.is_query,
            is_gallery=entry.is_gallery,
        )
        for entry in entries
    )
    return hold_out_labels(labels.values(), find_measurable(roles))


def _build_image_id(entry: _Entry, *, is_repeated: bool) -> str:
    if not is_repeated or entry.box is None:
        return entry.found.image_id
    return f"{entry.found.image_id}#{','.join(f'{side:.15g}' for side in entry.box)}"


def _count_test_classes(records: tuple[ImageRecord, ...]) -> int:
    return len({record.label for record in records if record.split == "test"})
