from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from vitrieve.config import Config, LoaderConfig
from vitrieve.data.records import ImageRecord
from vitrieve.errors import ArtifactError
from vitrieve.training.settings import SETTINGS_NAME, describe_run, settle

RECORDS = [ImageRecord(image_id=f"{number}", path=Path("unused"), label=number, split="train") for number in range(3)]


def test_settle_writes_and_accepts_the_same_settings_again(tmp_path: Path) -> None:
    settings = describe_run("small", Config(), "zero_shot", RECORDS)
    assert settle(tmp_path, settings) == []
    assert settle(tmp_path, settings) == []
    assert json.loads((tmp_path / SETTINGS_NAME).read_text(encoding="utf-8")) == settings


def test_settle_refuses_other_settings_and_names_them(tmp_path: Path) -> None:
    settle(tmp_path, describe_run("small", Config(), "zero_shot", RECORDS))
    other = Config(loader=LoaderConfig(flip=False))
    with pytest.raises(ArtifactError, match=r"other settings: loader\.flip was true and is false\. Resume with"):
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
    (note,) = settle(tmp_path, settings)
    assert "another machine.num_threads: the result may differ in the last bits" in note


def test_describe_run_tells_other_pairs_of_the_same_images_apart() -> None:
    described = [
        describe_run("small", Config(), "standard", [], pairs)["data"]["images"]
        for pairs in ((), [("a", "b")], [("b", "a")], [("a", "b")])
    ]
    assert described[1] == described[3]
    assert len(set(described)) == 3


def with_train(**changes: object) -> Config:
    return Config(train=dataclasses.replace(Config().train, **changes))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (with_train(memory_limit_gib=4.0), "train.memory_limit_gib was none and is 4.0"),
        (with_train(checkpoint_every=3), "train.checkpoint_every was 25 and is 3"),
        (with_train(max_bad_fraction=0.5), "train.max_bad_fraction was 0.05 and is 0.5"),
        (with_train(device="cpu"), "train.device was auto and is cpu"),
        (with_train(compile=True), "train.compile was none and is true"),
        (Config(loader=LoaderConfig(cache_bytes=5)), "loader.cache_bytes was 2147483648 and is 5"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_settle_accepts_settings_that_cannot_change_the_mathematics(tmp_path: Path, config: Config, said: str) -> None:
    settle(tmp_path, describe_run("small", Config(), "zero_shot", RECORDS))
    changed = describe_run("small", config, "zero_shot", RECORDS)
    assert settle(tmp_path, changed) == [f"accepted, as no step depends on it: {said}"]
    assert settle(tmp_path, changed) == []  # what was accepted is what the run has now


def test_settle_names_all_that_differs_with_its_values(tmp_path: Path) -> None:
    settle(tmp_path, describe_run("small", Config(), "zero_shot", RECORDS))
    config = with_train(num_steps=7, batch_size=8, memory_limit_gib=1.0)
    with pytest.raises(
        ArtifactError, match=r"train.batch_size was 64 and is 8; train.num_steps was 100 and is 7\. "
    ) as told:
        settle(tmp_path, describe_run("irt_l", config, "zero_shot", RECORDS))
    assert "recipe was small and is irt_l" in str(told.value)
    assert "memory_limit_gib" not in str(told.value)


DIGESTS = {record.image_id: bytes([number]) * 32 for number, record in enumerate(RECORDS)}


def move(records: list[ImageRecord]) -> tuple[list[ImageRecord], dict[str, bytes]]:
    moved = [dataclasses.replace(record, image_id=f"/new/{record.image_id}") for record in records]
    return moved, {f"/new/{image_id}": digest for image_id, digest in DIGESTS.items()}


def test_settle_recognizes_images_that_were_moved_by_their_content(tmp_path: Path) -> None:
    settle(tmp_path, describe_run("small", Config(), "own_classes", RECORDS, digests=DIGESTS))
    moved, digests = move(RECORDS)
    (note,) = settle(tmp_path, describe_run("small", Config(), "own_classes", moved, digests=digests))
    assert note == "the images have other names than when the run was begun, but the same content"


def test_settle_refuses_other_content_under_the_same_names(tmp_path: Path) -> None:
    settle(tmp_path, describe_run("small", Config(), "own_classes", RECORDS, digests=DIGESTS))
    edited = {**DIGESTS, "1": bytes(32)}
    with pytest.raises(ArtifactError, match=r"data\.content was \w{8}… and is \w{8}…\. "):
        settle(tmp_path, describe_run("small", Config(), "own_classes", RECORDS, digests=edited))
    moved, digests = move(RECORDS[::-1])
    with pytest.raises(ArtifactError, match=r"data\.images"):
        settle(tmp_path, describe_run("small", Config(), "own_classes", moved, digests=digests))


def test_settle_goes_on_with_a_run_of_a_version_that_knew_no_content(tmp_path: Path) -> None:
    settle(tmp_path, describe_run("small", Config(), "own_classes", RECORDS))
    assert settle(tmp_path, describe_run("small", Config(), "own_classes", RECORDS, digests=DIGESTS)) == []
    moved, digests = move(RECORDS)
    with pytest.raises(ArtifactError, match=r"data\.content|data\.images"):
        settle(tmp_path, describe_run("small", Config(), "own_classes", moved[:2], digests=digests))


@pytest.mark.parametrize("content", [b"", b'{"recipe": ', b"[1]", b"\xff\xfe"])
def test_settle_says_what_is_lost_with_a_damaged_file(tmp_path: Path, content: bytes) -> None:
    (tmp_path / SETTINGS_NAME).write_bytes(content)
    with pytest.raises(ArtifactError, match=r"config\.json is damaged .* the steps so far are lost then"):
        settle(tmp_path, describe_run("small", Config(), "zero_shot", RECORDS))
    assert (tmp_path / SETTINGS_NAME).read_bytes() == content
