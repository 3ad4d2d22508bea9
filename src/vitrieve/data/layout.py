"""What the published layouts share: finding the folder, reading lists and pickles, saying what differs.

The rules: a malformed or contradictory row is an error that names its line; a row that repeats another one is
dropped and noted; a listed image that is missing is noted and stays, so that whoever decodes it reports it; an image
that no list names is noted and left out.

A pickle is a program that may call whatever it can name. Here it can name a fixed list of builders, none of which
imports, opens or runs anything: plain containers, numbers, strings, bytes and numpy arrays can be read. Numpy's own
reconstruction code is not among the builders, because it trusts the state that it is given. Arrays are kept as parts
while the pickle runs, and built from checked parts afterwards. Arrays of objects are refused: no benchmark needs them.
"""

from __future__ import annotations

import io
import math
import os
import pickle
import pickletools
import re
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Final

import numpy as np

from vitrieve.data.walk import walk_pictures
from vitrieve.errors import DataError
from vitrieve.machine import expand_variable
from vitrieve.quoting import count_nouns

_DTYPE = re.compile(r"[biufcSU][0-9]{1,9}|\?")
"""Booleans, integers, floats, complex numbers and strings, with their size in bytes (``U``: in characters)."""
_BYTE_ORDERS = ("<", ">", "=", "|")


class _Refused(Exception):  # noqa: N818 - never leaves this file
    """The pickle asks for more than data."""


class _Dtype:
    """A numpy type in parts: the pickle first names it, then sets its byte order."""

    def __init__(self, spec: object, is_aligned: object = False, is_copy: object = False) -> None:
        if not isinstance(spec, str) or not _DTYPE.fullmatch(spec):
            raise _Refused(f"an array of type {spec!r}; only numbers and strings are read")
        self._spec = spec
        self._byte_order = "="

    def __setstate__(self, state: object) -> None:
        # (version, byte order, subarray, names, fields, size, alignment, flags, …): the size is in the name already.
        is_plain = isinstance(state, tuple) and len(state) >= 5 and all(part is None for part in state[2:5])
        if not is_plain or not isinstance(state, tuple) or state[1] not in _BYTE_ORDERS:
            raise _Refused("an array with fields or subarrays")
        self._byte_order = state[1]

    def build(self) -> np.dtype[Any]:
        """Build the type, with its byte order."""
        dtype = np.dtype(self._spec)
        return dtype if self._byte_order == "|" else dtype.newbyteorder(self._byte_order)  # type: ignore[arg-type]


class _Array:
    """A numpy array in parts."""

    def __init__(self) -> None:
        self._parts: tuple[tuple[int, ...], _Dtype, bool, bytes] | None = None

    def __setstate__(self, state: object) -> None:
        if not isinstance(state, tuple) or len(state) != 5:
            raise _Refused("an array of an unknown layout")
        _, shape, dtype, is_fortran, data = state
        self.set_parts(shape, dtype, bool(is_fortran), data)

    def set_parts(self, shape: object, dtype: object, is_fortran: bool, data: object) -> None:
        """Check and keep what the array is made of; Python 2 wrote the bytes as a string, read here as latin 1."""
        content = data.encode("latin1") if isinstance(data, str) else data
        if not isinstance(dtype, _Dtype) or not isinstance(content, bytes | bytearray):
            raise _Refused("an array whose content is not bytes")
        if not isinstance(shape, tuple) or not all(isinstance(side, int) and side >= 0 for side in shape):
            raise _Refused(f"an array of shape {shape!r}")
        self._parts = shape, dtype, is_fortran, bytes(content)

    def build(self) -> np.ndarray:
        """Build the array; refuse one whose bytes do not fill its shape."""
        if self._parts is None:
            raise _Refused("an array without content")
        shape, kind, is_fortran, data = self._parts
        dtype = kind.build()
        if math.prod(shape) * dtype.itemsize != len(data):
            raise _Refused(f"an array of shape {shape} and type {dtype} with {len(data)} bytes")
        if not data:
            return np.zeros(shape, dtype)
        return np.frombuffer(data, dtype).reshape(shape, order="F" if is_fortran else "C").copy()


