from __future__ import annotations

from pathlib import Path

import pytest

from tests.search.memory_store import MemoryStore
from tests.syncing.helpers import Sync
from vitrieve.index.store import StoreInfo
from vitrieve.runtime.encoder import Encoder, load_encoder
from vitrieve.syncing import state
from vitrieve.syncing.scan import scan_collection
from vitrieve.syncing.state import StateFile, SyncedIndex
from vitrieve.syncing.sync import SyncReport, SyncSettings, sync_collection


@pytest.fixture(scope="module")
def encoder(tiny_encoder_folder: Path) -> Encoder:
    return load_encoder(tiny_encoder_folder, engine="onnx", num_threads=1)


@pytest.fixture
def store(encoder: Encoder) -> MemoryStore:
    return MemoryStore(
        StoreInfo(
            kind="exact",
            fingerprint=encoder.fingerprint,
            encoder_source="tiny",
            image_size=32,
            embedding_dim=encoder.embedding_dim,
        )
    )


@pytest.fixture
def index(tmp_path: Path) -> Path:
    (tmp_path / "index").mkdir()
    return tmp_path / "index"


@pytest.fixture
def sync(encoder: Encoder, store: MemoryStore, index: Path, picture_folder: Path) -> Sync:
    """Sync the folder of pictures, or another source, as a process of its own would."""

    def run(source: Path | str = picture_folder, *, is_empty_allowed: bool = False, **settings: object) -> SyncReport:
        collection = scan_collection(str(source), index, is_empty_allowed=is_empty_allowed)
        state_file = StateFile(index)
        try:
            return sync_collection(
                SyncedIndex(store, state_file), encoder, collection, SyncSettings(batch_size=5, **settings)
            )
        finally:
            state_file.close()

    return run


@pytest.fixture(autouse=True)
def _patient_clock(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """Let the file system of the tests have a fine clock, where a test is not about a coarse one."""
    if "coarse_clock" not in request.fixturenames:
        monkeypatch.setattr(state, "CLOCK_TICK_NS", -10_000_000_000)


@pytest.fixture
def coarse_clock() -> None:
    """Leave the clock of the file system as it is taken to be."""
