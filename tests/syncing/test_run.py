from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pytest
from PIL import Image

from tests.search.memory_store import MemoryStore
from tests.syncing.helpers import Sync, assert_true, counts
from vitrieve.data.decode import read_image
from vitrieve.errors import ArtifactError, ConfigError, DataError, FingerprintError
from vitrieve.index import store as vector_store
from vitrieve.index.open import require_encoder
from vitrieve.index.store import StoreInfo
from vitrieve.runtime.encoder import Encoder
from vitrieve.syncing import state
from vitrieve.syncing.read import CHANGING_REASON, TEXT_COLUMN
from vitrieve.syncing.scan import CLASH_REASON, Collection, choose_exclude, scan_collection
from vitrieve.syncing.state import STATE_NAME, StateFile, SyncedIndex
from vitrieve.syncing.sync import SyncSettings, sync_collection
from vitrieve.syncing.sync import sync as sync_folder


def test_sync_collection_embeds_everything_once(
    sync: Sync, store: MemoryStore, encoder: Encoder, picture_folder: Path
) -> None:
    assert counts(sync()) == (12, 0, 0, 0)
    assert_true(store, encoder, picture_folder)
    assert counts(report := sync()) == (0, 0, 0, 0)
    assert not report.is_changed
    assert (report.num_images, report.failures) == (12, ())


