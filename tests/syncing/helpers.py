"""What the tests of syncing share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from tests.search.memory_store import MemoryStore
from vitrieve.data.decode import read_image
from vitrieve.runtime.encoder import Encoder
from vitrieve.syncing.sync import SyncReport

Sync = Callable[..., SyncReport]


def assert_true(store: MemoryStore, encoder: Encoder, folder: Path) -> None:
    """Check the whole index against the folder, by embedding every picture again, one by one."""
    expected = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*.png")}
    assert set(store.images) == set(expected)
    for image_id, path in expected.items():
        vector, record = store.images[image_id]
        np.testing.assert_allclose(vector, encoder.encode([read_image(record)])[0], atol=1e-5)
        assert record.path == path


def counts(report: SyncReport) -> tuple[int, int, int, int]:
    return report.num_embedded, report.num_reused, report.num_described, report.num_removed
