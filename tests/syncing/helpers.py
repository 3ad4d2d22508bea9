"""What the tests of syncing share."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from tests.search.memory_store import MemoryStore
from vitrieve.cli.main import main
from vitrieve.data.decode import read_image
from vitrieve.runtime.encoder import Encoder
from vitrieve.syncing.sync import SyncReport
from vitrieve.syncing.watch import watch_changes

Sync = Callable[..., SyncReport]
WATCHDOG_SECONDS = 600


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


class Watch:
    """A watch in a thread of its own, and what it has printed."""

    def __init__(self, words: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
        self._stop = threading.Event()
        self._capsys, self._printed = capsys, ""
        monkeypatch.setattr("vitrieve.syncing.watch.watch_changes", partial(watch_changes, stop=self._stop))
        for name, value in (("RETRY_SECONDS", 0.1), ("DEBOUNCE_MS", 100), ("QUIET_MS", 20), ("TICK_MS", 50)):
            monkeypatch.setattr(f"vitrieve.syncing.watch.{name}", value)
        self._thread = threading.Thread(target=main, args=([*words, "--watch"],))

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *raised: object) -> None:
        self._stop.set()
        self._thread.join()

    def wait_for(self, text: str) -> str:
        """Wait until a text has been printed; return what was printed up to then since the last call."""
        until = time.monotonic() + WATCHDOG_SECONDS
        while text not in self._printed:
            assert self._thread.is_alive(), self._printed
            assert time.monotonic() < until, self._printed
            self._printed += "".join(self._capsys.readouterr())
            self._stop.wait(0.01)
        before, _, self._printed = self._printed.partition(text)
        return before + text
