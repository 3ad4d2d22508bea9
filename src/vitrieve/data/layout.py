"""What the published layouts share: finding the folder, reading list files, saying what differs from the publication.

The rules: a malformed or contradictory row is an error that names its line; a row that repeats another one is
dropped and noted; a listed image that is missing is noted and stays, so that whoever decodes it reports it; an image
that no list names is noted and left out.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from vitrieve.cache import expand_variable
from vitrieve.data.walk import walk_pictures
from vitrieve.errors import DataError

DATA_VARIABLE = "VITRIEVE_DATA"
SHARED_FOLDER = Path("../shared/datasets")
"""Beside the checkout."""
NUM_NAMED = 3
"""How many names a note spells out."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One row of a list: its cells, and its line in the file, from 1."""

    number: int
    cells: tuple[str, ...]


def data_parents() -> tuple[Path, ...]:
    """Return the folders that may hold data sets, each in a folder of its own, in the order of looking."""
    named = os.environ.get(DATA_VARIABLE)
    return (*((expand_variable(DATA_VARIABLE, named),) if named else ()), SHARED_FOLDER)


def find_data_folder(names: Sequence[str]) -> Path | None:
    """Find a data set whose folder was not given.

    Args:
        names: Names that its folder may have, the preferred first.

    Returns:
        The first folder of one of these names in ``data_parents()``, the names of the first parent first; None
        when there is none.
    """
    candidates = (parent / name for parent in data_parents() for name in names)
    return next((folder for folder in candidates if folder.is_dir()), None)


def find_root(source: str, folder: Path, wanted: Sequence[str], nested: Sequence[str]) -> Path:
    """Find the folder of a data set at the folder that a user gave, or below it.

    Args:
        source: Name of the source, for the message.
        folder: What the user gave.
        wanted: Paths below the root that must all exist.
        nested: Paths below ``folder`` that may be the root; ``folder`` itself is tried first.

    Raises:
        DataError: None of the places holds all that is wanted; the message names the places and what they lack.
    """
    places = [folder, *(folder / name for name in nested)]
    for place in places:
        if all((place / name).exists() for name in wanted):
            return place
    if not folder.is_dir():
        kind = "is not a folder" if folder.exists() else "does not exist"
        raise DataError(f"{source}:{folder}: the folder {kind}. {_advise(source)}")
    lacking = [name for name in wanted if not (folder / name).exists()]
    raise DataError(
        f"{source}:{folder}: looked for {', '.join(wanted)} there and in {', '.join(nested)} below it; "
        f"the folder given lacks {', '.join(lacking)} and holds {_name_entries(folder)}. {_advise(source)}"
    )


def read_rows(file: Path, num_cells: int, *, header: Sequence[str] = ()) -> tuple[Row, ...]:
    """Read a list of cells separated by spaces, one row a line; empty lines are passed over.

    Args:
        file: UTF-8 text, with or without a byte-order mark.
        num_cells: Cells that every row must have.
        header: The cells of a header, which must be the first row and is not returned; empty: there is none.

    Raises:
        DataError: The file is missing or no text, has another header, or a row has another number of cells.
    """
    rows = list(split_lines(file))
    if header:
        if not rows or rows[0].cells != tuple(header):
            found = " ".join(rows[0].cells) if rows else "nothing"
            raise DataError(f"{file}: the header is {found!r}; expected {' '.join(header)!r}.")
        rows = rows[1:]
    for row in rows:
        if len(row.cells) != num_cells:
            raise DataError(
                f"{file}, line {row.number}: {' '.join(row.cells)!r} has {len(row.cells)} cells; expected {num_cells}"
                + (f" ({' '.join(header)})." if header else ".")
            )
    return tuple(rows)


def split_lines(file: Path) -> Iterator[Row]:
    """Yield the rows of a list that are not empty.

    Raises:
        DataError: The file is missing, unreadable or no UTF-8 text.
    """
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror or error}.") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{file} is not UTF-8 text ({error}).") from None
    for number, line in enumerate(lines, start=1):
        if cells := tuple(line.split()):
            yield Row(number=number, cells=cells)


