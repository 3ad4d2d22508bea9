from __future__ import annotations

import os
import unicodedata
from pathlib import Path

import pytest

from vitrieve.data.folder import read_flat_folder, read_folder
from vitrieve.data.records import Dataset
from vitrieve.data.sources import read_collection, read_source
from vitrieve.data.walk import Rules, walk_pictures
from vitrieve.errors import ConfigError, DataError


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"")


def list_ids(dataset: Dataset) -> list[str]:
    return [record.image_id for record in dataset.records]


SYSTEM = ("@eaDir", "#recycle", "$RECYCLE.BIN", "System Volume Information", "lost+found", "found.000", "@EADIR")


@pytest.mark.parametrize("name", SYSTEM)
def test_system_folders_are_left_out_at_the_top_and_inside(tmp_path: Path, name: str) -> None:
    touch(tmp_path, "a/1.jpg", "b/2.jpg", f"{name}/3.jpg", f"a/{name}/4.jpg", f"{name}.jpg")
    dataset = read_folder(tmp_path)
    assert (list_ids(dataset), dataset.label_names) == (["a/1.jpg", "b/2.jpg"], ("a", "b"))
    assert any(f"2 of the system (2 {name})" in note for note in dataset.notes)
    assert list_ids(read_flat_folder(tmp_path)) == sorted(["a/1.jpg", "b/2.jpg", f"{name}.jpg"])


def test_a_system_folder_that_is_given_is_read(tmp_path: Path) -> None:
    touch(tmp_path, "lost+found/1.jpg")
    assert list_ids(read_flat_folder(tmp_path / "lost+found")) == ["1.jpg"]


def test_files_of_other_kinds_are_counted_by_suffix(tmp_path: Path) -> None:
    touch(tmp_path, "1.jpg", *(f"{number}.JXL" for number in range(5)), "notes.txt", "README")
    assert "left out: 5 .jxl, 1 .txt, 1 without a suffix." in read_flat_folder(tmp_path).notes


def test_a_folder_of_other_kinds_only_says_which(tmp_path: Path) -> None:
    touch(tmp_path, "a/1.jxl", "a/2.jxl")
    for read in (read_flat_folder, read_folder):
        with pytest.raises(DataError, match=r"2 \.jxl"):
            read(tmp_path)


def test_an_unreadable_folder_is_reported_and_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, "a/1.jpg", "locked/2.jpg")
    scandir = os.scandir

    def refuse(path: Path) -> object:
        if Path(path).name == "locked":
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    dataset = read_flat_folder(tmp_path)
    assert list_ids(dataset) == ["a/1.jpg"]
    assert dataset.unreadable_folders == (("locked", "Permission denied"),)
    assert any("1 folder cannot be read" in note and "locked: Permission denied" in note for note in dataset.notes)
    with pytest.raises(DataError, match="cannot be read: Permission denied"):
        read_flat_folder(tmp_path / "locked")


def test_a_folder_whose_names_alone_may_be_read_is_unreadable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, "a/1.jpg", "locked/2.jpg")
    stat = os.stat

    def refuse(path: str | Path, **values: bool) -> os.stat_result:
        if Path(path).parent.name == "locked" or os.fspath(path).endswith("locked/."):
            raise PermissionError(13, "Permission denied")
        return stat(path, **values)

    monkeypatch.setattr(os, "stat", refuse)
    dataset = read_flat_folder(tmp_path)
    assert list_ids(dataset) == ["a/1.jpg"]
    assert dataset.unreadable_folders == (("locked", "Permission denied"),)


def test_pictures_of_cameras_are_listed_under_all_their_suffixes(tmp_path: Path) -> None:
    touch(tmp_path, "a/DSC0.HIF", "a/1.heif", "a/2.MPO", "a/3.jfif")
    assert list_ids(read_flat_folder(tmp_path)) == ["a/1.heif", "a/2.MPO", "a/3.jfif", "a/DSC0.HIF"]


