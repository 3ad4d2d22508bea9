from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

import pytest
from PIL import Image

from tests.search.memory_store import MemoryStore
from tests.syncing.helpers import Sync, assert_true, counts
from vitrieve.data import decode
from vitrieve.errors import ArtifactError, DecodeError
from vitrieve.index.written import get_pictures_folder, locking_writes, name_picture
from vitrieve.runtime.encoder import Encoder
from vitrieve.syncing import state
from vitrieve.syncing.scan import find_mass_removal


def spread(folder: Path, **numbers: range) -> None:
    """Move pictures into top folders."""
    for name, some in numbers.items():
        (folder / name).mkdir()
        for number in some:
            (folder / f"{number:02}.png").rename(folder / name / f"{number:02}.png")


def test_sync_collection_keeps_a_top_folder_that_has_vanished_until_it_is_back(
    sync: Sync, store: MemoryStore, encoder: Encoder, picture_folder: Path, tmp_path: Path
) -> None:
    spread(picture_folder, drive=range(6), rest=range(6, 11))
    sync()
    (picture_folder / "drive").rename(tmp_path / "drive")
    for is_mount_point in (False, True):
        if is_mount_point:
            (picture_folder / "drive").mkdir()
        report = sync()
        assert (counts(report), report.num_kept, len(store.images)) == ((0, 0, 0, 0), 6, 12)
        assert report.held is not None
        assert report.held.folders == ("drive",)
    (picture_folder / "drive").rmdir()
    (tmp_path / "drive").rename(picture_folder / "drive")
    report = sync()
    assert (counts(report), report.num_kept, report.held) == ((0, 0, 0, 0), 0, None)  # nothing is embedded again
    assert_true(store, encoder, picture_folder)
    shutil.rmtree(picture_folder / "drive")
    assert counts(sync(is_removal_allowed=True)) == (0, 0, 0, 6)
    assert_true(store, encoder, picture_folder)


def test_sync_collection_goes_on_with_what_is_new_while_a_removal_is_held(
    sync: Sync, store: MemoryStore, picture_folder: Path
) -> None:
    sync()
    for number in range(3):  # a quarter of the index, in no folder
        (picture_folder / f"{number:02}.png").unlink()
    Image.new("RGB", (40, 30), "red").save(picture_folder / "new.png")
    report = sync()
    assert (counts(report), report.num_kept, len(store.images)) == ((1, 0, 0, 0), 3, 13)
    assert report.held is not None
    assert report.held.describe() == "3 of 13 images of the index have vanished from the collection"


def test_sync_collection_follows_a_person_who_deletes_a_little(
    sync: Sync, store: MemoryStore, picture_folder: Path
) -> None:
    sync()
    for number in range(2):
        (picture_folder / f"{number:02}.png").unlink()
    assert counts(sync()) == (0, 0, 0, 2)


def test_sync_collection_takes_a_renamed_top_folder_for_no_removal(
    sync: Sync, store: MemoryStore, encoder: Encoder, picture_folder: Path
) -> None:
    spread(picture_folder, before=range(8))
    sync()
    (picture_folder / "before").rename(picture_folder / "after")
    report = sync()
    assert (counts(report), report.held) == ((0, 8, 0, 8), None)
    assert_true(store, encoder, picture_folder)


@pytest.mark.parametrize("depth", ["photos", "photos/2019"])
def test_sync_collection_keeps_what_is_behind_a_link_to_nowhere(
    depth: str, sync: Sync, store: MemoryStore, encoder: Encoder, picture_folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "drive").mkdir()
    (picture_folder / "00.png").rename(tmp_path / "drive" / "00.png")
    link = picture_folder / depth / "link"
    link.parent.mkdir(parents=True)
    shutil.copy(picture_folder / "01.png", picture_folder / "photos" / "copy.png")
    link.symlink_to(tmp_path / "drive")
    sync()
    (tmp_path / "drive").rename(tmp_path / "off")
    report = sync()
    assert (counts(report), report.num_kept, report.held) == ((0, 0, 0, 0), 1, None)
    assert report.unreachable == (f"{depth}/link",)
    (tmp_path / "off").rename(tmp_path / "drive")
    assert counts(sync()) == (0, 0, 0, 0)
    assert f"{depth}/link/00.png" in store.images


def test_sync_collection_keeps_pictures_that_are_links_to_a_drive_that_is_off(
    sync: Sync, store: MemoryStore, picture_folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "drive").mkdir()
    for number in range(6):
        name = f"{number:02}.png"
        (picture_folder / name).rename(tmp_path / "drive" / name)
        (picture_folder / name).symlink_to(tmp_path / "drive" / name)
    sync()
    (tmp_path / "drive").rename(tmp_path / "off")
    for max_bad_fraction in (0.05, 1.0):
        report = sync(max_bad_fraction=max_bad_fraction)
        assert (counts(report), report.num_kept, len(store.images)) == ((0, 0, 0, 0), 6, 12)
        assert dict(report.failures).keys() == {f"{number:02}.png" for number in range(6)}
    (tmp_path / "off").rename(tmp_path / "drive")
    assert counts(sync()) == (0, 0, 0, 0)


