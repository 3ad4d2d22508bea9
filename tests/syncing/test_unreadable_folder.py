from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.search.memory_store import MemoryStore
from vitrieve.index.store import StoreInfo
from vitrieve.runtime.encoder import load_encoder
from vitrieve.syncing.scan import scan_collection
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
