from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from vitrieve.config import Config, LoaderConfig, ModelConfig
from vitrieve.data.records import ImageRecord
from vitrieve.errors import ArtifactError
from vitrieve.model.encoder import ImageEncoder, build_encoder
from vitrieve.recipes import find_recipe
from vitrieve.settings import config_from_json, override_config
from vitrieve.training.identity import IS, IS_NOT, SETTINGS_NAME, Relation, describe_run, require_same_run
from vitrieve.training.state import STATE_NAME

FLAT = Path(__file__).with_name("flat_config.json")
"""``config.json`` of a run of the version in which the settings of all losses shared one table."""
RECORDS = [ImageRecord(image_id=f"{number}", path=Path("unused"), label=number, split="train") for number in range(3)]


def test_require_same_run_writes_and_accepts_the_same_settings_again(tmp_path: Path) -> None:
    settings = describe_run("small", Config(), "zero_shot", RECORDS)
    assert require_same_run(tmp_path, settings) == []
    assert require_same_run(tmp_path, settings) == []
    assert json.loads((tmp_path / SETTINGS_NAME).read_text(encoding="utf-8")) == settings


def test_require_same_run_refuses_other_settings_and_names_them(tmp_path: Path) -> None:
    require_same_run(tmp_path, describe_run("small", Config(), "zero_shot", RECORDS))
    other = Config(loader=LoaderConfig(flip=False))
    with pytest.raises(ArtifactError, match=r"other settings: loader\.flip was true and is false\. Resume with"):
        require_same_run(tmp_path, describe_run("small", other, "zero_shot", RECORDS))


def test_require_same_run_refuses_other_images(tmp_path: Path) -> None:
    require_same_run(tmp_path, describe_run("small", Config(), "zero_shot", RECORDS))
    relabeled = [dataclasses.replace(RECORDS[0], label=9), *RECORDS[1:]]
    for records in (RECORDS[:2], RECORDS[::-1], relabeled):
        with pytest.raises(ArtifactError, match=r"data\.images"):
            require_same_run(tmp_path, describe_run("small", Config(), "zero_shot", records))


def test_require_same_run_warns_about_another_machine(tmp_path: Path) -> None:
    settings = describe_run("small", Config(), "zero_shot", RECORDS)
    require_same_run(tmp_path, {**settings, "machine": {**settings["machine"], "num_threads": 77}})
    (note,) = require_same_run(tmp_path, settings)
    assert "another machine.num_threads: the result may differ in the last bits" in note


def build_config_of_flat() -> Config:
    changes = {
        **{"contrastive.margin": 0.4, "contrastive.mean_nonzero": True, "memory_momentum": 0.9},
        **{"multi_similarity.weight": 0.2, "multi_similarity.beta": 20.0},
        **{"tuple_contrastive.margin": 0.7, "scalable_nca.momentum": 0.25, "num_threads": 1, "precision": "fp32"},
    }
    return override_config(find_recipe("irt_r")(), changes)


def test_require_same_run_goes_on_with_a_run_of_the_time_of_one_table_of_losses(tmp_path: Path) -> None:
    shutil.copy(FLAT, tmp_path / SETTINGS_NAME)
    config = build_config_of_flat()
    changed = override_config(config, {"koleo.weight": 0.5})
    with pytest.raises(ArtifactError, match=r"settings: objective\.koleo\.weight was 0\.7 and is 0\.5\. Resume"):
        require_same_run(tmp_path, describe_run("irt_r", changed, "zero_shot", RECORDS))
    assert require_same_run(tmp_path, describe_run("irt_r", config, "zero_shot", RECORDS)) == []
    written = json.loads((tmp_path / SETTINGS_NAME).read_text(encoding="utf-8"))
    assert written["objective"]["koleo"] == {"weight": 0.7}


def test_the_settings_of_such_a_run_load() -> None:
    saved = json.loads(FLAT.read_text(encoding="utf-8"))
    stages = {field.name: saved[field.name] for field in dataclasses.fields(Config)}
    assert config_from_json(Config, stages) == build_config_of_flat()


