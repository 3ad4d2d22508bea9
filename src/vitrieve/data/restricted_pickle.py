"""Read a published pickle without letting it run anything: plain containers, numbers, strings, bytes, numpy arrays.

A pickle is a program that may call whatever it can name. Here it can name a fixed list of builders, all of them
below, none of which imports, opens or runs anything. Numpy's own reconstruction code is not among them: it trusts
the state that it is given, so arrays are kept as parts while the pickle runs, and built from checked parts
afterwards. Arrays of objects are refused: no benchmark needs them.
"""

from __future__ import annotations

import io
import math
import pickle
import pickletools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np

from vitrieve.errors import DataError

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
            raise _Refused(f"a place in memory with the number {number}")


class _Finisher:
    """Builds the arrays inside nested containers; every container once, however often it is referred to."""

    def __init__(self) -> None:
        self._done: dict[int, object] = {}
        self._kept: list[object] = []  # so that no id is used twice

    def finish(self, value: object) -> object:
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
