from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from vitrieve.config import Config, LoaderConfig
from vitrieve.data.records import ImageRecord
from vitrieve.errors import ArtifactError
from vitrieve.train.settings import SETTINGS_NAME, describe_run, settle

RECORDS = [ImageRecord(image_id=f"{number}", path=Path("unused"), label=number, split="train") for number in range(3)]


def test_settle_writes_and_accepts_the_same_settings_again(tmp_path: Path) -> None:
    settings = describe_run("small", Config(), "zero_shot", RECORDS)
    assert settle(tmp_path, settings) == ""
    assert settle(tmp_path, settings) == ""
    assert json.loads((tmp_path / SETTINGS_NAME).read_text(encoding="utf-8")) == settings


def test_settle_refuses_other_settings_and_names_them(tmp_path: Path) -> None:
    settle(tmp_path, describe_run("small", Config(), "zero_shot", RECORDS))
    other = Config(loader=LoaderConfig(flip=False))
    with pytest.raises(ArtifactError, match=r"\(loader\.flip\)"):
        settle(tmp_path, describe_run("small", other, "zero_shot", RECORDS))


def test_settle_refuses_other_images(tmp_path: Path) -> None:
    settle(tmp_path, describe_run("small", Config(), "zero_shot", RECORDS))
    relabelled = [dataclasses.replace(RECORDS[0], label=9), *RECORDS[1:]]
    for records in (RECORDS[:2], RECORDS[::-1], relabelled):
        with pytest.raises(ArtifactError, match=r"data\.images"):
            settle(tmp_path, describe_run("small", Config(), "zero_shot", records))


def test_settle_warns_about_another_machine(tmp_path: Path) -> None:
    settings = describe_run("small", Config(), "zero_shot", RECORDS)
    settle(tmp_path, {**settings, "machine": {**settings["machine"], "num_threads": 77}})
    assert "machine.num_threads" in settle(tmp_path, settings)


def test_describe_run_tells_other_pairs_of_the_same_images_apart() -> None:
    described = [
        describe_run("small", Config(), "standard", [], pairs)["data"]["images"]
        for pairs in ((), [("a", "b")], [("b", "a")], [("a", "b")])
    ]
    assert described[1] == described[3]
    assert len(set(described)) == 3