def test_require_same_run_takes_a_loss_that_a_later_version_brought_as_off(tmp_path: Path) -> None:
    settings = describe_run("small", Config(), "zero_shot", RECORDS)
    before = {name: value for name, value in settings["objective"].items() if name != "koleo"}
    require_same_run(tmp_path, {**settings, "objective": before})
    config = override_config(Config(), {"koleo.weight": 0.3})
    with pytest.raises(ArtifactError, match=r"objective\.koleo\.weight was 0\.0 and is 0\.3"):
        require_same_run(tmp_path, describe_run("small", config, "zero_shot", RECORDS))
    assert require_same_run(tmp_path, settings) == []


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
def test_require_same_run_accepts_ways_to_compute(tmp_path: Path, config: Config, said: str) -> None:
    require_same_run(tmp_path, describe_run("small", Config(), "zero_shot", RECORDS))
    changed = describe_run("small", config, "zero_shot", RECORDS)
    assert require_same_run(tmp_path, changed) == [f"accepted, as no step depends on it: {said}"]
    assert require_same_run(tmp_path, changed) == []  # what was accepted is what the run has now


def test_require_same_run_names_all_that_differs_with_its_values(tmp_path: Path) -> None:
    require_same_run(tmp_path, describe_run("small", Config(), "zero_shot", RECORDS))
    config = with_train(num_steps=7, batch_size=8, memory_limit_gib=1.0)
    with pytest.raises(
        ArtifactError, match=r"train.batch_size was 64 and is 8; train.num_steps was 100 and is 7\. "
    ) as told:
        require_same_run(tmp_path, describe_run("irt_l", config, "zero_shot", RECORDS))
    assert "recipe was small and is irt_l" in str(told.value)
    assert "memory_limit_gib" not in str(told.value)


DIGESTS = {record.image_id: bytes([number]) * 32 for number, record in enumerate(RECORDS)}


def move(records: list[ImageRecord]) -> tuple[list[ImageRecord], dict[str, bytes]]:
    moved = [dataclasses.replace(record, image_id=f"/new/{record.image_id}") for record in records]
    return moved, {f"/new/{image_id}": digest for image_id, digest in DIGESTS.items()}


def test_require_same_run_recognizes_images_that_were_moved_by_their_content(tmp_path: Path) -> None:
    require_same_run(tmp_path, describe_run("small", Config(), "own_classes", RECORDS, digests=DIGESTS))
    moved, digests = move(RECORDS)
    (note,) = require_same_run(tmp_path, describe_run("small", Config(), "own_classes", moved, digests=digests))
    assert note == "the images have other names than when the run was begun, but the same content"


def test_require_same_run_refuses_other_content_under_the_same_names(tmp_path: Path) -> None:
    require_same_run(tmp_path, describe_run("small", Config(), "own_classes", RECORDS, digests=DIGESTS))
    edited = {**DIGESTS, "1": bytes(32)}
    with pytest.raises(ArtifactError, match=r"data\.content was \w{8}… and is \w{8}…\. "):
        require_same_run(tmp_path, describe_run("small", Config(), "own_classes", RECORDS, digests=edited))
    moved, digests = move(RECORDS[::-1])
    with pytest.raises(ArtifactError, match=r"data\.images"):
        require_same_run(tmp_path, describe_run("small", Config(), "own_classes", moved, digests=digests))


def test_require_same_run_goes_on_with_a_run_of_a_version_that_knew_no_content(tmp_path: Path) -> None:
    require_same_run(tmp_path, describe_run("small", Config(), "own_classes", RECORDS))
    assert require_same_run(tmp_path, describe_run("small", Config(), "own_classes", RECORDS, digests=DIGESTS)) == []
    moved, digests = move(RECORDS)
    with pytest.raises(ArtifactError, match=r"data\.content|data\.images"):
        require_same_run(tmp_path, describe_run("small", Config(), "own_classes", moved[:2], digests=digests))


