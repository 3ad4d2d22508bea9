from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from vitrieve.config import LoaderConfig
from vitrieve.data.loader import TrainingLoader
from vitrieve.data.preprocess import build_preprocessing
from vitrieve.data.records import Dataset, GroundTruth, ImageRecord
from vitrieve.data.several import read_sources, set_apart, train_on_all_classes
from vitrieve.data.sources import read_source
from vitrieve.errors import ConfigError, DataError


def build_dataset(name: str, labels: tuple[int, ...] = (0, 0, 1, 1), **changes: object) -> Dataset:
    records = tuple(
        ImageRecord(image_id=f"{row}.png", path=Path("/unused") / name / f"{row}.png", label=label, split="train")
        for row, label in enumerate(labels)
    )
    return replace(
        Dataset(name=name, protocol="made", records=records, label_names=("cat", "dog")),
        **changes,  # type: ignore[arg-type]
    )


@pytest.fixture
def two_folders(class_folder: Path, tmp_path: Path) -> tuple[Path, Path]:
    """Two folders that are called alike, with the same classes and names of pictures."""
    folders = tmp_path / "here" / "shop", tmp_path / "there" / "shop"
    for folder in folders:
        shutil.copytree(class_folder, folder)
    return folders


def test_set_apart_keeps_equal_classes_and_image_names_of_two_sources_apart() -> None:
    one, other = set_apart([build_dataset("zoo"), build_dataset("farm", labels=(1, 0))])
    assert [(record.image_id, record.label, record.source) for record in (*one.records, *other.records)] == [
        *((f"zoo/{row}.png", label, "zoo") for row, label in enumerate((0, 0, 1, 1))),
        ("farm/0.png", 3, "farm"),
        ("farm/1.png", 2, "farm"),
    ]
    assert one.label_names == other.label_names == ("cat", "dog", "cat", "dog")
    assert [record.path.name for record in one.records] == ["0.png", "1.png", "2.png", "3.png"]


def test_set_apart_leaves_a_single_data_set_as_it_is() -> None:
    dataset = build_dataset("zoo")
    (same,) = set_apart([dataset])
    assert same is dataset


def test_set_apart_renames_the_images_of_pairs_and_of_a_ground_truth() -> None:
    listed = build_dataset(
        "zoo",
        positive_pairs=(("0.png", "1.png"),),
        ground_truth={"0.png": GroundTruth(easy=("1.png",), hard=("2.png",), junk=("3.png",))},
    )
    one, _ = set_apart([listed, build_dataset("farm")])
    assert one.positive_pairs == (("zoo/0.png", "zoo/1.png"),)
    assert one.ground_truth == {"zoo/0.png": GroundTruth(easy=("zoo/1.png",), hard=("zoo/2.png",), junk=("zoo/3.png",))}


def test_set_apart_names_sources_that_are_called_alike_by_their_spelling(two_folders: tuple[Path, Path]) -> None:
    sources = [f"folder:{folder}" for folder in two_folders]
    apart = set_apart(read_sources(sources))
    assert [dataset.name for dataset in apart] == sources
    assert len({record.image_id for dataset in apart for record in dataset.records}) == 40
    assert len({record.label for dataset in apart for record in dataset.records}) == 10
    with pytest.raises(DataError, match="two of the data sets are called zoo; give one another name"):
        set_apart([build_dataset("zoo"), replace(build_dataset("pen"), name="zoo")])


