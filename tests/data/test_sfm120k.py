from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.data.benchmark_trees import write_sfm120k
from vitrieve.data.decode import read_image
from vitrieve.data.records import Dataset
from vitrieve.data.sfm120k import build_cid_path, read_sfm120k
from vitrieve.data.sources import read_source
from vitrieve.errors import DataError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_sfm120k(tmp_path / "retrieval-SfM-120k", num_models=3, num_validation_models=2, num_images=3)


@pytest.fixture
def edit(folder: Path) -> Callable[[Callable[[Any], object]], Dataset]:
    """Change the pickle's content by a function, and read the data set."""

    def change(function: Callable[[Any], object]) -> Dataset:
        file = folder / "retrieval-SfM-120k.pkl"
        content = pickle.loads(file.read_bytes())
        function(content)
        file.write_bytes(pickle.dumps(content))
        return read_sfm120k(folder)

    return change


def test_build_cid_path_is_the_authors_own() -> None:
    cid = "abcdefghijkl"
    assert build_cid_path(cid) == os.path.join(cid[-2:], cid[-4:-2], cid[-6:-4], cid) == "kl/ij/gh/abcdefghijkl"


def test_read_sfm120k_labels_are_3d_models_of_either_part(folder: Path) -> None:
    dataset = read_sfm120k(folder)
    assert (dataset.name, dataset.split("test"), dataset.ground_truth) == ("sfm120k", (), None)
    assert [record.label for record in dataset.split("train")] == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert [record.label for record in dataset.split("validation")] == [3, 3, 3, 4, 4, 4]
    assert dataset.label_names[0] == "train 3D model 1"
    assert dataset.label_names[3] == "validation 3D model 1"
    first = dataset.records[0]
    cid = first.metadata["cid"]
    assert first.image_id == f"ims/{build_cid_path(cid)}"
    assert first.metadata["bbx"] == "0,0,48,40"
    assert first.box is None
    assert read_image(first).size == (48, 40)
    assert read_sfm120k(folder.parent) == dataset


def test_read_sfm120k_lists_the_pairs_of_both_parts_in_order(folder: Path) -> None:
    dataset = read_sfm120k(folder)
    ids = [record.image_id for record in dataset.records]
    places = [(ids.index(query), ids.index(positive)) for query, positive in dataset.positive_pairs]
    assert places == [(0, 1), (0, 2), (3, 4), (3, 5), (6, 7), (6, 8), (9, 10), (9, 11), (12, 13), (12, 14)]
    by_id = {record.image_id: record for record in dataset.records}
    for query, positive in dataset.positive_pairs:
        assert (by_id[query].label, by_id[query].split) == (by_id[positive].label, by_id[positive].split)


def test_read_sfm120k_notes_counts_and_files(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (note,) = read_sfm120k(folder).notes
    assert "training 3D models: expected 551, found 3; validation 3D models: expected 162, found 2" in note
    monkeypatch.setattr("vitrieve.data.sfm120k.COUNTS", {"training 3D models": 3, "validation 3D models": 2})
    dataset = read_sfm120k(folder)
    assert dataset.notes == ()
    dataset.records[4].path.unlink()
    (folder / "ims" / "extra.jpg").write_bytes(b"x")
    assert read_sfm120k(folder).notes == (
        f"1 of 15 listed images are missing: {dataset.records[4].image_id}.",
        "1 image that no list names is left out: ims/extra.jpg.",
    )


def test_read_sfm120k_counts_a_repeated_image_once(edit: Callable[..., Dataset]) -> None:
    def repeat(content: Any) -> None:
        part = content["train"]
        for key in ("cids", "cluster", "bbxs"):
            part[key].append(part[key][1])
        part["qidxs"].append(8)
        part["pidxs"].append(9)

    dataset = edit(repeat)
    assert len(dataset.records) == 15
    assert any("1 repeated image counts once" in note for note in dataset.notes)
    ids = [record.image_id for record in dataset.records]
    assert dataset.positive_pairs[6] == (ids[8], ids[1])


def test_read_sfm120k_keeps_a_picture_of_two_models_apart(edit: Callable[..., Dataset]) -> None:
    dataset = edit(lambda content: content["val"]["cids"].__setitem__(0, content["train"]["cids"][0]))
    first, other = dataset.records[0], dataset.records[9]
    assert first.path == other.path
    assert other.image_id == f"{first.image_id}#validation 3D model 1"
    assert dataset.positive_pairs[6][0] == other.image_id


def test_read_sfm120k_reads_arrays_and_goes_without_boxes(edit: Callable[..., Dataset], folder: Path) -> None:
    before = read_sfm120k(folder)

    def as_arrays(content: Any) -> None:
        for part in content.values():
            del part["bbxs"]
            for key in ("cluster", "qidxs", "pidxs"):
                part[key] = np.array(part[key])[None]

    after = edit(as_arrays)
    assert after.positive_pairs == before.positive_pairs
    assert [record.label for record in after.records] == [record.label for record in before.records]
    assert "bbx" not in after.records[0].metadata


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda content: content.pop("val"), "not a dictionary with the parts train and val"),
        (lambda content: content["train"].pop("qidxs"), "train: qidxs is missing; expected a list"),
        (lambda content: content["train"].update(cids="abc"), "train: cids is str; expected a list"),
        (lambda content: content["val"]["cluster"].pop(), "val: 6 cids, but 5 cluster"),
        (lambda content: content["val"]["bbxs"].pop(), "val: 6 cids, but 5 bbxs"),
        (lambda content: content["val"]["cluster"].__setitem__(0, "a"), "val: cluster holds something"),
        (lambda content: content["val"]["pidxs"].pop(), "val: 4 qidxs do not belong to 3 pidxs"),
        (lambda content: content["val"]["pidxs"].__setitem__(0, 6), "val, pidxs holds 6; expected a position below 6"),
        (lambda content: content["val"]["qidxs"].__setitem__(0, -1), "val, qidxs holds -1"),
        (lambda content: content["val"]["cids"].__setitem__(2, "abc"), "val, cids, entry 2: 'abc' is not a name"),
        (lambda content: content["val"]["cids"].__setitem__(2, "../../x"), "entry 2: '../../x' is not a name"),
        (lambda content: content["val"]["cids"].__setitem__(2, "aaaa..aa"), "is not a path inside"),
        (lambda content: [part.update({key: [] for key in part}) for part in content.values()], "lists no image"),
    ],
)
def test_read_sfm120k_refuses_another_structure(edit: Callable[..., Dataset], change: Any, said: str) -> None:
    with pytest.raises(DataError) as caught:
        edit(change)
    assert said in str(caught.value)


def test_read_sfm120k_says_what_it_looked_for(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"looked for retrieval-SfM-120k.pkl, ims there and in retrieval-SfM-120k, "):
        read_sfm120k(tmp_path)
    with pytest.raises(DataError, match="'standard'"):
        read_source(f"sfm120k:{tmp_path}", protocol="standart")
