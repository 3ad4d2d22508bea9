"""What an index remembers, while another process writes it."""

from __future__ import annotations

from pathlib import Path

import pytest

from vitrieve.errors import ArtifactError
from vitrieve.search.remembered import KeptRemembered
from vitrieve.search.threshold import THRESHOLD_NAME, Threshold, load_threshold, save_threshold

OLD, NEW = (
    Threshold(score=score, fingerprint="f", method="m", false_reject_rate=0.1, num_known=3) for score in (0.25, 0.5)
)


def test_a_file_that_is_written_while_it_is_read_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / THRESHOLD_NAME).write_text("{")
    reads = []

    def read_and_write(folder: Path) -> Threshold | None:
        reads.append(folder)
        try:
            return load_threshold(folder)
        finally:
            if len(reads) == 1:
                save_threshold(NEW, folder)

    monkeypatch.setattr("vitrieve.search.remembered.load_threshold", read_and_write)
    assert KeptRemembered(tmp_path).held.threshold == NEW
    assert len(reads) == 2


def test_what_is_written_after_it_was_read_counts_the_next_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_threshold(OLD, tmp_path)

    def read_and_write(folder: Path) -> Threshold | None:
        threshold = load_threshold(folder)
        save_threshold(NEW, folder)
        return threshold

    with monkeypatch.context() as patch:
        patch.setattr("vitrieve.search.remembered.load_threshold", read_and_write)
        remembered = KeptRemembered(tmp_path)
    assert remembered.held.threshold == OLD
    assert remembered.find("f").threshold == NEW
    assert remembered.find("another").threshold is None


def test_a_damaged_file_that_nobody_writes_is_refused(tmp_path: Path) -> None:
    save_threshold(OLD, tmp_path)
    remembered = KeptRemembered(tmp_path)
    (tmp_path / THRESHOLD_NAME).write_text("{")
    with pytest.raises(ArtifactError, match=THRESHOLD_NAME):
        remembered.find("f")