class _Builder:
    """One thing that a pickle may name and call; it has no state that the pickle could set."""

    __slots__ = ("_build",)
    _build: Callable[..., object]

    def __init__(self, build: Callable[..., object]) -> None:
        object.__setattr__(self, "_build", build)

    def __call__(self, *values: object) -> object:
        return self._build(*values)

    def __setattr__(self, name: str, value: object) -> None:
        raise _Refused(f"to set {name!r} of a builder")

    def __setstate__(self, state: object) -> None:
        raise _Refused("to change a builder")


def _refuse_call(*values: object) -> object:
    raise _Refused("to build an array directly")


_NDARRAY: Final = _Builder(_refuse_call)


def _reconstruct(subtype: object, shape: object, type_code: object) -> _Array:
    if subtype is not _NDARRAY:
        raise _Refused("an array of an unknown class")
    return _Array()


def _from_buffer(data: object, dtype: object, shape: object, order: object, *axes: object) -> _Array:
    if order not in ("C", "F") or axes:
        raise _Refused(f"an array in the order {order!r}")
    array = _Array()
    array.set_parts(shape, dtype, order == "F", data)
    return array


def _build_scalar(dtype: object, data: object = b"") -> object:
    array = _Array()
    array.set_parts((), dtype, False, data)
    return array.build().item()


def _encode_latin1(text: object, encoding: object = None) -> bytes:
    """Turn text into the bytes that it stands for: how Python 3 writes bytes into an old pickle."""
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise _Refused(f"to encode as {encoding!r}")
    return text.encode("latin1")


def _build_bytes() -> bytes:
    return b""


def _build_complex(real: float, imaginary: float) -> complex:
    return complex(real, imaginary)


def _build_bytearray(data: object = b"", encoding: object = "latin-1") -> bytearray:
    if isinstance(data, str):
        data = _encode_latin1(data, encoding)
    if not isinstance(data, bytes):  # bytearray(10**12) would take the memory
        raise _Refused("a byte array that is not made of bytes")
    return bytearray(data)


def _build_set(items: list[Any] | tuple[Any, ...] = ()) -> set[Any]:
    return set(items)


def _build_frozenset(items: list[Any] | tuple[Any, ...] = ()) -> frozenset[Any]:
    return frozenset(items)


_BUILTINS: dict[str, Callable[..., object]] = {
    "set": _build_set,
    "frozenset": _build_frozenset,
    "complex": _build_complex,
    "bytes": _build_bytes,
    "bytearray": _build_bytearray,
}
_NUMPY_MULTIARRAY: dict[str, Callable[..., object]] = {"_reconstruct": _reconstruct, "scalar": _build_scalar}
_BUILDERS: dict[tuple[str, str], _Builder] = {
    **{(module, name): _Builder(it) for module in ("builtins", "__builtin__") for name, it in _BUILTINS.items()},
    # numpy 2 renamed numpy.core to numpy._core; pickles hold whichever wrote them.
    **{
        (f"numpy.{core}.multiarray", name): _Builder(it)
        for core in ("core", "_core")
        for name, it in _NUMPY_MULTIARRAY.items()
    },
    **{(f"numpy.{core}.numeric", "_frombuffer"): _Builder(_from_buffer) for core in ("core", "_core")},
    ("numpy", "ndarray"): _NDARRAY,
    ("numpy", "dtype"): _Builder(_Dtype),
    ("collections", "OrderedDict"): _Builder(lambda: {}),
    ("_codecs", "encode"): _Builder(_encode_latin1),
}


class _Unpickler(pickle.Unpickler):
    """Resolves the names of ``_BUILDERS`` and no other."""

    def find_class(self, module: str, name: str) -> Any:
        """Find what builds an object of this name; the unpickler calls it."""
        builder = _BUILDERS.get((module, name))
        if builder is None:
            raise _Refused(f"{module}.{name}")
        return builder