@pytest.mark.parametrize(
    ("lines", "exclude", "left"),
    [
        (["drafts/"], [], ["a/1.jpg", "a/2_small.jpg", "keep.jpg"]),
        ([], ["drafts/", "*_small.*"], ["a/1.jpg", "keep.jpg"]),
        ([], "drafts/", ["a/1.jpg", "a/2_small.jpg", "keep.jpg"]),  # one pattern, and not one for each letter
        (["*", "!keep.jpg"], [], ["keep.jpg"]),
        (["a/**", "!a/1.jpg"], [], ["a/1.jpg", "drafts/a/3.jpg", "keep.jpg"]),
        (["/a"], [], ["drafts/a/3.jpg", "keep.jpg"]),
        (["# a comment", "", "*.jpg"], ["!keep.jpg"], ["keep.jpg"]),
    ],
)
def test_exclusion_follows_the_rules_of_gitignore(
    tmp_path: Path, lines: list[str], exclude: str | list[str], left: list[str]
) -> None:
    touch(tmp_path, "a/1.jpg", "a/2_small.jpg", "drafts/a/3.jpg", "keep.jpg")
    (tmp_path / ".vitrieveignore").write_text("\n".join(lines))
    assert walk_pictures(tmp_path, exclude).paths == left


def test_a_deeper_vitrieveignore_wins_below_its_folder(tmp_path: Path) -> None:
    touch(tmp_path, "a/1.jpg", "b/1.jpg", "b/2.jpg")
    (tmp_path / ".vitrieveignore").write_text("1.jpg\n")
    (tmp_path / "b" / ".vitrieveignore").write_text("!1.jpg\n/2.jpg\n")
    assert walk_pictures(tmp_path).paths == ["b/1.jpg"]


def test_patterns_fit_names_in_the_other_form_of_unicode(tmp_path: Path) -> None:
    touch(tmp_path, unicodedata.normalize("NFD", "café/1.jpg"), "b/2.jpg")
    assert walk_pictures(tmp_path, [unicodedata.normalize("NFC", "café/")]).paths == ["b/2.jpg"]


def test_what_is_no_pattern_is_refused(tmp_path: Path) -> None:
    touch(tmp_path, "1.jpg", "images.csv")
    with pytest.raises(ConfigError, match=r"'\[z-a\]' is no pattern"):
        read_collection(str(tmp_path), exclude=["[z-a]"])
    (tmp_path / ".vitrieveignore").write_bytes(b"\xff")
    with pytest.raises(DataError, match="expected UTF-8 text with the rules"):
        walk_pictures(tmp_path)
    with pytest.raises(ConfigError, match="table lists its images itself"):
        read_source(f"table:{tmp_path / 'images.csv'}", exclude=["*.png"])


def test_is_passed_over_judges_what_need_not_exist(tmp_path: Path) -> None:
    rules = Rules(tmp_path, ["drafts/"])
    passed = ("@eaDir/1.jpg", "a/@eaDir/x/1.jpg", ".hidden/1.jpg", "a/.1.jpg", "drafts/1.jpg")
    assert all(map(rules.is_passed_over, passed))
    assert not any(map(rules.is_passed_over, ("1.jpg", "a/1.jpg", "drafts", "lost+found.jpg")))


def test_splits_above_classes_are_read_as_splits(tmp_path: Path) -> None:
    touch(tmp_path, "train/cat/1.jpg", "Train/dog/2.jpg", "val/cat/3.jpg", "query/dog/4.jpg", "gallery/dog/5.jpg")
    dataset = read_folder(tmp_path)
    assert dataset.label_names == ("cat", "dog")
    found = {one.image_id: (one.split, one.is_query, one.is_gallery) for one in dataset.records}
    assert found["train/cat/1.jpg"] == found["Train/dog/2.jpg"] == ("train", True, True)
    assert found["val/cat/3.jpg"] == ("validation", True, True)
    assert found["query/dog/4.jpg"] == ("test", True, False)
    assert found["gallery/dog/5.jpg"] == ("test", False, True)
    assert any("read as splits" in note for note in dataset.notes)
    assert any("1 of 1 test classes are also trained on" in note for note in dataset.notes)