@pytest.mark.parametrize("content", [b"", b'{"recipe": ', b"[1]", b"\xff\xfe"])
def test_require_same_run_says_what_is_lost_with_a_damaged_file(tmp_path: Path, content: bytes) -> None:
    (tmp_path / SETTINGS_NAME).write_bytes(content)
    with pytest.raises(ArtifactError, match=r"config\.json is damaged .* the steps so far are lost then"):
        require_same_run(tmp_path, describe_run("small", Config(), "zero_shot", RECORDS))
    assert (tmp_path / SETTINGS_NAME).read_bytes() == content


def test_require_same_run_refuses_a_run_whose_settings_are_missing(tmp_path: Path) -> None:
    settings = describe_run("small", Config(), "zero_shot", RECORDS)
    (tmp_path / STATE_NAME).mkdir()
    assert require_same_run(tmp_path, settings) == []  # killed before its first state, so nothing is lost
    (tmp_path / SETTINGS_NAME).unlink()
    (tmp_path / STATE_NAME / "step_0000025.safetensors").touch()
    with pytest.raises(ArtifactError, match=r"config\.json is missing, but .* holds a training state; .* --overwrite"):
        require_same_run(tmp_path, settings)
    assert not (tmp_path / SETTINGS_NAME).exists()


def test_require_same_run_accepts_another_recipe_with_equal_settings(tmp_path: Path) -> None:
    require_same_run(tmp_path, describe_run("small", Config(), "zero_shot", RECORDS))
    (note,) = require_same_run(tmp_path, describe_run("irt_r", Config(), "zero_shot", RECORDS))
    assert note == "begun with the recipe small; the settings of irt_r are equal"
    require_same_run(tmp_path, describe_run("small", with_train(checkpoint_every=2), "zero_shot", RECORDS))
    with pytest.raises(ArtifactError, match=r"recipe was small and is irt_r; train\.num_steps was 100 and is 7"):
        require_same_run(tmp_path, describe_run("irt_r", with_train(num_steps=7), "zero_shot", RECORDS))


def build_tiny(backbone: str) -> ImageEncoder:
    model = ModelConfig(backbone=backbone, image_size=32, drop_path_rate=0.0)
    return build_encoder(model, is_pretrained=False, seed=0)


def test_require_same_run_accepts_another_micro_batch_unless_batch_norm_trains(tmp_path: Path) -> None:
    smaller = {"microbatch_size": 8, "memory_limit_gib": 4.0}
    listed = "train.memory_limit_gib was none and is 4.0; train.microbatch_size was 32 and is 8"
    for name, encoder, is_frozen in (
        ("transformer", build_tiny("test_vit"), False),
        ("frozen", build_tiny("test_resnet"), True),
    ):
        run = tmp_path / name
        run.mkdir()
        before, now = (with_train(freeze_batch_norm=is_frozen, **changes) for changes in ({}, smaller))
        require_same_run(run, describe_run("small", before, "zero_shot", RECORDS), encoder=encoder)
        notes = require_same_run(run, describe_run("small", now, "zero_shot", RECORDS), encoder=encoder)
        assert notes == [f"accepted, as no step depends on it: {listed}"]
    encoder = build_tiny("test_resnet")
    require_same_run(tmp_path, describe_run("small", Config(), "zero_shot", RECORDS), encoder=encoder)
    with pytest.raises(ArtifactError, match=r"other settings: train.microbatch_size was 32 and is 8\. "):
        require_same_run(tmp_path, describe_run("small", with_train(**smaller), "zero_shot", RECORDS), encoder=encoder)
    limited = describe_run("small", with_train(memory_limit_gib=4.0), "zero_shot", RECORDS)
    assert "batch norm trains on micro-batches" in require_same_run(tmp_path, limited, encoder=encoder)[1]


