"""The teacher of a run: an encoder, or stored embeddings."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.training.test_loop import _one_thread, assert_same_bits, config, final_state, records, run_training
from vitrieve.config import Config, check_config
from vitrieve.data.records import Dataset, ImageRecord
from vitrieve.embed.collection import embed_collection
from vitrieve.embed.embeddings import ROWS_NAME
from vitrieve.errors import ArtifactError, ConfigError
from vitrieve.runtime.encoder import load_encoder
from vitrieve.settings import override_config
from vitrieve.training.distillation import TEACHER_NAME, read_teacher
from vitrieve.training.run import train

__all__ = ["_one_thread", "config", "records"]  # fixtures


def with_teacher(config: Config, teacher: Path) -> Config:
    return override_config(config, {"distillation.weight": 1.0, "distillation.teacher": str(teacher)})


def test_read_teacher_takes_an_encoder_or_stored_embeddings(
    config: Config, records: list[ImageRecord], tiny_encoder_folder: Path, tmp_path: Path
) -> None:
    records = [dataclasses.replace(record, image_id=f"{row}.png") for row, record in enumerate(records)]
    distilled = with_teacher(config, tiny_encoder_folder)
    found = read_teacher(distilled, records, tmp_path)
    assert found is not None
    encoder = load_encoder(tiny_encoder_folder, precision="fp32", num_threads=1)
    expected = encoder.encode([record.path for record in records if record.path is not None])
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-5)
    assert read_teacher(config, records, tmp_path) is None

    (tmp_path / TEACHER_NAME).unlink()
    dataset = Dataset(name="toy", protocol="p", records=tuple(records[::-1]), label_names=())
    embed_collection(encoder, dataset, tmp_path / "embeddings")
    stored = with_teacher(config, tmp_path / "embeddings")
    again = read_teacher(stored, records, tmp_path)
    assert again is not None
    np.testing.assert_allclose(again.numpy(), expected, atol=1e-5)
    unknown = ImageRecord(image_id="unknown.png", path=None, label=0, split="train")
    (tmp_path / TEACHER_NAME).unlink()
    with pytest.raises(ConfigError, match=r"has no vector of 1 of the 21 training images.*unknown.png"):
        read_teacher(stored, [*records, unknown], tmp_path)


def test_stored_embeddings_of_other_pictures_are_told_and_of_other_regions_refused(
    config: Config,
    records: list[ImageRecord],
    tiny_encoder_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    records = [dataclasses.replace(record, image_id=f"{row}.png") for row, record in enumerate(records)]
    other = tmp_path / "other"
    other.mkdir()
    moved = []
    for record in records:
        path = other / record.path.name
        path.write_bytes(records[0].path.read_bytes())
        moved.append(dataclasses.replace(record, path=path))
    encoder = load_encoder(tiny_encoder_folder, precision="fp32", num_threads=1)
    dataset = Dataset(name="toy", protocol="p", records=tuple(moved), label_names=())
    embed_collection(encoder, dataset, tmp_path / "embeddings")
    stored = with_teacher(config, tmp_path / "embeddings")
    read_teacher(stored, records, tmp_path)
    assert "vectors were computed from other files of the same names" in capsys.readouterr().err
    (tmp_path / TEACHER_NAME).unlink()
    cut = [dataclasses.replace(record, box=(0, 0, 8, 8)) for record in records]
    with pytest.raises(ConfigError, match=r"look at different regions of 0\.png"):
        read_teacher(stored, cut, tmp_path)
    apart = [dataclasses.replace(record, image_id=f"toy/{record.image_id}", source="toy") for record in records]
    with pytest.raises(ConfigError, match="embeddings of one source, and several train; name the encoder"):
        read_teacher(stored, apart, tmp_path)


@pytest.mark.parametrize("teacher", ["dinov9-vits14", "runs/missing"])
def test_a_teacher_or_prefix_that_cannot_be_is_refused_before_the_folder_is_made(
    config: Config, class_folder: Path, teacher: str, tmp_path: Path
) -> None:
    settings = {"distillation.weight": 1.0, "distillation.teacher": teacher}
    with pytest.raises(ConfigError, match=r"^objective\.distillation\.teacher: "):
        train(f"folder:{class_folder}", override_config(config, settings), tmp_path / "run")
    long = override_config(config, {"prefixes": (512,)})
    with pytest.raises(ConfigError, match=r"objective\.prefixes has 512; expected lengths below"):
        train(f"folder:{class_folder}", long, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_run_goes_on_without_its_teacher(
    config: Config, class_folder: Path, tiny_encoder_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher, run = tmp_path / "teacher", tmp_path / "run"
    shutil.copytree(tiny_encoder_folder, teacher)
    distilled = override_config(config, {"distillation.weight": 1.0, "distillation.teacher": str(teacher)})

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("vitrieve.training.run.finish_run", stop)
        with pytest.raises(KeyboardInterrupt):
            train(f"folder:{class_folder}", distilled, run, report=False)
    shutil.rmtree(teacher)
    assert train(f"folder:{class_folder}", distilled, run, report=False, resume=True).summary["num_steps"] > 0
    with pytest.raises(ConfigError, match=r"^objective\.distillation\.teacher: "):
        train(f"folder:{class_folder}", distilled, tmp_path / "another", report=False, resume=True)


def test_read_teacher_refuses_what_is_of_other_images(
    config: Config, records: list[ImageRecord], tiny_encoder_folder: Path, tmp_path: Path
) -> None:
    distilled = with_teacher(config, tiny_encoder_folder)
    read_teacher(distilled, records, tmp_path)
    with pytest.raises(ArtifactError, match="does not hold the teacher's embeddings of 19 images"):
        read_teacher(distilled, records[1:], tmp_path)


@pytest.mark.parametrize("kind", ["unknown name", "missing folder", "unfinished encoder", "damaged embeddings"])
def test_read_teacher_names_the_setting_of_a_teacher_that_cannot_be_loaded(
    config: Config, records: list[ImageRecord], tmp_path: Path, kind: str
) -> None:
    teacher = tmp_path / "teacher"
    if kind == "unfinished encoder":
        teacher.mkdir()
    elif kind == "damaged embeddings":
        teacher.mkdir()
        (teacher / ROWS_NAME).write_bytes(b"no table")
    distilled = with_teacher(config, Path("dinov9-vits14") if kind == "unknown name" else teacher)
    with pytest.raises(ConfigError, match=r"^objective\.distillation\.teacher: "):
        read_teacher(distilled, records, tmp_path)


def test_trap_resume_of_a_distillation_equals_an_uninterrupted_run_bit_for_bit(
    config: Config, records: list[ImageRecord], tiny_encoder_folder: Path, tmp_path: Path
) -> None:
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    distilled = with_teacher(config, tiny_encoder_folder)
    for folder in (whole, stopped):
        folder.mkdir()
    run_training(distilled, records, whole)
    run_training(override_config(distilled, {"num_steps": 6}), records, stopped)
    for state in sorted((stopped / "state").iterdir())[1:]:
        state.unlink()  # as if it had been stopped after step 4
    run_training(distilled, records, stopped)
    assert_same_bits(final_state(whole), final_state(stopped))
    assert not any("teacher" in name for name in final_state(whole))
    plain = tmp_path / "plain"
    plain.mkdir()
    run_training(config, records, plain)
    weight = "encoder/backbone.blocks.0.attn.qkv.weight"
    assert not torch.equal(final_state(plain)[weight], final_state(whole)[weight])


def test_check_config_refuses_a_distillation_without_a_teacher() -> None:
    with pytest.raises(ConfigError, match=r"there is no objective\.distillation\.teacher"):
        check_config(override_config(Config(), {"distillation.weight": 0.5}))
