from __future__ import annotations

import collections
import io
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vitrieve.data.layout import read_restricted_pickle
from vitrieve.errors import DataError

PROTOCOLS = range(pickle.HIGHEST_PROTOCOL + 1)


class Calling:
    """Pickles as a call: what a malicious file holds."""

    def __init__(self, function: Any, *values: Any, state: Any = None) -> None:
        self.call = (function, values) if state is None else (function, values, state)

    def __reduce__(self) -> Any:
        return self.call


def read(tmp_path: Path, content: bytes) -> Any:
    (tmp_path / "a.pkl").write_bytes(content)
    return read_restricted_pickle(tmp_path / "a.pkl")


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_read_restricted_pickle_reads_plain_data(tmp_path: Path, protocol: int) -> None:
    plain = {
        "numbers": [0, -1, 2**70, 1.5, True, None, 1 + 2j],
        ("a", 1): (b"", b"\x00\xff", "é", bytearray(b"xy")),
        "sets": [{1, 2}, frozenset({"a"}), set(), ()],
        "nested": [[[{"deep": [1]}]]],
    }
    assert read(tmp_path, pickle.dumps(plain, protocol)) == plain


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize(
    "array",
    [
        np.arange(6).reshape(2, 3),
        np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        np.arange(3, dtype=">i2"),
        np.array(["ab", "c"]),
        np.array([b"ab", b"c"]),
        np.array([True, False]),
        np.zeros((0, 4), dtype=np.float32),
        np.array(7, dtype=np.uint8),
    ],
    ids=lambda array: f"{array.dtype}{array.shape}",
)
def test_read_restricted_pickle_reads_arrays(tmp_path: Path, array: np.ndarray, protocol: int) -> None:
    found = read(tmp_path, pickle.dumps({"a": array, "again": array}, protocol))
    np.testing.assert_array_equal(found["a"], array)
    assert (found["a"].shape, found["a"].dtype) == (array.shape, array.dtype)
    assert found["a"].flags.writeable
    assert found["again"] is found["a"]


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_read_restricted_pickle_turns_scalars_into_python_numbers(tmp_path: Path, protocol: int) -> None:
    found = read(tmp_path, pickle.dumps([np.int64(3), np.float32(0.5), np.bool_(True)], protocol))
    assert found == [3, 0.5, True]
    assert [type(one) for one in found] == [int, float, bool]


def test_read_restricted_pickle_turns_ordered_dictionaries_into_plain_ones(tmp_path: Path) -> None:
    found = read(tmp_path, pickle.dumps(collections.OrderedDict(b=1, a=2)))
    assert type(found) is dict
    assert list(found) == ["b", "a"]


def test_read_restricted_pickle_reads_the_module_name_of_either_numpy(tmp_path: Path) -> None:
    written = pickle.dumps(np.arange(3), protocol=2)
    assert b"numpy._core.multiarray" in written
    older = written.replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
    np.testing.assert_array_equal(read(tmp_path, older), np.arange(3))


def test_read_restricted_pickle_reads_what_python_2_wrote(tmp_path: Path) -> None:
    # By hand, as Python 2's numpy wrote it at protocol 2: array([1, 2]), dtype and bytes as str (opcode U).
    data = b"\x01\x00\x00\x00\x02\x00\x00\x00"
    written = (
        b"\x80\x02}U\x04easycnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
        b"(K\x01K\x02\x85cnumpy\ndtype\nU\x02i4K\x00K\x01\x87R(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
        b"\x89U\x08" + data + b"tbsU\x04name"
    )
    written += b"U\x03\xe9tss."
    found = read(tmp_path, written)
    np.testing.assert_array_equal(found["easy"], [1, 2])
    assert found["name"] == "éts"


def test_trap_a_malicious_pickle_runs_nothing(tmp_path: Path) -> None:
    victim = tmp_path / "created"
    for function, values in ((os.system, (f"touch {victim}",)), (open, (str(victim), "w"))):
        content = pickle.dumps(Calling(function, *values))
        with pytest.raises(DataError, match="is refused: it asks for "):
            read(tmp_path, content)
        assert not victim.exists()
    pickle.loads(content).close()  # the file is a real attack: an ordinary reader runs it
    assert victim.exists()


NAMED = [
    (eval, ("1",)),
    (exec, ("1",)),
    (getattr, ("a", "upper")),
    (__import__, ("os",)),
    (subprocess.run, (["true"],)),
    (os.posix_spawn, ("/bin/true", ["true"], {})),
    (np.load, ("a.npy", None, True)),
    (np.frombuffer, (b"12345678",)),
    (np.memmap, ("a", "u1", "w+")),
    (pickle.loads, (b"N.",)),
    (io.open_code, ("/etc/passwd",)),
    (object, ()),
    (collections.defaultdict, (list,)),
]


@pytest.mark.parametrize(("function", "values"), NAMED, ids=lambda value: getattr(value, "__name__", ""))
def test_read_restricted_pickle_refuses_every_other_name(tmp_path: Path, function: Any, values: Any) -> None:
    for content in (pickle.dumps(Calling(function, *values)), pickle.dumps([1, {"a": function}])):
        with pytest.raises(DataError, match=r"is refused: it asks for [\w.]+"):
            read(tmp_path, content)


