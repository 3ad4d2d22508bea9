from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.data.benchmark_trees import QUERY_BOX, write_revisited, write_revisitop1m
from vitrieve.data.decode import read_image
from vitrieve.data.records import Dataset, GroundTruth
from vitrieve.data.revisited import PROTOCOLS, read_distractors, read_revisited, use_whole_queries
from vitrieve.data.sources import read_source
from vitrieve.errors import DataError

NAME = "roxford5k"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_revisited(tmp_path / NAME, NAME, num_queries=2, num_images=2)


@pytest.fixture
def edit(folder: Path) -> Callable[[Callable[[Any], object]], Dataset]:
    """Change the pickle's content by a function, and read the data set."""

    def change(function: Callable[[Any], object]) -> Dataset:
        file = folder / f"gnd_{NAME}.pkl"
        content = pickle.loads(file.read_bytes())
        function(content)
        file.write_bytes(pickle.dumps(content))
        return read_revisited(NAME, folder)

    return change


def test_read_revisited_lists_gallery_and_queries(folder: Path) -> None:
    dataset = read_revisited(NAME, folder)
    assert (dataset.name, dataset.protocol, dataset.ks) == (NAME, "medium", (1, 5, 10))
    assert {(record.split, record.label) for record in dataset.records} == {("test", 0)}
    gallery = [record for record in dataset.records if record.is_gallery]
    queries = [record for record in dataset.records if record.is_query]
    assert len(gallery) + len(queries) == len(dataset.records) == 16
    assert gallery[0].image_id == "jpg/easy_0_0.jpg"
    assert gallery[-1].image_id == "jpg/nothing_1.jpg"
    assert [record.image_id for record in queries] == ["query/query_0.jpg", "query/query_1.jpg"]
    assert queries[0].path == folder / "jpg" / "query_0.jpg"


def test_read_revisited_turns_places_into_image_ids(folder: Path) -> None:
    truths = read_revisited(NAME, folder).ground_truth
    assert truths is not None
    assert list(truths) == ["query/query_0.jpg", "query/query_1.jpg"]
    assert truths["query/query_1.jpg"] == GroundTruth(
        easy=("jpg/easy_1_0.jpg", "jpg/easy_1_1.jpg"),
        hard=("jpg/hard_1_0.jpg", "jpg/hard_1_1.jpg"),
        junk=("jpg/junk_1_0.jpg", "jpg/junk_1_1.jpg"),
    )


def test_trap_read_revisited_crops_the_queries_alone(folder: Path) -> None:
    dataset = read_revisited(NAME, folder)
    query, gallery = dataset.records[-1], dataset.records[0]
    assert query.box == QUERY_BOX
    assert read_image(query).size == (32, 28)
    whole = read_image(gallery)
    assert (gallery.box, whole.size) == (None, (48, 40))
    uncropped = use_whole_queries(dataset)
    assert read_image(uncropped.records[-1]).size == (48, 40)
    assert uncropped.notes[-1].startswith("queries are whole images")
    np.testing.assert_array_equal(
        np.asarray(read_image(query)), np.asarray(read_image(uncropped.records[-1]))[5:33, 4:36]
    )


def test_read_revisited_protocols_hold_the_same_records(folder: Path) -> None:
    datasets = [read_revisited(NAME, folder, protocol) for protocol in PROTOCOLS]
    assert [dataset.protocol for dataset in datasets] == ["medium", "hard", "easy"]
    assert all(dataset.records == datasets[0].records for dataset in datasets)


def test_read_revisited_accepts_the_parent_and_the_authors_folders(folder: Path, tmp_path: Path) -> None:
    dataset = read_revisited(NAME, folder)
    assert read_revisited(NAME, tmp_path) == dataset
    (tmp_path / "test").mkdir()
    folder.rename(tmp_path / "test" / NAME)
    assert len(read_revisited(NAME, tmp_path).records) == len(dataset.records)


