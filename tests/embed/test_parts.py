from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from vitrieve.data.records import ImageRecord
from vitrieve.embed.batches import EncodedBatch
from vitrieve.embed.unfinished import (
    PART_SIZE,
    num_parts,
    open_parts,
    part_path,
    read_reasons,
    read_vectors,
    remove_parts,
    write_part,
)
from vitrieve.errors import ArtifactError, FingerprintError


def make_records(*names: str) -> list[ImageRecord]:
    return [ImageRecord(image_id=name, path=Path(name), label=0, split="test") for name in names]


@pytest.mark.parametrize(
    ("num_records", "expected"), [(0, 0), (1, 1), (PART_SIZE, 1), (PART_SIZE + 1, 2), (3 * PART_SIZE, 3)]
)
def test_num_parts(num_records: int, expected: int) -> None:
    assert num_parts(num_records) == expected


def test_open_parts_accepts_the_same_work_again(tmp_path: Path) -> None:
    first = open_parts(tmp_path, "f1", make_records("a", "b"))
    assert open_parts(tmp_path, "f1", make_records("a", "b")) == first


def test_open_parts_refuses_another_encoder(tmp_path: Path) -> None:
    open_parts(tmp_path, "f1", make_records("a", "b"))
    with pytest.raises(FingerprintError, match="another encoder"):
        open_parts(tmp_path, "f2", make_records("a", "b"))


@pytest.mark.parametrize("names", [("a",), ("b", "a"), ("a", "b", "c"), ("a", "x")])
def test_open_parts_refuses_another_collection(tmp_path: Path, names: tuple[str, ...]) -> None:
    open_parts(tmp_path, "f1", make_records("a", "b"))
    with pytest.raises(ArtifactError, match="another collection"):
        open_parts(tmp_path, "f1", make_records(*names))


def test_open_parts_refuses_what_another_command_has_begun(tmp_path: Path) -> None:
    (tmp_path / ".partial").touch()
    (tmp_path / "config.json").touch()
    with pytest.raises(ArtifactError, match="not begun by embed"):
        open_parts(tmp_path, "f1", make_records("a"))


def test_write_part_joins_batches(tmp_path: Path) -> None:
    batches = [
        EncodedBatch(np.array([[1, 2]], dtype=np.float32), (None, "broken: \N{SNOWMAN}")),
        EncodedBatch(np.empty((0, 2), dtype=np.float32), ("empty",)),
        EncodedBatch(np.array([[3, 4]], dtype=np.float32), (None,)),
    ]
    path = part_path(tmp_path, 0)
    write_part(path, batches)
    assert read_vectors(path).tolist() == [[1, 2], [3, 4]]
    assert read_reasons(path) == (None, "broken: \N{SNOWMAN}", "empty", None)
    assert [file.name for file in tmp_path.iterdir()] == ["000000.npz"]


def test_remove_parts_leaves_the_rest(tmp_path: Path) -> None:
    open_parts(tmp_path, "f1", make_records("a"))
    (tmp_path / "vectors.npy").touch()
    remove_parts(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["vectors.npy"]
