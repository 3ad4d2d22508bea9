from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from vitrieve.data import decode
from vitrieve.data.preprocess import build_preprocessing
from vitrieve.data.records import ImageRecord
from vitrieve.syncing.content import MEMORY_REASON, read_content


@pytest.fixture
def record(tmp_path: Path) -> ImageRecord:
    Image.new("RGB", (20, 10), (200, 0, 0)).save(tmp_path / "a.jpg")
    return ImageRecord(image_id="a.jpg", path=tmp_path / "a.jpg", label=0, split="test")


def test_missing_end_is_noted_and_the_picture_is_used(record: ImageRecord) -> None:
    preprocessing = build_preprocessing(8)
    whole = read_content(record, preprocessing, lambda _: None)
    record.path.write_bytes(record.path.read_bytes()[:-2])
    cut = read_content(record, preprocessing, lambda _: None)
    assert "note" not in whole.stamp.metadata
    assert cut.stamp.metadata["note"] == decode.MISSING_END
    assert cut.stamp.reason is None
    assert whole.square is not None
    assert cut.square is not None
    assert (whole.square == cut.square).all()


def test_shortage_of_memory_is_not_remembered_as_a_bad_picture(
    record: ImageRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run_out(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(decode, "_load", run_out)
    content = read_content(record, build_preprocessing(8), lambda _: None)
    assert content.is_changing
    assert content.stamp.reason == MEMORY_REASON