def test_set_apart_refuses_a_source_that_is_given_twice_however_it_is_spelled(
    two_folders: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, there = two_folders
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to(here)
    (tmp_path / "some.csv").write_text(f"path,label\n{here}/class0/0.png,a\n{here}/class0/1.png,b\n")
    for again in (f"folder:{here}", "here/shop", "here/../here/shop", "link", "table:some.csv"):
        with pytest.raises(DataError, match=r"0\.png of .* the same picture, .* a source is given twice"):
            set_apart(read_sources([f"folder:{there}", f"folder:{here}", again]))


def test_read_sources_takes_one_protocol_for_each(two_folders: tuple[Path, Path]) -> None:
    found = read_sources(two_folders, protocols=["own_classes", "own_classes"])
    assert [dataset.protocol for dataset in found] == ["own_classes", "own_classes"]
    with pytest.raises(ConfigError, match=r"the protocols are own_classes, and the sources are .*; give one protocol"):
        read_sources(two_folders, protocols=["own_classes"])
    with pytest.raises(DataError, match="unknown protocol of folder 'zero_shot'"):
        read_sources(two_folders, protocols=["own_classes", "zero_shot"])
    with pytest.raises(ConfigError, match="no source is named"):
        read_sources([])


def test_one_source_and_one_pattern_are_one_and_not_their_letters(two_folders: tuple[Path, Path]) -> None:
    folder = two_folders[0]
    listed = read_sources([str(folder)], protocols=["own_classes"], exclude=["class0/"])
    for given in (folder, str(folder)):
        assert read_sources(given, protocols="own_classes", exclude="class0/") == listed
        assert (read_source(given, exclude="class0/"),) == listed
    assert len(listed[0].label_names) == 4


def test_read_sources_leaves_files_out_of_folders_only(two_folders: tuple[Path, Path], tmp_path: Path) -> None:
    here, there = two_folders
    (tmp_path / "some.csv").write_text(f"path,label\n{here}/class0/0.png,a\n{here}/class0/1.png,b\n")
    table, folder = read_sources([f"table:{tmp_path / 'some.csv'}", there], exclude=["0.png"])
    assert (len(table.records), len(folder.records)) == (2, 15)
    with pytest.raises(ConfigError, match="--exclude"):
        read_sources([f"table:{tmp_path / 'some.csv'}"], exclude=["0.png"])


def test_read_sources_of_all_classes_has_nothing_left_to_test(two_folders: tuple[Path, Path]) -> None:
    some, every = read_source(str(two_folders[0])), read_sources(two_folders, classes="all")[0]
    assert len(some.split("test")) == 4
    assert every.split("test") == ()
    assert len(every.split("train")) == 20
    assert every.protocol == "own_classes, all classes"
    assert every.notes[-1].startswith("the classes for testing are training classes, too")
    with pytest.raises(DataError, match="its test images have no classes to train on"):
        train_on_all_classes(build_dataset("zoo", ground_truth={}))


@pytest.mark.parametrize(
    ("kept", "left_out"),
    [
        (("train/1.jpg", "val/2.jpg", "train/3.jpg"), ("test/1.jpg", "Gallery/4.jpg")),
        (("all/train/1.jpg",), ("all/test/1.jpg", "all/query/2.jpg")),
        (("train/cat/1.jpg", "others/1.jpg", "train/test/2.jpg"), ("test/cat/2.jpg", "test/train/2.jpg")),
        (("1.jpg", "test.jpg"), ()),
    ],
)
def test_read_sources_without_classes_trains_on_no_folder_that_is_for_testing(
    tmp_path: Path, kept: tuple[str, ...], left_out: tuple[str, ...]
) -> None:
    for name in (*kept, *left_out):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (found,) = read_sources([tmp_path], classes="none")
    assert sorted(record.image_id for record in found.records) == sorted(kept)
    assert {record.split for record in found.records} == {"train"}
    counted = [note for note in found.notes if "left out" in note]
    assert [note.partition(" ")[0] for note in counted] == [str(len(left_out))] * bool(left_out)


@pytest.mark.parametrize("protocols", [(), ("own_classes",)])
def test_trap_a_flat_folder_that_is_called_as_a_data_set_is_the_folder(
    protocols: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "emoji").mkdir()
    (tmp_path / "emoji" / "1.jpg").touch()
    monkeypatch.chdir(tmp_path)
    (found,) = read_sources("folder:emoji", protocols=protocols, classes="none")
    assert [record.image_id for record in found.records] == ["1.jpg"]
    assert (found.name, found.source) == ("emoji", "folder:emoji")


@pytest.mark.parametrize(("source", "protocol"), [("folder:emoji", "typo"), ("folder:", None)])
def test_what_is_no_folder_or_no_protocol_is_refused_without_classes_too(
    source: str, protocol: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "emoji").mkdir()
    (tmp_path / "emoji" / "1.jpg").touch()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match="typo" if protocol else "lacks a path"):
        read_sources(source, protocols=() if protocol is None else (protocol,), classes="none")


def test_set_apart_refuses_labels_without_names_which_would_be_those_of_another() -> None:
    with pytest.raises(DataError, match="zoo has labels for which label_names has no name"):
        set_apart([build_dataset("zoo", labels=(0, 1, 2)), build_dataset("farm")])


def test_read_sources_without_classes_forgets_further_labels_too(tmp_path: Path) -> None:
    rows = [f"{number}.jpg,train,{number % 2},a;b" for number in range(4)]
    (tmp_path / "own.csv").write_text("\n".join(["path,split,label,more_labels", *rows]))
    (tmp_path / "0.jpg").touch()
    (given,) = read_sources([f"table:{tmp_path / 'own.csv'}"])
    (found,) = read_sources([f"table:{tmp_path / 'own.csv'}"], classes="none")
    assert (len(given.more_labels), found.more_labels) == (4, {})
    assert len({record.label for record in found.records}) == 4


def test_read_sources_without_classes_refuses_a_folder_that_is_for_testing_only(tmp_path: Path) -> None:
    for name in ("query/1.jpg", "gallery/1.jpg"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).touch()
    with pytest.raises(DataError, match="gallery, query are names of splits but hold their pictures directly"):
        read_sources([tmp_path], classes="none")


def test_trap_the_same_class_name_in_two_sources_is_two_labels_in_every_batch(two_folders: tuple[Path, Path]) -> None:
    """Memory, proxies and losses know an image's class by this label alone."""
    apart = set_apart(read_sources(two_folders))
    records = [record for dataset in apart for record in dataset.split("train")]
    config = LoaderConfig(sampling="m_per_class", images_per_class=2)
    loader = TrainingLoader(records, config, build_preprocessing(16), batch_size=8, seed=0)
    sources_of_label: dict[int, set[str]] = {}
    for batch in loader.batches(0, 6):
        shown = [records[row].source for row in batch.rows.tolist()]
        assert shown.count(apart[0].name) == 4
        for label, source in zip(batch.labels.tolist(), shown, strict=True):
            sources_of_label.setdefault(label, set()).add(source)
    assert loader.num_classes == 8
    assert all(len(sources) == 1 for sources in sources_of_label.values())
    assert len(sources_of_label) == 8


@pytest.mark.parametrize("rule", ["mixed", "one", "together"])
def test_trap_batches_of_several_sources_from_the_middle_equal_those_of_a_whole_run(
    two_folders: tuple[Path, Path], rule: str
) -> None:
    records = [record for dataset in set_apart(read_sources(two_folders)) for record in dataset.split("train")]
    config = LoaderConfig(sampling="m_per_class", images_per_class=2, sources=rule)  # type: ignore[arg-type]

    def draw(start: int) -> list[tuple[list[int], float]]:
        loader = TrainingLoader(records, config, build_preprocessing(16), batch_size=8, seed=0)
        return [(batch.rows.tolist(), float(batch.pixels.double().sum())) for batch in loader.batches(start, 6)]

    assert draw(0)[4:] == draw(4)
    sources = [{records[row].source for row in rows} for rows, _ in draw(0)]
    assert {len(some) for some in sources} == ({1} if rule == "one" else {2})