def read_number(file: Path, row: Row, cell: int) -> int:
    """Read a cell as a number, 1 or more.

    Raises:
        DataError: It is none; the message names the line.
    """
    text = row.cells[cell]
    if not (text.isascii() and text.isdecimal() and int(text) > 0):
        raise DataError(f"{file}, line {row.number}: {text!r} is not a number, 1 or more.")
    return int(text)


def check_relative(path: str, where: str) -> str:
    """Refuse a path that would lead out of the data set's folder, and return it otherwise.

    Args:
        path: As a list has it, with ``/``.
        where: Names the list and the line, for the message.

    Raises:
        DataError: The path is empty, absolute, or has a part ``..``.
    """
    parts = PurePosixPath(path).parts
    if not parts or path.startswith("/") or ".." in parts or "\0" in path:
        raise DataError(f"{where}: {path!r} is not a path inside the data set's folder.")
    return path


def drop_repeated(file: Path, rows: Sequence[Row], key: int) -> tuple[tuple[Row, ...], tuple[str, ...]]:
    """Drop rows that say again what an earlier row says.

    Args:
        file: Where the rows are from, for messages.
        rows: In the order of the file.
        key: The cell that must be unique.

    Returns:
        The first row of each key, and a note that names the dropped lines, if any.

    Raises:
        DataError: Two rows agree in the key but in nothing else: which one is right?
    """
    first: dict[str, Row] = {}
    repeated = []
    for row in rows:
        earlier = first.setdefault(row.cells[key], row)
        if earlier is row:
            continue
        if earlier.cells != row.cells:
            raise DataError(
                f"{file}, line {row.number}: {row.cells[key]!r} is listed with other values than in line "
                f"{earlier.number} ({' '.join(row.cells)!r}, {' '.join(earlier.cells)!r})."
            )
        repeated.append(f"line {row.number} repeats line {earlier.number}")
    notes = (f"{file.name}: repeated rows are dropped ({name_some(repeated)}).",) if repeated else ()
    return tuple(first.values()), notes


def note_files(listed: Collection[str], root: Path, folder: str) -> tuple[str, ...]:
    """Compare the images that the lists name with those on disk.

    Args:
        listed: Paths below ``root``.
        root: Of the data set.
        folder: The folder of images, below ``root``; empty for the root itself.

    Returns:
        A note about the images that are missing, and one about those that no list names.
    """
    prefix = f"{folder}/" if folder else ""
    on_disk = {prefix + path for path in walk_pictures(root / folder).paths} if (root / folder).is_dir() else set()
    expected = set(listed)
    # A file without an image's suffix is no missing one: the disk decides.
    missing = sorted(path for path in expected - on_disk if not (root / path).is_file())
    extra = sorted(on_disk - expected)
    notes = []
    if missing:
        notes.append(f"{len(missing):,} of {len(expected):,} listed images are missing: {name_some(missing)}.")
    if extra:
        notes.append(f"{len(extra):,} images that no list names are left out: {name_some(extra)}.")
    return tuple(notes)


def note_counts(expected: Mapping[str, int], found: Mapping[str, int]) -> tuple[str, ...]:
    """Tell which counts differ from the published ones.

    >>> note_counts({"training images": 5864, "training classes": 100}, {"training images": 3, "training classes": 100})
    ('counts differ from the published ones (training images: expected 5,864, found 3): figures are not comparable.',)

    Returns:
        One note that names expected and found of each count that differs; empty when all agree.
    """
    differing = [
        f"{name}: expected {number:,}, found {found[name]:,}"
        for name, number in expected.items()
        if found[name] != number
    ]
    if not differing:
        return ()
    return (f"counts differ from the published ones ({'; '.join(differing)}): figures are not comparable.",)


def name_some(names: Sequence[str]) -> str:
    """Spell out the first few names.

    >>> name_some(["a", "b", "c", "d"])
    'a, b, c, …'
    """
    return ", ".join(names[:NUM_NAMED]) + (", …" if len(names) > NUM_NAMED else "")


def _name_entries(folder: Path) -> str:
    names = sorted(entry.name for entry in folder.iterdir() if not entry.name.startswith("."))
    return name_some(names) or "nothing"


def _advise(source: str) -> str:
    return f"`vitrieve data describe {source}` tells where to get the data and how it is laid out."