def hand_made(module: str, name: str, end: bytes = b"") -> bytes:
    """Name something by protocol 4's STACK_GLOBAL, where a name may have dots."""
    return (
        b"\x80\x04\x8c"
        + bytes([len(module)])
        + module.encode()
        + b"\x8c"
        + bytes([len(name)])
        + name.encode()
        + b"\x93"
        + end
        + b"."
    )


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("numpy", "dtype.__init__.__globals__"),
        ("numpy", "ndarray.tofile"),
        ("builtins", "set.__class__"),
        ("numpy.core.multiarray", "_reconstruct.__globals__"),
        ("vitrieve.data.layout", "os"),
        ("numpy", "core"),
        ("copyreg", "_reconstructor"),
        ("numpy.core.multiarray", "fromfile"),
    ],
)
def test_read_restricted_pickle_refuses_chains_of_attributes(tmp_path: Path, module: str, name: str) -> None:
    with pytest.raises(DataError, match="is refused: it asks for " + module):
        read(tmp_path, hand_made(module, name))


@pytest.mark.parametrize(
    "content",
    [
        hand_made("numpy", "ndarray"),  # a bare builder
        hand_made("numpy", "ndarray", b"K\x05\x85R"),  # ndarray(5): memory that nobody wrote
        hand_made("numpy", "dtype", b"}b"),  # to set the state of a builder
        hand_made("numpy", "dtype", b"\x8c\x06_buildNs}\x86b"),
        hand_made("builtins", "bytearray", b"J\x00\x00\x00\x7f\x85R"),  # bytearray(2**31): a memory bomb
        hand_made("builtins", "bytes", b"J\x00\x00\x00\x7f\x85R"),
        hand_made("_codecs", "encode", b"\x8c\x01a\x8c\x03hex\x86R"),
        hand_made("numpy", "dtype", b"\x8c\x02O8\x85R"),
        hand_made("numpy", "dtype", b"\x8c\x05i4,i4\x85R"),
        hand_made("numpy", "dtype", b"\x8c\x02i4\x85R"),  # a type is no data
        b"\x80\x02]q\x00h\x00a.",  # a list that holds itself
        b"\x80\x02X\x01\x00\x00\x00aQ.",  # a persistent id
        b"\x82\x01.",  # an extension code
        b"",
        b"not a pickle",
        pickle.dumps(list(range(100)))[:-20],
    ],
)
def test_read_restricted_pickle_refuses_hand_made_attacks_and_damage(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(DataError, match=r"a\.pkl is (refused|not a readable pickle)"):
        read(tmp_path, content)


def with_array_state(state: Any) -> bytes:
    array = np.arange(2)
    function, values, _ = array.__reduce__()  # type: ignore[misc]
    return pickle.dumps(Calling(function, *values, state=state), protocol=2)


@pytest.mark.parametrize(
    "state",
    [
        (1, (10**9,), np.dtype("i8"), False, b"12345678"),  # reads beyond its bytes
        (1, (-1,), np.dtype("i8"), False, b"12345678"),
        (1, (1,), np.dtype("i8"), False, [1]),
        (1, (1,), "i8", False, b"12345678"),
        (1, ("a",), np.dtype("i8"), False, b"12345678"),
        ((1,), np.dtype("i8"), False, b"12345678"),
        "x",
    ],
    ids=str,
)
def test_read_restricted_pickle_checks_the_parts_of_an_array(tmp_path: Path, state: Any) -> None:
    with pytest.raises(DataError, match=r"is refused: it asks for an array"):
        read(tmp_path, with_array_state(state))


@pytest.mark.parametrize(
    "array",
    [
        np.array([None, 1], dtype=object),
        np.zeros(2, dtype=[("a", "i4")]),
        np.zeros(2, dtype="M8[s]"),
        np.ma.masked_array([1]),
    ],
    ids=["object", "fields", "time", "masked"],
)
@pytest.mark.parametrize("protocol", [2, 5])
def test_read_restricted_pickle_refuses_other_arrays(tmp_path: Path, array: Any, protocol: int) -> None:
    with pytest.raises(DataError, match="is refused"):
        read(tmp_path, pickle.dumps(array, protocol))


def test_read_restricted_pickle_visits_shared_containers_once(tmp_path: Path) -> None:
    value: Any = [1]
    for _ in range(60):  # 2**60 leaves, were each reference followed
        value = [value, value]
    found = read(tmp_path, pickle.dumps(value))
    assert found[0] is found[1]


def test_read_restricted_pickle_reports_too_deep_nesting(tmp_path: Path) -> None:
    depth = 4 * sys.getrecursionlimit()
    with pytest.raises(DataError, match="RecursionError"):
        read(tmp_path, b"]" * depth + b"a" * (depth - 1) + b".")


def test_read_restricted_pickle_reports_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"absent.pkl cannot be read: No such file"):
        read_restricted_pickle(tmp_path / "absent.pkl")
