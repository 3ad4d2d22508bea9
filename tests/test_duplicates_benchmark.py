"""The script that plants copies: what it counts, which folders it refuses, and that no picture ends it."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest
from PIL import Image

from vitrieve.data.records import ImageRecord

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return import_module("duplicates")


def test_photographs_are_counted_apart_from_drawings(script: ModuleType) -> None:
    originals = [script.Original("a.jpg", None), script.Original("b.JPEG", None), script.Original("c.png", None)]
    planted = {"crop-000000.jpg": "000000.jpg", "text-000002.jpg": "000002.jpg", "flip-000002.jpg": "000002.jpg"}
    drawings = script.list_drawings(originals, planted)
    assert drawings == {"000002.jpg", "text-000002.jpg", "flip-000002.jpg"}
    pairs = [
        ("crop-000000.jpg", "000000.jpg"),
        ("000000.jpg", "000001.jpg"),
        ("000000.jpg", "text-000002.jpg"),
        ("000002.jpg", "text-000002.jpg"),
        ("text-000002.jpg", "000002.jpg"),
    ]
    found = script.measure(pairs, planted, drawings)
    assert (found["num_pairs"], found["precision"], found["recall"]) == (4, 0.5, pytest.approx(2 / 3))
    assert found["photographs"] == {"num_pairs": 2, "precision": 0.5, "num_copies": 1, "recall": 1.0}
    assert found["drawings"] == {"num_pairs": 2, "precision": 0.5, "num_copies": 2, "recall": 0.5}
    assert script.measure([], planted, set())["drawings"]["precision"] is None


def test_a_folder_belongs_to_one_choice_of_settings(script: ModuleType, tmp_path: Path) -> None:
    settings = {"data": "grocery emoji", "copies": "100"}
    script.hold_to_settings(tmp_path / "out", settings)
    script.hold_to_settings(tmp_path / "out", settings)
    with pytest.raises(SystemExit, match="copies 100 instead of 250"):
        script.hold_to_settings(tmp_path / "out", {**settings, "copies": "250"})
    script.hold_to_settings(tmp_path / "out", settings)


def test_a_jpeg_that_cannot_be_read_is_left_out(script: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff no picture")
    Image.effect_noise((500, 420), 80).convert("RGB").save(tmp_path / "good.jpg")
    records = [
        ImageRecord(image_id=name, path=tmp_path / name, label=0, split="train")
        for name in ("broken.jpg", "gone.jpg", "good.jpg")
    ]
    cut = list(script.cut_some(records, 6))
    assert [(record.path.name, record.box is None) for record in cut[:2]] == [("broken.jpg", True), ("gone.jpg", True)]
    assert [record.box for record in cut[2:]] == [
        (0, 0, 250, 210),
        (0, 210, 250, 420),
        (250, 0, 500, 210),
        (250, 210, 500, 420),
    ]
    chosen = script.choose_originals([str(tmp_path)], 4, 0, has_quarters=True, path=tmp_path / "originals.json")
    assert {Path(original.path).name for original in chosen} == {"good.jpg"}
    assert len(chosen) >= 3