def test_require_same_run_recognizes_moved_images_with_listed_pairs_and_refuses_other_pairs(tmp_path: Path) -> None:
    """A pair with an image that does not train is of no account."""
    require_same_run(
        tmp_path, describe_run("small", Config(), "own_classes", RECORDS, [("0", "2"), ("gone", "1")], digests=DIGESTS)
    )
    moved, digests = move(RECORDS)
    pairs = [("/new/0", "/new/2"), ("/elsewhere/gone", "/new/1")]
    (note,) = require_same_run(tmp_path, describe_run("small", Config(), "own_classes", moved, pairs, digests=digests))
    assert note == "the images have other names than when the run was begun, but the same content"
    for others in ([], [("/new/2", "/new/0")], [("/new/0", "/new/1")]):
        with pytest.raises(ArtifactError, match=r"data\.content"):
            require_same_run(tmp_path, describe_run("small", Config(), "own_classes", moved, others, digests=digests))


def test_trap_a_run_does_not_go_on_with_other_corrections_of_the_same_images(tmp_path: Path) -> None:
    """Pairs of feedback change neither an image nor its label."""

    def describe(records: list[ImageRecord], relations: list[Relation], digests: Mapping[str, bytes]) -> dict[str, Any]:
        return describe_run("small", Config(), "own_classes", records, relations, digests)

    require_same_run(tmp_path, describe(RECORDS, [("0", IS, "7"), ("1", IS_NOT, "2"), ("gone", IS, "7")], DIGESTS))
    moved, digests = move(RECORDS)
    same = [("/new/0", IS, "7"), ("/new/1", IS_NOT, "/new/2"), ("/new/1", IS_NOT, "/elsewhere/gone")]
    (note,) = require_same_run(tmp_path, describe(moved, same, digests))
    assert note == "the images have other names than when the run was begun, but the same content"
    for others in ([], same[:1], [("/new/0", IS, "8"), same[1]], [same[0], ("/new/0", IS_NOT, "/new/2")]):
        with pytest.raises(ArtifactError, match=r"data\.relations"):
            require_same_run(tmp_path, describe(moved, others, digests))


def test_require_same_run_goes_on_with_a_run_of_a_version_whose_content_had_no_relations(tmp_path: Path) -> None:
    relations: list[Relation] = [("0", "2"), ("0", IS, "7"), ("1", IS_NOT, "2"), ("gone", IS, "7")]

    def describe(records: list[ImageRecord], relations: list[Relation], digests: Mapping[str, bytes]) -> dict[str, Any]:
        return describe_run("small", Config(), "own_classes", records, relations, digests)

    now = describe(RECORDS, relations, DIGESTS)
    before = {  # what that version wrote
        "protocol": "own_classes",
        "num_images": 3,
        "images": "b06433d643efd68f9bb1d5ebbe508bd92db21a0a71cf048e4bede5794b94d4f3",
        "sources": now["data"].get("sources"),
        "content": "6b06d6428393b2a11a9740bf3aa0a54769272459e8a448026b273b4e23893cff",
    }
    text = json.dumps({**now, "data": before})

    def resume(described: dict[str, Any]) -> list[str]:
        (tmp_path / SETTINGS_NAME).write_text(text, encoding="utf-8")
        return require_same_run(tmp_path, described)

    assert resume(now) == []
    assert json.loads((tmp_path / SETTINGS_NAME).read_text(encoding="utf-8")) == now
    with pytest.raises(ArtifactError, match=r"data\.relations"):  # nobody can say what they were
        resume(describe(RECORDS, relations[:2], DIGESTS))
    moved, digests = move(RECORDS)
    (note,) = resume(describe(moved, [("/new/0", "/new/2")], digests))
    assert note == "the images have other names than when the run was begun, but the same content"


def test_require_same_run_counts_images_that_are_gone(tmp_path: Path) -> None:
    require_same_run(tmp_path, describe_run("small", Config(), "own_classes", RECORDS, digests=DIGESTS))
    with pytest.raises(ArtifactError, match=r"data\.num_images was 3 and is 2"):
        require_same_run(tmp_path, describe_run("small", Config(), "own_classes", RECORDS[:2], digests=DIGESTS))