@pytest.mark.parametrize(("name", "num_gallery"), [("roxford5k", "4,993"), ("rparis6k", "6,322")])
def test_read_revisited_notes_counts(
    tmp_path: Path, name: str, num_gallery: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_revisited(tmp_path, name, num_queries=1, num_images=1)
    (note,) = read_revisited(name, folder).notes
    assert f"gallery images: expected {num_gallery}, found 4; queries: expected 70, found 1" in note
    monkeypatch.setitem(read_revisited.__globals__["COUNTS"], name, {"gallery images": 4, "queries": 1})
    assert read_revisited(name, folder).notes == ()


def test_read_revisited_notes_missing_and_extra_images(folder: Path) -> None:
    (folder / "jpg/hard_0_1.jpg").unlink()
    (folder / "jpg/extra.jpg").write_bytes(b"x")
    dataset = read_revisited(NAME, folder)
    assert len(dataset.records) == 16
    assert dataset.notes[1:] == (
        "1 of 16 listed images are missing: jpg/hard_0_1.jpg.",
        "1 image that no list names is left out: jpg/extra.jpg.",
    )


def test_read_revisited_tells_a_query_from_the_same_file_in_the_gallery(edit: Callable[..., Dataset]) -> None:
    dataset = edit(lambda content: content["imlist"].append("query_0"))
    ids = [record.image_id for record in dataset.records if record.path.name == "query_0.jpg"]
    assert ids == ["jpg/query_0.jpg", "query/query_0.jpg"]


def test_read_revisited_keeps_two_queries_of_one_file_apart(edit: Callable[..., Dataset]) -> None:
    dataset = edit(lambda content: content["qimlist"].__setitem__(1, "query_0"))
    assert dataset.ground_truth is not None
    assert list(dataset.ground_truth) == ["query/query_0.jpg", "query/query_0.jpg#1"]
    assert dataset.records[-1].image_id == "query/query_0.jpg#1"


def test_read_revisited_counts_a_repeated_gallery_image_once(edit: Callable[..., Dataset]) -> None:
    def repeat(content: Any) -> None:
        content["imlist"].append("easy_0_0")
        content["gnd"][0]["easy"] = [len(content["imlist"]) - 1, 0, 1]

    dataset = edit(repeat)
    assert sum(record.image_id == "jpg/easy_0_0.jpg" for record in dataset.records) == 1
    assert "imlist: 1 repeated image counts once: jpg/easy_0_0.jpg." in dataset.notes
    assert dataset.ground_truth is not None
    assert dataset.ground_truth["query/query_0.jpg"].easy == ("jpg/easy_0_0.jpg", "jpg/easy_0_1.jpg")


def test_read_revisited_keeps_a_query_that_nothing_answers(edit: Callable[..., Dataset]) -> None:
    dataset = edit(lambda content: content["gnd"][0].update(easy=[], hard=np.array([]), junk=()))
    assert dataset.ground_truth is not None
    assert dataset.ground_truth["query/query_0.jpg"] == GroundTruth()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda content: content.pop("imlist"), "imlist is missing"),
        (lambda content: content.update(qimlist=[]), "qimlist is empty or no list"),
        (lambda content: content["qimlist"].pop(), "1 queries in qimlist, but 2 in gnd"),
        (lambda content: content["gnd"][1].pop("bbx"), "gnd, entry 1: bbx is None; expected x_1, y_1, x_2, y_2"),
        (lambda content: content["gnd"][1].update(bbx=[5, 5, 5, 9]), "entry 1: bbx is [5, 5, 5, 9]"),
        (lambda content: content["gnd"][1].update(bbx=[0, 0, float("nan"), 9]), "entry 1: bbx is"),
        (lambda content: content["gnd"].__setitem__(0, 3), "gnd, entry 0: bbx is None"),
        (lambda content: content["gnd"][1].pop("junk"), "gnd, entry 1 has no 'junk'"),
        (lambda content: content["gnd"][1].update(easy=[14]), "easy holds 14; expected a position below 14 in imlist"),
        (lambda content: content["gnd"][1].update(hard=[-1]), "hard holds -1"),
        (lambda content: content["gnd"][1].update(hard=[0.5]), "hard holds 0.5"),
        (lambda content: content["gnd"][1].update(hard=["a"]), "hard holds 'a'"),
        (lambda content: content["gnd"][1].update(hard=[6]), "jpg/easy_1_0.jpg is in two of easy, hard and junk"),
        (lambda content: content["imlist"].__setitem__(3, "../x"), "imlist, entry 3: '../x' is not a path inside"),
        (lambda content: content["qimlist"].__setitem__(1, 5), "qimlist, entry 1: 5 is not the name of an image"),
    ],
)
def test_read_revisited_refuses_another_structure(edit: Callable[..., Dataset], change: Any, said: str) -> None:
    with pytest.raises(DataError) as caught:
        edit(change)
    assert said in str(caught.value)


def test_read_revisited_refuses_a_pickle_of_something_else(folder: Path) -> None:
    (folder / f"gnd_{NAME}.pkl").write_bytes(pickle.dumps([1]))
    with pytest.raises(DataError, match="holds list; expected a dictionary with gnd, imlist, qimlist"):
        read_revisited(NAME, folder)


def test_read_revisited_says_what_it_looked_for(folder: Path) -> None:
    with pytest.raises(DataError, match=r"rparis6k:.*: looked for gnd_rparis6k.pkl, jpg there and in rparis6k, "):
        read_revisited("rparis6k", folder)
    with pytest.raises(DataError, match="'medium'"):
        read_source(f"{NAME}:{folder}", protocol="mediun")


def test_read_distractors_lists_the_gallery_sorted(tmp_path: Path) -> None:
    write_revisitop1m(tmp_path / "revisitop1m", num_images=3)
    dataset = read_distractors(tmp_path)
    assert [record.image_id for record in dataset.records] == [
        "jpg/0/000000.jpg",
        "jpg/0/000002.jpg",
        "jpg/1/000001.jpg",
    ]
    assert not any(record.is_query for record in dataset.records)
    assert all(record.is_gallery and record.path.is_file() for record in dataset.records)
    assert "distractors: expected 1,001,001, found 3" in dataset.notes[0]
    assert read_distractors(tmp_path / "revisitop1m") == dataset


def test_read_distractors_refuses_what_are_none(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is roxford5k, whose images are no distractors"):
        read_distractors(folder)
    with pytest.raises(DataError, match=r"revisitop1m:.*: looked for jpg there and in revisitop1m"):
        read_distractors(tmp_path)
    (tmp_path / "jpg").mkdir()
    (tmp_path / "jpg" / "._a.jpg").write_bytes(b"x")
    with pytest.raises(DataError, match="holds no image"):
        read_distractors(tmp_path)
    with pytest.raises(DataError, match="Valid: distractors"):
        read_source(f"revisitop1m:{tmp_path}", protocol="medium")