def test_text_that_could_not_be_read_is_read_at_the_next_sync(
    sync: Sync, store: MemoryStore, picture_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    is_failing = True

    def read(picture: Image.Image) -> str:
        if is_failing and picture.getpixel((0, 0)) == first_pixel:
            raise MemoryError
        return "milk"

    with Image.open(picture_folder / "03.png") as picture:
        first_pixel = picture.getpixel((0, 0))
    monkeypatch.setattr("vitrieve.syncing.sync.PictureReader", lambda: read)

    def list_read() -> set[str]:
        return {name for name, (_, record) in store.images.items() if TEXT_COLUMN in record.metadata}

    assert counts(sync(is_text_read=True)) == (12, 0, 0, 0)
    assert set(store.images) - list_read() == {"03.png"}
    assert not sync().is_changed
    is_failing = False
    assert counts(sync()) == (0, 0, 1, 0)
    assert list_read() == set(store.images)


def test_sync_collection_follows_new_changed_and_vanished(
    sync: Sync, store: MemoryStore, encoder: Encoder, picture_folder: Path
) -> None:
    sync()
    Image.new("RGB", (40, 30), "red").save(picture_folder / "new.png")
    Image.new("RGB", (40, 30), "blue").save(picture_folder / "03.png")
    (picture_folder / "05.png").unlink()
    assert counts(sync()) == (2, 0, 0, 1)
    assert_true(store, encoder, picture_folder)


def test_sync_collection_reuses_the_vector_of_a_moved_or_copied_file(
    sync: Sync, store: MemoryStore, encoder: Encoder, picture_folder: Path
) -> None:
    sync()
    (picture_folder / "deep" / "er").mkdir(parents=True)
    (picture_folder / "00.png").rename(picture_folder / "deep" / "er" / "moved.png")
    shutil.copy(picture_folder / "01.png", picture_folder / "copy.png")
    assert counts(sync()) == (0, 2, 0, 1)
    assert_true(store, encoder, picture_folder)
    assert store.images["deep/er/moved.png"][1].metadata["folder"] == "deep/er"
    assert store.images["copy.png"][1].metadata == store.images["01.png"][1].metadata


def test_sync_takes_batches_larger_than_a_change_may_be(
    encoder: Encoder, class_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (state, vector_store):
        monkeypatch.setattr(module, "MAX_BATCH_ROWS", 8)
    report = sync_folder(class_folder, tmp_path / "index", encoder, settings=SyncSettings(batch_size=20), store="exact")
    assert (report.num_embedded, report.num_indexed, report.failures) == (20, 20, ())
    assert not sync_folder(class_folder, tmp_path / "index", encoder).is_changed


def test_sync_collection_embeds_equal_files_once(
    sync: Sync, store: MemoryStore, encoder: Encoder, picture_folder: Path
) -> None:
    for number in range(1, 12):
        shutil.copy(picture_folder / "00.png", picture_folder / f"{number:02}.png")
    assert counts(sync()) == (1, 11, 0, 0)
    assert_true(store, encoder, picture_folder)


def test_sync_collection_follows_files_that_exchange_names(
    sync: Sync, store: MemoryStore, encoder: Encoder, picture_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sync()
    monkeypatch.setattr("vitrieve.syncing.sync.COMMIT_SIZE", 1)  # so that holders are overwritten before they are asked
    names = sorted(path.name for path in picture_folder.iterdir())
    picture_folder.rename(picture_folder.with_name("before"))
    picture_folder.mkdir()
    for old, new in zip(names, [*names[7:], *names[:7]], strict=True):
        shutil.copy(picture_folder.with_name("before") / old, picture_folder / new)
    report = sync()
    assert report.num_embedded + report.num_reused == 12
    assert_true(store, encoder, picture_folder)


def test_sync_collection_reports_bad_files_and_goes_on(
    sync: Sync, store: MemoryStore, encoder: Encoder, picture_folder: Path
) -> None:
    (picture_folder / "03.png").write_bytes(b"no picture")
    (picture_folder / "04.png").unlink()
    (picture_folder / "04.png").symlink_to("nowhere.png")
    for _ in range(2):  # reported every time, not only when it is read
        report = sync(max_bad_fraction=0.5)
        assert [image_id for image_id, _ in report.failures] == ["03.png", "04.png"]
        assert "no readable picture" in report.failures[0][1]
        assert "No such file" in report.failures[1][1]
        assert len(store.images) == 10
    assert sync(is_bad_retried=False, max_bad_fraction=0.5).failures == report.failures
    Image.new("RGB", (40, 30), "red").save(picture_folder / "03.png")
    (picture_folder / "04.png").unlink()
    assert counts(sync()) == (1, 0, 0, 0)
    assert_true(store, encoder, picture_folder)


def test_sync_collection_removes_what_has_become_unreadable(
    sync: Sync, store: MemoryStore, encoder: Encoder, picture_folder: Path
) -> None:
    sync()
    good = (picture_folder / "03.png").read_bytes()
    (picture_folder / "03.png").write_bytes(b"")
    assert counts(sync(max_bad_fraction=0.1)) == (0, 0, 0, 1)
    assert "03.png" not in store.images
    (picture_folder / "03.png").write_bytes(good)
    assert counts(sync()) == (1, 0, 0, 0)
    assert_true(store, encoder, picture_folder)


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is unreadable for root")
def test_sync_collection_takes_a_file_that_becomes_readable(
    sync: Sync, store: MemoryStore, picture_folder: Path
) -> None:
    (picture_folder / "03.png").chmod(0)
    assert "Permission denied" in sync(max_bad_fraction=0.1).failures[0][1]
    (picture_folder / "03.png").chmod(0o644)
    assert counts(sync(is_bad_retried=False)) == (1, 0, 0, 0)


def test_sync_collection_removes_nothing_when_too_much_is_bad(
    sync: Sync, store: MemoryStore, encoder: Encoder, picture_folder: Path
) -> None:
    sync()
    contents = {path: path.read_bytes() for path in picture_folder.iterdir()}
    for path in contents:
        path.write_bytes(b"")
    report = sync()
    assert report.is_too_bad
    assert (report.num_removed, report.num_kept, len(store.images)) == (0, 12, 12)
    for path, content in contents.items():
        path.write_bytes(content)
    assert not sync().is_too_bad
    assert_true(store, encoder, picture_folder)


def test_sync_collection_sees_a_change_that_keeps_size_and_time(
    sync: Sync, store: MemoryStore, encoder: Encoder, picture_folder: Path
) -> None:
    blue, red = (Image.new("RGB", (40, 30), color) for color in ("blue", "red"))
    path = picture_folder / "03.png"
    blue.save(path, compress_level=0)
    sync()
    before = path.stat()
    red.save(path, compress_level=0)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    assert counts(sync()) == (1, 0, 0, 0)  # by the change time
    assert_true(store, encoder, picture_folder)


def test_sync_collection_with_checksum_trusts_no_times(
    sync: Sync, store: MemoryStore, encoder: Encoder, picture_folder: Path, index: Path
) -> None:
    sync()
    Image.new("RGB", (40, 30), "red").save(picture_folder / "03.png")
    with_times = StateFile(index)  # as on a file system whose times say nothing
    known = {one.image_id: one for one in with_times.read()}
    changed = known["03.png"]
    signature = state.sign_file((picture_folder / "03.png").stat())
    with_times.write(
        [state.FileState(**{**{name: getattr(changed, name) for name in changed.__slots__}, "signature": signature})]
    )
    with_times.close()
    assert counts(sync()) == (0, 0, 0, 0)
    assert counts(sync(is_checksum=True)) == (1, 0, 0, 0)
    assert counts(sync(is_checksum=True)) == (0, 0, 0, 0)
    assert_true(store, encoder, picture_folder)


def test_trap_a_change_within_the_clock_tick_of_the_sync_is_seen(
    sync: Sync, store: MemoryStore, encoder: Encoder, picture_folder: Path, index: Path, coarse_clock: None
) -> None:
    sync()  # the files were written less than two seconds ago
    state_file = StateFile(index)
    assert {one.signature for one in state_file.read()} == {state.NO_SIGNATURE}
    state_file.close()
    assert counts(sync()) == (0, 0, 0, 0)  # read again, not embedded again


def test_sync_collection_leaves_a_file_alone_that_is_being_written(
    sync: Sync, store: MemoryStore, picture_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sync()
    path = picture_folder / "03.png"
    Image.new("RGB", (40, 30), "red").save(path)

    def read_while_written(file: BinaryIO) -> bytes:
        data = file.read()
        if os.path.samestat(os.fstat(file.fileno()), path.stat()):
            path.write_bytes(data + b"more")
        return data

    before = store.images["03.png"]
    with monkeypatch.context() as patch:
        patch.setattr("vitrieve.syncing.read.read_open_file", read_while_written)
        report = sync(max_bad_fraction=0.1)
    assert report.failures == (("03.png", CHANGING_REASON),)
    assert store.images["03.png"] is before
    Image.new("RGB", (40, 30), "red").save(path)
    assert counts(sync()) == (1, 0, 0, 0)


def test_sync_collection_updates_metadata_without_embedding(
    sync: Sync, store: MemoryStore, picture_folder: Path
) -> None:
    table = picture_folder / "table.csv"
    table.write_text("path,label,price\n00.png,pear,1.50\n01.png,apple,2.00\n", encoding="utf-8")
    assert counts(sync(f"table:{table}")) == (2, 0, 0, 0)
    assert store.images["00.png"][1].metadata["label"] == "pear"
    table.write_text("path,label,price\n00.png,pear,1.75\n01.png,apple,2.00\n", encoding="utf-8")
    assert counts(sync(f"table:{table}")) == (0, 0, 1, 0)
    metadata = store.images["00.png"][1].metadata
    assert (metadata["price"], metadata["width_px"], metadata["height_px"]) == ("1.75", "48", "40")


def test_sync_collection_embeds_a_changed_box(
    sync: Sync, store: MemoryStore, encoder: Encoder, picture_folder: Path
) -> None:
    table = picture_folder / "table.csv"
    header = "path,label,x_1,y_1,x_2,y_2\n"
    table.write_text(f"{header}00.png,a,0,0,20,20\n00.png,b,20,20,48,40\n", encoding="utf-8")
    assert counts(sync(f"table:{table}")) == (2, 0, 0, 0)
    table.write_text(f"{header}00.png,a,0,0,20,20\n00.png,b,10,10,48,40\n", encoding="utf-8")
    assert counts(sync(f"table:{table}")) == (1, 0, 0, 1)
    for vector, record in store.images.values():
        np.testing.assert_allclose(vector, encoder.encode([read_image(record)])[0], atol=1e-5)


def test_sync_collection_refuses_to_empty_the_index_unless_told(
    sync: Sync, store: MemoryStore, picture_folder: Path
) -> None:
    sync()
    picture_folder.rename(picture_folder.with_name("away"))
    with pytest.raises(DataError, match="not a folder that exists"):
        sync()
    picture_folder.mkdir()
    with pytest.raises(DataError, match="holds no image"):
        sync()
    assert len(store.images) == 12
    assert counts(sync(is_empty_allowed=True)) == (0, 0, 0, 12)
    picture_folder.rmdir()
    assert counts(sync(is_empty_allowed=True)) == (0, 0, 0, 0)


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is unreadable for root")
def test_sync_collection_takes_an_unreadable_folder_for_no_empty_one(
    sync: Sync, store: MemoryStore, picture_folder: Path
) -> None:
    (picture_folder / "deep").mkdir()
    (picture_folder / "00.png").rename(picture_folder / "deep" / "00.png")
    sync()
    (picture_folder / "deep").chmod(0)
    try:
        assert counts(sync(is_empty_allowed=True)) == (0, 0, 0, 0)
    finally:
        (picture_folder / "deep").chmod(0o755)
    assert len(store.images) == 12


def test_sync_collection_keeps_odd_names_apart(
    sync: Sync, store: MemoryStore, encoder: Encoder, picture_folder: Path
) -> None:
    for number, name in enumerate(("Äpfel 🍎.png", "two\nlines.png", "#1,2,3,4.png", "quote'\".png", " .png")):
        Image.new("RGB", (30, 20), (number, 99, 200)).save(picture_folder / name)
    assert sync().num_embedded == 17
    assert_true(store, encoder, picture_folder)
    assert counts(sync()) == (0, 0, 0, 0)


def test_sync_collection_reports_names_that_are_spelled_alike(
    sync: Sync, store: MemoryStore, picture_folder: Path
) -> None:
    shutil.copy(picture_folder / "00.png", os.fsencode(picture_folder) + b"/\xff.png")
    shutil.copy(picture_folder / "01.png", picture_folder / "\\xff.png")
    report = sync(max_bad_fraction=0.1)
    assert report.failures == (("\\xff.png", CLASH_REASON),)
    assert len(store.images) == 13


def test_sync_collection_follows_links_once(
    sync: Sync, store: MemoryStore, picture_folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "elsewhere").mkdir()
    (picture_folder / "11.png").rename(tmp_path / "elsewhere" / "11.png")
    (picture_folder / "linked").symlink_to(tmp_path / "elsewhere")
    (picture_folder / "circle").symlink_to(picture_folder)
    (picture_folder / "link.png").symlink_to("00.png")
    assert counts(sync()) == (12, 1, 0, 0)
    assert {"linked/11.png", "link.png"} < set(store.images)
    Image.new("RGB", (30, 20)).save(tmp_path / "elsewhere" / "11.png")  # the file behind the link counts
    assert counts(sync()) == (1, 0, 0, 0)


def test_scan_collection_leaves_out_what_is_in_the_index(picture_folder: Path) -> None:
    (picture_folder / "index").mkdir()
    shutil.copy(picture_folder / "00.png", picture_folder / "index" / "thumbnail.png")
    assert len(scan_collection(str(picture_folder), picture_folder / "index").records) == 12
    with pytest.raises(DataError, match="no image but those of the index"):
        scan_collection(str(picture_folder), picture_folder)


def test_states_that_cannot_be_opened_are_one_message(index: Path) -> None:
    (index / STATE_NAME).symlink_to(index / "gone" / STATE_NAME)
    with pytest.raises(ArtifactError, match="cannot be written: unable to open"):
        StateFile(index)


def test_sync_collection_of_nothing_changes_nothing(store: MemoryStore, encoder: Encoder, index: Path) -> None:
    state_file = StateFile(index)
    report = sync_collection(SyncedIndex(store, state_file), encoder, Collection(records={}))
    state_file.close()
    assert (counts(report), report.is_too_bad) == ((0, 0, 0, 0), False)


def test_require_encoder_refuses_another_and_says_what_to_do(
    store: MemoryStore, encoder: Encoder, tmp_path: Path
) -> None:
    require_encoder(store.info, encoder, advice="Take its own.")
    other = StoreInfo(
        kind="exact", fingerprint="another", encoder_source="other", image_size=32, embedding_dim=encoder.embedding_dim
    )
    with pytest.raises(FingerprintError, match=r"not comparable\. Take its own\."):
        require_encoder(other, encoder, advice="Take its own.")


@pytest.mark.parametrize(
    ("name", "value"), [("batch_size", 0), ("num_threads", 0), ("max_bad_fraction", 1.5), ("max_bad_fraction", -0.1)]
)
def test_sync_settings_refuse_what_is_out_of_range(name: str, value: float) -> None:
    with pytest.raises(ConfigError, match=name):
        SyncSettings(**{name: value})


def test_one_pattern_of_what_is_left_out_may_be_given_as_a_text(index: Path, picture_folder: Path) -> None:
    source = str(picture_folder)
    for given in ("0*.png", ["0*.png"]):
        assert choose_exclude(source, index, given) == (("0*.png",), None)
        collection = scan_collection(source, index, exclude=given)
        assert (collection.exclude, sorted(collection.records)) == (("0*.png",), ["10.png", "11.png"])
    state_file = StateFile(index)
    state_file.write_exclude(["0*.png"])
    state_file.close()
    for given in ("", [""]):
        chosen, note = choose_exclude(source, index, given)
        assert (chosen, note) == ((), "left out from now on: nothing; before it was 0*.png.")
