"""A data set that weights were trained on is known by its name, and a copy of it by the names of its pictures."""

from __future__ import annotations

import csv
import dataclasses
import sys
from collections.abc import Iterator, Sequence
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

from vitrieve import ImageRecord, read_source
from vitrieve.data.grocery import read_grocery
from vitrieve.data.pack import pack_dataset
from vitrieve.data.records import SPLITS, Dataset, RecordColumns, RecordTable, Split
from vitrieve.data.several import train_on_all_classes
from vitrieve.evaluation.protocols import add_distractors
from vitrieve.model import seen
from vitrieve.model.pretrained import WEIGHTS
from vitrieve.model.seen import describe_seen, hash_names, list_seen
from vitrieve.model.tensors import read_arrays

GENERAL = "vitrieve-general-v2"
OWN = "own"
KNOWN = [f"Pear_{number:03}" for number in range(1, 31)]
"""Thirty pictures, as many as the ten classes of ``write_photographs`` have."""


@pytest.fixture(autouse=True)
def _register(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights that were trained on ``fruit``, whose pictures are known, and on two that are known by name alone."""
    file = tmp_path / "pictures.safetensors"
    save_file({"fruit": np.unique(hash_names(KNOWN)), "shoes": np.unique(hash_names(["shoe1", "shoe2"]))}, file)
    entry = dataclasses.replace(WEIGHTS[GENERAL], name=OWN, trained_on=("fruit", "drawings", "emoji"), pictures=file)
    monkeypatch.setitem(WEIGHTS, OWN, entry)


def build_dataset(names: Sequence[str], *, split: Split = "test", name: str = "mine") -> Dataset:
    records = [ImageRecord(image_id=one, path=Path(one), label=0, split=split) for one in names]
    return Dataset(name=name, protocol="", records=tuple(records), label_names=("one",))


def write_photographs(folder: Path, names: Sequence[str]) -> Path:
    """Write three pictures of each of ten classes, the fifth and the last of which test."""
    for number, name in enumerate(names):
        path = folder / f"class{number // 3}" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (number, 0, 0)).save(path)
    return folder


def write_table(folder: Path, file: Path, columns: Sequence[str] = (), *boxes: Sequence[float]) -> Path:
    """Write a table of the photographs of a folder, a row for each box."""
    with file.open("w", newline="") as opened:
        writer = csv.writer(opened)
        writer.writerow(["path", "label", *columns])
        for path in sorted(folder.rglob("*.png")):
            writer.writerows([path.relative_to(file.parent), path.parent.name, *box] for box in boxes or [()])
    return file


def test_a_name_is_enough_where_there_are_test_images() -> None:
    datasets = [build_dataset(["a"], name=name) for name in ("mine", "drawings", "drawings", "fruit")]
    assert list_seen(OWN, datasets) == ["drawings", "fruit"]
    assert list_seen("dinov2-vits14", datasets) == list_seen("a timm model", datasets) == []
    assert list_seen(OWN, [build_dataset(KNOWN, name="fruit", split="train")]) == []
    assert list_seen(OWN, [build_dataset([], name="fruit")]) == []
    (line,) = describe_seen("runs/mine", OWN, datasets[:2])
    assert line.startswith(f"runs/mine: its start, {OWN}, has seen the test classes of drawings: ")


def test_the_name_of_a_folder_or_file_says_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Anybody may call a folder of groceries, or of icons, so."""
    monkeypatch.chdir(tmp_path)
    for name in ("fruit", "emoji"):
        folder = write_photographs(tmp_path / name, [f"{number}" for number in range(30)])
        table = write_table(folder, tmp_path / f"{name}.csv")
        for source in (f"folder:{folder}", f"./{name}", f"hf:{name}", f"table:{table}", *["fruit"] * (name == "fruit")):
            found = read_source(source)
            assert (found.name, bool(found.split("test"))) == (name, True)
            assert list_seen(OWN, [found]) == [], source
        pack_dataset(found, tmp_path / f"{name}-packed")
    # Of emoji only the name is known: it counts as the source, in memory, and packed, where it is that of the data set.
    packed = {name: read_source(f"shards:{name}-packed") for name in ("fruit", "emoji")}
    assert packed["fruit"].name == "fruit"
    assert list_seen(OWN, [packed["fruit"]]) == []
    for source in ("emoji", "", "shards:emoji-packed"):
        assert list_seen(OWN, [dataclasses.replace(packed["emoji"], source=source)]) == ["emoji"]


def test_copies_are_known_by_their_pictures_wherever_they_lie(tmp_path: Path) -> None:
    photographs = write_photographs(tmp_path / "images", [name.lower() for name in KNOWN])
    others = write_photographs(tmp_path / "others", [f"Plum_{number:03}" for number in range(30)])
    boxes = ((0, 0, 4, 4), (0.5, 0, 8, 4))
    for folder, end in ((photographs, " (its pictures are named as in fruit)"), (others, None)):
        dataset = read_source(f"folder:{folder}")
        pack_dataset(dataset, tmp_path / f"{folder.name}-packed")
        rows = write_table(folder, tmp_path / f"{folder.name}-rows.csv")
        several = write_table(folder, tmp_path / f"{folder.name}-boxes.csv", ("x_1", "y_1", "x_2", "y_2"), *boxes)
        sources = {
            f"folder:{folder}": folder.name,
            f"shards:{tmp_path / folder.name}-packed": folder.name,
            f"table:{rows}": rows.stem,
            f"table:{several}": several.stem,
        }
        for source, name in sources.items():
            found = read_source(source)
            assert found.split("test"), source
            assert list_seen(OWN, [found]) == ([] if end is None else [name + end]), source
            assert list_seen(OWN, [train_on_all_classes(found)]) == []


def test_a_tenth_of_the_test_images_is_enough_and_less_is_not() -> None:
    others = [f"{number}.jpg" for number in range(200)]
    trained = build_dataset(KNOWN, split="train").records
    for num_known in range(1, 21):
        num_others = 9 * num_known
        at, below = (build_dataset([*KNOWN[:num_known], *others[: num_others + more]]) for more in (0, 1))
        assert list_seen(OWN, [at]) == ["mine (its pictures are named as in fruit)"], num_known
        assert list_seen(OWN, [below]) == [], num_known
        assert list_seen(OWN, [dataclasses.replace(below, records=(*below.records, *trained))]) == []
    # Distractors, of which there may be a million, are no test images.
    added = add_distractors(at, build_dataset([f"{number}.png" for number in range(500)], name="others"))
    assert list_seen(OWN, [added]) == ["mine + others (its pictures are named as in fruit)"]
    assert list_seen(OWN, [dataclasses.replace(added, name="drawings + others")]) == ["drawings + others"]
    assert list_seen(OWN, [add_distractors(below, build_dataset([f"d/{name}.jpg" for name in KNOWN]))]) == []
    # What two collections have together counts, and the one with more pictures is named first.
    mixed = build_dataset(["shoe1", "shoe2", KNOWN[0], *others[:27]])
    assert list_seen(OWN, [mixed]) == ["mine (its pictures are named as in shoes and fruit)"]


@pytest.mark.parametrize("num_rows", [9_999, 10_000, 10_001, 25_000])
def test_of_many_images_some_are_asked_and_no_record_is_made(num_rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def note(names: Iterator[str]) -> np.ndarray:
        asked.extend(names)
        return hash_names(asked)

    class Names(RecordTable):
        """Every other image tests, and of these the last 15 % have a known name."""

        def __len__(self) -> int:
            return 2 * num_rows

        def read_columns(self) -> RecordColumns:
            rows = np.arange(len(self))
            splits = np.where(rows % 2, SPLITS.index("test"), SPLITS.index("train")).astype(np.int8)
            return RecordColumns(rows, splits, rows >= 0, rows >= 0)

        def read_ids(self) -> Iterator[str]:
            for row in range(len(self)):
                yield KNOWN[0] if row % 2 and row >= 1.7 * num_rows else f"{row}.jpg"

        def _make(self, row: int) -> ImageRecord:
            raise AssertionError(f"record {row} was made")

    monkeypatch.setattr(seen, "hash_names", note)
    dataset = dataclasses.replace(build_dataset([]), records=Names())
    assert list_seen(OWN, [dataset]) == ["mine (its pictures are named as in fruit)"]
    assert len(asked) == min(num_rows, 10_000)
    assert asked[0] == "1.jpg"
    others = [int(name.removesuffix(".jpg")) for name in asked if name != KNOWN[0]]
    assert all(row % 2 for row in others)
    assert set(np.diff(others)) <= {2 * (num_rows // len(asked)), 2 * -(-num_rows // len(asked))}


def test_the_file_of_the_package_knows_the_collections_and_little_else() -> None:
    entry = WEIGHTS[GENERAL]
    assert entry.pictures is not None
    assert entry.pictures.parent == Path(seen.__file__).parent
    known = read_arrays(entry.pictures)
    # The drawings of emoji have common names.
    assert {name: len(hashes) for name, hashes in known.items()} == {"grocery": 2_640, "clothing-small": 3_781}
    assert all(hashes.dtype == np.uint32 and np.all(hashes[1:] > hashes[:-1]) for hashes in known.values())
    for name, collection in (
        ("low/train/Fruit/Kiwi/Kiwi_001.png", "grocery"),
        ("Packages/Milk/Oatly-Oat-Milk/Oatly-Oat-Milk_007.jpg", "grocery"),
        ("hat/A26FCF8F-e1a3-4607-9854-9afef6745c86.jpg", "clothing-small"),
    ):
        found = list_seen(GENERAL, [build_dataset([name], name="images")])
        assert found == [f"images (its pictures are named as in {collection})"]
    common = [f"{prefix}{number}" for prefix in ("", "IMG_", "DSC0", "0000", "image", "kiwi") for number in range(2000)]
    assert list_seen(GENERAL, [build_dataset(common)]) == []
    assert sum(np.isin(hash_names(common), hashes).sum() for hashes in known.values()) == 0


@pytest.mark.data
def test_grocery_is_known_under_any_name(grocery_folder: Path) -> None:
    for protocol in ("zero_shot", "phone_to_catalogue"):
        dataset = dataclasses.replace(read_grocery(grocery_folder, protocol), name="low")
        assert list_seen(GENERAL, [dataset]) == ["low (its pictures are named as in grocery)"]


def test_the_script_writes_the_names_of_both_collections(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = set(sys.modules)
    benchmarks = Path(__file__).parents[2] / "benchmarks"
    monkeypatch.syspath_prepend(str(benchmarks))
    script = import_module("make_seen_pictures")
    first, other = (write_photographs(tmp_path / name, [f"{name}{n}" for n in range(30)]) for name in ("a", "B"))
    sources = {"grocery": f"folder:{first}", "clothing-small": f"folder:{other}"}
    monkeypatch.setattr(script, "find_collections", lambda: sources)
    file = tmp_path / "out.safetensors"
    monkeypatch.setattr(sys, "argv", ["make_seen_pictures.py", str(file)])
    script.main()
    found = read_arrays(file)
    assert found.keys() == {"grocery", "clothing-small"}
    assert found["clothing-small"].tolist() == sorted(set(hash_names(f"b{n}" for n in range(30)).tolist()))
    for name in {"make_seen_pictures", "collections_here"} - before:
        del sys.modules[name]