def test_sync_collection_keeps_a_picture_of_which_the_system_tells_nothing(
    sync: Sync, store: MemoryStore, picture_folder: Path
) -> None:
    sync()
    good = (picture_folder / "03.png").read_bytes()
    (picture_folder / "03.png").unlink()
    (picture_folder / "03.png").symlink_to("03.png")  # asked for, it is an error, and not that there is no such file
    report = sync(max_bad_fraction=1.0)
    assert (counts(report), "03.png" in store.images) == ((0, 0, 0, 0), True)
    assert "symbolic links" in dict(report.failures)["03.png"]
    (picture_folder / "03.png").unlink()
    (picture_folder / "03.png").write_bytes(good)
    assert counts(sync()) == (0, 0, 0, 0)


def test_find_mass_removal_counts_shares_and_folders() -> None:
    indexed = [f"a/{number}" for number in range(50)] + [f"b/{number}" for number in range(49)] + ["c"]
    assert find_mass_removal([], indexed, indexed) is None
    assert find_mass_removal(["c"], indexed, indexed[:99]) is None
    assert find_mass_removal(indexed[:9], indexed, indexed[9:]) is None
    assert find_mass_removal(indexed[:10], indexed, indexed[10:]) is not None
    removal = find_mass_removal(["d/1"], [*indexed, "d/1"], indexed)
    assert removal is not None
    assert removal.folders == ("d",)
    assert removal.describe().endswith("have vanished from the collection, among them all of the folder d")


@pytest.mark.parametrize("is_checksum", [True, False])
@pytest.mark.parametrize("failure", ["gone", "unreadable"])
def test_trap_a_drive_that_vanishes_while_it_is_read_costs_nothing_when_it_is_back(
    failure: str,
    is_checksum: bool,
    sync: Sync,
    store: MemoryStore,
    encoder: Encoder,
    picture_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    spread(picture_folder, drive=range(8))
    sync()
    if not is_checksum:
        for path in (picture_folder / "drive").iterdir():
            os.utime(path, ns=(1, 1))  # their times make the next sync read them
    read = decode.read_open_file
    num_read = 0

    def vanish(file: BinaryIO) -> bytes:
        nonlocal num_read
        num_read += 1
        if num_read == 2 and failure == "gone":
            (picture_folder / "drive").rename(tmp_path / "drive")
        if num_read >= 2 and failure == "unreadable":
            raise DecodeError("the file cannot be read: Input/output error") from OSError(errno.EIO, "I/O error")
        return read(file)

    with monkeypatch.context() as patch:
        patch.setattr("vitrieve.syncing.read.read_open_file", vanish)
        report = sync(is_checksum=is_checksum, max_bad_fraction=1.0, num_threads=1)
    assert len(report.failures) >= 6
    assert (counts(report), len(store.images)) == ((0, 0, 0, 0), 12)
    if failure == "gone":
        (tmp_path / "drive").rename(picture_folder / "drive")
    for _ in range(2):
        assert counts(sync(is_checksum=is_checksum)) == (0, 0, 0, 0)
    assert_true(store, encoder, picture_folder)


def test_sync_reads_no_image_where_no_service_can_have_been_sent_any(
    sync: Sync, store: MemoryStore, picture_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a drive that is off, all images would be read at each sync."""
    sync()
    (picture_folder / "00.png").unlink()
    monkeypatch.setattr(store, "get", None)
    assert counts(sync()) == (0, 0, 0, 1)


def test_sync_does_not_remove_what_a_service_is_sent_under_a_name_that_has_just_vanished(
    sync: Sync, store: MemoryStore, picture_folder: Path, index: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sync()
    (picture_folder / "00.png").unlink()
    pictures = get_pictures_folder(index)
    pictures.mkdir()
    locking = state.locking_writes

    @contextmanager
    def lock_after_a_put(*arguments: Any, **options: Any) -> Iterator[None]:
        vectors, (record,) = store.get(["00.png"])
        store.upsert(vectors, [replace(record, path=pictures / name_picture("00.png", b"sent"))])
        with locking(*arguments, **options):
            yield

    monkeypatch.setattr(state, "locking_writes", lock_after_a_put)
    sync()
    assert store.images["00.png"][1].path.parent == pictures


def test_sync_tells_of_another_writer_only_where_it_waited_for_one(
    sync: Sync, store: MemoryStore, index: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def upsert(*_: object) -> None:
        raise TimeoutError("the store's own")

    with monkeypatch.context() as patched:
        patched.setattr(store, "upsert", upsert)
        with pytest.raises(TimeoutError, match="the store's own"):
            sync()
    monkeypatch.setattr(state, "WRITES_SECONDS", 0.05)
    get_pictures_folder(index).mkdir()
    told = r"another service or sync has not ended its change of the index .* in 0\.05 seconds"
    with locking_writes(index, store, seconds=1), pytest.raises(ArtifactError, match=told):
        sync()
