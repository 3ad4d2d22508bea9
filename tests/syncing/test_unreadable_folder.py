from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.search.memory_store import MemoryStore
from tests.syncing.helpers import Sync, counts
from vitrieve.index.store import StoreInfo
from vitrieve.runtime.encoder import load_encoder
from vitrieve.syncing.scan import find_unreachable, scan_collection
from vitrieve.syncing.state import StateFile, SyncedIndex
from vitrieve.syncing.sync import SyncSettings, sync_collection


def test_sync_keeps_what_lies_in_a_folder_that_cannot_be_read(
    tmp_path: Path, picture_folder: Path, tiny_encoder_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = load_encoder(tiny_encoder_folder, engine="onnx", num_threads=1)
    info = StoreInfo(
        kind="exact",
        fingerprint=encoder.fingerprint,
        encoder_source="tiny",
        image_size=32,
        embedding_dim=encoder.embedding_dim,
    )
    store, index = MemoryStore(info), tmp_path / "index"
    index.mkdir()
    (picture_folder / "locked").mkdir()
    (picture_folder / "00.png").rename(picture_folder / "locked" / "00.png")
    state_file = StateFile(index)
    sync_collection(
        SyncedIndex(store, state_file),
        encoder,
        scan_collection(str(picture_folder), tmp_path / "no index"),
        SyncSettings(),
    )
    assert "locked/00.png" in store.images

    scandir = os.scandir

    def refuse(path: Path) -> object:
        if Path(path).name == "locked":
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    with monkeypatch.context() as patch:
        patch.setattr(os, "scandir", refuse)
        (picture_folder / "01.png").unlink()
        collection = scan_collection(str(picture_folder), tmp_path / "no index")
        report = sync_collection(SyncedIndex(store, state_file), encoder, collection, SyncSettings())
        assert (report.num_removed, report.is_too_bad) == (1, False)
        assert "locked/00.png" in store.images
        assert any("locked: Permission denied" in note for note in collection.notes)
    report = sync_collection(
        SyncedIndex(store, state_file),
        encoder,
        scan_collection(str(picture_folder), tmp_path / "no index"),
        SyncSettings(),
    )
    assert not report.is_changed
    state_file.close()


@pytest.mark.parametrize("number", [errno.ENOTCONN, errno.ESTALE, errno.EIO])
def test_sync_keeps_what_a_mounted_share_held_that_is_away(
    number: int, store: MemoryStore, sync: Sync, picture_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    share = picture_folder / "photographs" / "share"
    share.mkdir(parents=True)
    (picture_folder / "00.png").rename(share / "00.png")
    (picture_folder / "01.png").rename(picture_folder / "photographs" / "01.png")
    sync()

    def be_away(ask: Callable[..., os.stat_result]) -> Callable[..., os.stat_result]:
        def ask_or_fail(path: os.PathLike[str] | str, **settings: object) -> os.stat_result:
            if "share" in Path(path).parts:
                raise OSError(number, os.strerror(number))
            return ask(path, **settings)

        return ask_or_fail

    with monkeypatch.context() as patch:
        for name in ("stat", "lstat"):
            patch.setattr(os, name, be_away(getattr(os, name)))
        (picture_folder / "02.png").unlink()
        report = sync()
    assert (report.num_removed, report.num_kept, report.unreachable) == (1, 1, ("photographs/share",))
    assert "photographs/share/00.png" in store.images
    assert counts(sync()) == (0, 0, 0, 0)


def test_a_folder_whose_name_no_folder_can_have_is_not_away(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert find_unreachable(tmp_path, ["gone/a.png", "file/a.png", "a\0b/a.png", "a" * 300 + "/a.png"]) == {}
