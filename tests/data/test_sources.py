from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.data import benchmark_trees as trees
from vitrieve.data.sources import (
    _SOURCES,
    DESCRIPTIONS,
    find_source_folder,
    find_source_path,
    is_folder_source,
    list_protocols,
    read_collection,
    read_source,
    resolve_source,
)
from vitrieve.errors import ConfigError, DataError

WRITERS = {
    "cub200": trees.write_cub200,
    "sop": trees.write_sop,
    "inshop": trees.write_inshop,
    "sfm120k": trees.write_sfm120k,
    "roxford5k": lambda folder: trees.write_revisited(folder, "roxford5k"),
    "rparis6k": lambda folder: trees.write_revisited(folder, "rparis6k"),
    "revisitop1m": trees.write_revisitop1m,
}


@pytest.fixture
def classes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of two classes in an otherwise empty working folder."""
    for name in ("classes/a/1.png", "classes/b/2.png"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_bytes(b"")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("VITRIEVE_DATA", raising=False)
    return tmp_path / "classes"


def test_read_source_reads_a_folder_by_name_or_alone(classes: Path) -> None:
    assert read_source("folder:classes") == read_source("classes") == read_source("./classes")
    assert read_source(str(classes)).label_names == ("a", "b")


def test_read_source_expands_the_home_folder(classes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(classes.parent))
    assert len(read_source("folder:~/classes").records) == 2


def test_read_source_reads_a_manifest(classes: Path) -> None:
    (classes / "images.csv").write_text("path,label\na/1.png,x\n")
    assert read_source("table:classes/images.csv").label_names == ("x",)


def test_read_source_reads_a_folder_with_a_colon_in_its_name(classes: Path) -> None:
    classes.rename(classes.parent / "my:classes")
    assert read_source("my:classes").label_names == ("a", "b")


def test_read_collection_takes_any_folder_without_classes(classes: Path) -> None:
    dataset = read_collection("classes")
    assert [record.image_id for record in dataset.records] == ["a/1.png", "b/2.png"]
    assert {record.label for record in dataset.records} == {0}
    assert [record.image_id for record in read_collection("classes/a").records] == ["1.png"]


def test_read_collection_takes_a_source_with_its_labels(classes: Path) -> None:
    assert read_collection("folder:classes").label_names == ("a", "b")


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("grocry:classes", "unknown source 'grocry'. Did you mean 'grocery'"),
        ("emojy", "Did you mean 'emoji'"),
        ("absent", "Write grocery:DIR, emoji, cub200:DIR, sop:DIR,"),
        ("absent", "folder:DIR, table:FILE, shards:DIR, hf:DIR, or an existing folder"),
        ("no/such/folder", "no/such/folder is not a folder that exists"),
        ("classes/a/1.png", "is not a folder"),
        ("", "unknown source ''"),
        ("grocery", "write grocery:DIR"),
        (
            "sop",
            "VITRIEVE_DATA is not set; write sop:DIR, or name with VITRIEVE_DATA the folder, such as ~/datasets, that ",
        ),
        ("rparis6k:", "`vitrieve data describe rparis6k`"),
        ("folder:", "write folder:DIR"),
        ("table", "write table:FILE"),
        ("emoji:here", "takes no path"),
        ("folder:absent", "does not exist"),
        ("https://example.org/a.zip", "unknown source 'https'"),
    ],
)
def test_sources_that_cannot_be_read_say_what_to_write(classes: Path, source: str, said: str) -> None:
    for read in (read_source, read_collection):
        with pytest.raises(DataError) as caught:
            read(source)
        assert said in str(caught.value)


def test_read_source_lists_the_protocols_of_an_unknown_one(classes: Path) -> None:
    with pytest.raises(DataError, match=r"Did you mean 'zero_shot'.*phone_to_catalogue"):
        read_source("grocery:classes", protocol="zero-shot")
    with pytest.raises(DataError, match="across_houses"):
        read_source("emoji", protocol="accross_house")
    with pytest.raises(DataError, match="Valid: own_classes"):
        read_source("classes", protocol="zero_shot")


def test_list_protocols_names_the_default_first(classes: Path) -> None:
    assert list_protocols("grocery:DIR") == ("zero_shot", "phone_to_catalogue")
    assert list_protocols("emoji") == ("zero_shot", "across_houses")
    assert list_protocols("classes") == list_protocols("table:x.csv") == ("own_classes",)


def test_read_collection_reads_the_named_protocol(grocery_folder: Path) -> None:
    photographs = read_collection(f"grocery:{grocery_folder}")
    with_catalogue = read_collection(f"grocery:{grocery_folder}", protocol="phone_to_catalogue")
    assert len(with_catalogue.records) == len(photographs.records) + 81


def test_read_collection_refuses_an_unknown_protocol(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="unknown protocol"):
        read_collection(str(tmp_path), protocol="zero_shot")


@pytest.mark.parametrize("name", WRITERS)
def test_read_source_reads_every_benchmark(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    WRITERS[name](tmp_path / "data" / name)
    given = read_source(f"{name}:data/{name}")
    assert given.name == name
    assert given.protocol == list_protocols(name)[0]
    monkeypatch.setenv("VITRIEVE_DATA", str(tmp_path / "data"))
    assert [record.image_id for record in read_source(name).records] == [record.image_id for record in given.records]
    assert find_source_folder(name) == tmp_path / "data" / name


def test_read_source_finds_a_benchmark_by_its_own_folder_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trees.write_sop(tmp_path / "Stanford_Online_Products")
    monkeypatch.setenv("VITRIEVE_DATA", str(tmp_path))
    assert read_source("sop").name == "sop"


def test_read_source_finds_a_benchmark_beside_the_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trees.write_sop(tmp_path / "shared" / "datasets" / "sop")
    (tmp_path / "checkout").mkdir()
    monkeypatch.chdir(tmp_path / "checkout")
    monkeypatch.setenv("VITRIEVE_DATA", str(tmp_path / "absent"))
    assert read_source("sop").name == "sop"


def test_resolve_source_is_one_for_all_spellings(
    classes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "link").symlink_to(classes)
    spellings = ["classes", "classes/", "./classes", "folder:classes", str(classes), str(tmp_path / "link")]
    assert {resolve_source(source) for source in spellings} == {f"folder:{os.path.realpath(classes)}"}
    tables = ["table:classes/images.csv", "manifest:./classes/images.csv"]
    assert len({resolve_source(source) for source in tables}) == 1
    assert resolve_source("emoji") == "emoji"
    assert resolve_source("./emoji") != "emoji"
    (tmp_path / "data" / "sop").mkdir(parents=True)
    monkeypatch.setenv("VITRIEVE_DATA", str(tmp_path / "data"))
    assert resolve_source("sop") == resolve_source(f"sop:{tmp_path / 'data' / 'sop'}") != resolve_source("inshop")
    assert resolve_source("shards:https://example.org/a/") == "shards:https://example.org/a"


def test_every_source_is_described_with_its_protocols() -> None:
    assert set(DESCRIPTIONS) == set(_SOURCES)
    assert all(DESCRIPTIONS[name].protocols == source.protocols for name, source in _SOURCES.items())


def test_read_collection_tells_that_a_data_set_has_won_over_a_folder_of_its_name(
    classes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trees.write_cub200(classes.parent / "data" / "CUB_200_2011")
    monkeypatch.setenv("VITRIEVE_DATA", str(classes.parent / "data"))
    without = read_collection("cub200")
    classes.rename("cub200")
    with_folder = read_collection("cub200")
    assert with_folder.records == without.records
    assert with_folder.notes[:-1] == without.notes
    assert "write ./cub200" in with_folder.notes[-1]
    assert len(read_collection("./cub200").records) == 2


@pytest.mark.parametrize("name", ["folder", "table"])
def test_a_folder_called_like_a_kind_of_source_is_the_folder(name: str, classes: Path) -> None:
    with pytest.raises(DataError, match="lacks a path"):
        read_collection(name)
    classes.rename(name)
    assert [record.image_id for record in read_collection(name).records] == ["a/1.png", "b/2.png"]
    assert find_source_path(name) == Path(name)


def test_data_of_an_unknown_user_is_one_message(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VITRIEVE_DATA", "~no-such-user/data")
    with pytest.raises(ConfigError, match="home folder of ~no-such-user is not known"):
        read_collection("cub200")


def test_the_former_name_of_a_table_is_taken_with_a_note(classes: Path) -> None:
    (classes / "images.csv").write_text("path,label\na/1.png,x\nb/2.png,x\n")
    former, present = (read_source(f"{name}:{classes / 'images.csv'}") for name in ("manifest", "table"))
    assert former.records == present.records
    assert former.notes == (*present.notes, f"{former.source} is spelled {present.source} now.")
    assert find_source_path(former.source) == find_source_path(present.source) == classes / "images.csv"
    assert not any(is_folder_source(f"{name}:gone.csv") for name in ("manifest", "table"))