def test_a_lone_wrapper_is_looked_through(tmp_path: Path) -> None:
    touch(tmp_path, "photos/2020/cat/1.jpg", "photos/2020/dog/2.jpg")
    dataset = read_folder(tmp_path)
    assert (dataset.label_names, list_ids(dataset)[0]) == (("cat", "dog"), "photos/2020/cat/1.jpg")
    assert any("photos/2020 is looked through" in note for note in dataset.notes)


def test_a_wrapper_above_splits_is_looked_through(tmp_path: Path) -> None:
    touch(tmp_path, "data/train/cat/1.jpg", "data/train/dog/2.jpg", "data/test/cow/3.jpg")
    dataset = read_folder(tmp_path)
    assert dataset.label_names == ("cat", "cow", "dog")
    assert [one.split for one in dataset.records] == ["test", "train", "train"]


def test_a_lone_class_stays_a_class(tmp_path: Path) -> None:
    touch(tmp_path, "only/inner/1.jpg")
    assert read_folder(tmp_path).label_names == ("only",)


def test_splits_without_classes_or_beside_others_are_refused(tmp_path: Path) -> None:
    touch(tmp_path, "flat/train/1.jpg", "flat/test/2.jpg")
    with pytest.raises(DataError, match="hold their pictures directly"):
        read_folder(tmp_path / "flat")
    touch(tmp_path, "mixed/train/a/1.jpg", "mixed/test/b/2.jpg", "mixed/extra/3.jpg")
    with pytest.raises(DataError, match="--exclude '/extra/'"):
        read_folder(tmp_path / "mixed")
    assert read_folder(tmp_path / "mixed", exclude=["/extra/"]).label_names == ("a", "b")


def test_a_class_with_the_name_of_a_split_is_said(tmp_path: Path) -> None:
    touch(tmp_path, "train/1.jpg", "bus/2.jpg")
    dataset = read_folder(tmp_path)
    assert dataset.label_names == ("bus", "train")
    assert any("read as a class, not as splits" in note for note in dataset.notes)


def test_flattening_is_said(tmp_path: Path) -> None:
    touch(tmp_path, "cat/train/1.jpg", "cat/test/2.jpg", "dog/3.jpg")
    notes = read_folder(tmp_path).notes
    assert any("the 2 folders inside class folders belong to the class: cat/test, …" in note for note in notes)
    assert any("Names of splits count only above the classes" in note for note in notes)


def test_one_class_in_two_forms_of_unicode_is_one(tmp_path: Path) -> None:
    composed, split = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))
    touch(tmp_path, f"{composed}/1.jpg", f"{split}/2.jpg", "tea/3.jpg")
    dataset = read_folder(tmp_path)
    assert dataset.label_names == (composed, "tea")
    assert [record.label for record in dataset.records if "caf" in record.image_id] == [0, 0]
    assert all(record.path.is_file() for record in dataset.records)
    assert any("two forms of Unicode" in note for note in dataset.notes)


def test_raw_files_are_named_with_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vitrieve.data.decode.has_rawpy", lambda: False)
    for name in ("a.jpg", "b.CR2", "c.dng", "d.jxl"):
        (tmp_path / name).write_bytes(b"")
    counted, raw = walk_pictures(tmp_path).describe_left_out()
    assert counted == "left out: 1 .cr2, 1 .dng, 1 .jxl."
    assert raw.startswith("2 files are RAW and left out; pip install")
    monkeypatch.setattr("vitrieve.data.decode.has_rawpy", lambda: True)
    assert walk_pictures(tmp_path).paths == ["a.jpg", "b.CR2", "c.dng"]