def read_restricted_pickle(file: Path) -> object:
    """Read a pickle of plain data; nothing in the file can be run.

    Args:
        file: A pickle of any protocol, also of Python 2 (its strings are read as latin 1).

    Returns:
        Lists, tuples, dictionaries, sets, numbers, strings, bytes, None, and numpy arrays of numbers or strings
        (fresh and writable). Numpy scalars become Python numbers, ordered dictionaries plain ones.

    Raises:
        DataError: The file is missing, damaged, or names anything else; the message says what it named.
    """
    try:
        content = file.read_bytes()
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror or error}.") from None
    try:
        _check_memory(content)
        return _Finisher().finish(_Unpickler(io.BytesIO(content), encoding="latin1").load())
    except _Refused as refused:
        raise DataError(
            f"{file} is refused: it asks for {refused}. Only plain containers, numbers, strings, bytes and numpy "
            "arrays are read, so that the file cannot run anything; fetch it again from the benchmark's authors."
        ) from None
    except Exception as error:  # a damaged pickle can fail in any way; the documentation promises no list
        raise DataError(f"{file} is not a readable pickle ({type(error).__name__}: {error}).") from None


def _check_memory(content: bytes) -> None:
    """Refuse numbers in the unpickler's memory beyond what the pickle can fill: it is laid out up to the largest."""
    for operation, number, _ in pickletools.genops(content):
        is_place = operation.name in ("PUT", "BINPUT", "LONG_BINPUT")
        if is_place and isinstance(number, int) and not 0 <= number <= len(content):
            raise _Refused(f"a cell of memory with the number {number}")


class _Finisher:
    """Builds the arrays inside nested containers; every container once, however often it is referred to."""

    def __init__(self) -> None:
        self._done: dict[int, object] = {}
        self._kept: list[object] = []  # so that no id is used twice

    def finish(self, value: object) -> object:
        """Return the value with all arrays in it built; refuse what is no plain data, or holds itself."""
        if not isinstance(value, list | tuple | dict | set | frozenset | _Array):
            if value is None or isinstance(value, str | bytes | bytearray | int | float | complex):
                return value
            raise _Refused("a bare type or function")
        if id(value) in self._done:
            finished = self._done[id(value)]
            if finished is self:
                raise _Refused("a container that holds itself")
            return finished
        self._done[id(value)] = self
        self._kept.append(value)
        finished = self._build(value)
        self._done[id(value)] = finished
        return finished

    def _build(self, value: object) -> object:
        if isinstance(value, _Array):
            return value.build()
        if isinstance(value, dict):
            return {self.finish(key): self.finish(item) for key, item in value.items()}
        assert isinstance(value, list | tuple | set | frozenset)
        return type(value)(self.finish(item) for item in value)


DATA_VARIABLE = "VITRIEVE_DATA"
SHARED_FOLDER = Path("../shared/datasets")
"""Folder of data sets beside a checkout, for people who develop this package; looked in after VITRIEVE_DATA."""
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
        DataError: None of the folders holds all that is wanted; the message names the folders and what they lack.
    """
    candidates = [folder, *(folder / name for name in nested)]
    for candidate in candidates:
        if all((candidate / name).exists() for name in wanted):
            return candidate
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
        path: Path in the spelling of the list, with ``/``.
        where: Names the list and the line, for the message.

    Raises:
        DataError: The path is empty, absolute, has a part ``..``, or on Windows a drive or a backslash.
    """
    parts = PurePosixPath(path).parts
    is_foreign = sys.platform == "win32" and not {"\\", ":"}.isdisjoint(path)
    if not parts or path.startswith("/") or ".." in parts or "\0" in path or is_foreign:
        raise DataError(f"{where}: {path!r} is not a path inside the data set's folder.")
    return path


def drop_repeated(file: Path, rows: Sequence[Row], key: int) -> tuple[tuple[Row, ...], tuple[str, ...]]:
    """Drop rows that say again what an earlier row says.

    Args:
        file: File that the rows are from, for messages.
        rows: Rows in the order of the file.
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
        root: Folder of the data set.
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
        are_extra = count_nouns(len(extra), "image that no list names is", "images that no list names are")
        notes.append(f"{are_extra} left out: {name_some(extra)}.")
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
