"""The image size of the encoder that a run keeps."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.training.test_run import LARGER, write_pictures
from vitrieve import train
from vitrieve.config import Config, ModelConfig
from vitrieve.errors import DataError, UnfinishedRunError
from vitrieve.model.encoder import ImageEncoder, build_encoder, fingerprint_encoder, read_encoder, save_encoder
from vitrieve.recipes import find_recipe
from vitrieve.runtime.encoder import load_encoder
from vitrieve.settings import override_config
from vitrieve.training.image_size import choose_image_size, compute_larger_size
from vitrieve.training.loop import TrainingResult
from vitrieve.training.selection import Selection

SMALL = find_recipe("small")()


def build(architecture: str = "test_vit", image_size: int = 32, **options: Any) -> ImageEncoder:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = ModelConfig(backbone=architecture, image_size=image_size, **options)
        return build_encoder(model, is_pretrained=False).eval()


def end_run(encoder: ImageEncoder, frozen: float = 0.3, trained: float = 0.5) -> TrainingResult:
    """Return the end of a run that was measured before its first step and after its fourth, the last."""
    selection = Selection()
    selection.add(0, frozen)
    selection.add(4, trained)
    return TrainingResult(encoder, selection, 4)


def find(value: float) -> Callable[[ImageEncoder], Mapping[str, float]]:
    return lambda encoder: {"recall_at_1": 1.0, "map_at_r": value}


def refuse(encoder: ImageEncoder) -> Mapping[str, float]:
    raise AssertionError("nothing is to be measured")


def test_a_gain_of_a_point_keeps_the_larger_size_and_the_weights(tmp_path: Path) -> None:
    encoder = build()
    save_encoder(encoder, tmp_path)
    result, choice = choose_image_size(SMALL, end_run(encoder), find(0.51))
    assert choice.image_size == result.encoder.spec.preprocessing.image_size == 48
    assert choice.values == {32: 0.5, 48: 0.51}
    # What the run keeps is what the folder of its own size gives at the other.
    assert fingerprint_encoder(result.encoder) == fingerprint_encoder(read_encoder(tmp_path, image_size=48))
    assert not result.encoder.training
    assert encoder.spec.preprocessing.image_size == 32
    assert choice.describe() == (
        "the encoder takes pictures of 48 px, and was trained on 32 px: MAP@R on the held-out classes is 51.0 at 48 px "
        "and 50.0 at 32 px"
    )
    assert "classes (the mean over 2 sources) is 51.0" in choice.describe(2)


@pytest.mark.parametrize(
    ("before", "found", "is_larger"), [(0.28, 0.29, True), (0.6004, 0.6096, True), (0.6, 0.6094, False)]
)
def test_the_gain_is_that_of_the_printed_figures(before: float, found: float, is_larger: bool) -> None:
    _, choice = choose_image_size(SMALL, end_run(build(), frozen=0.1, trained=before), find(found))
    assert choice.image_size == (48 if is_larger else 32)


@pytest.mark.parametrize("found", [0.509, 0.5, 0.1])
def test_less_than_a_point_keeps_the_size_of_the_training(found: float, capsys: pytest.CaptureFixture[str]) -> None:
    before = end_run(build())
    result, choice = choose_image_size(SMALL, before, find(found))
    assert result is before
    assert (choice.image_size, choice.values) == (32, {32: 0.5, 48: found})
    told = capsys.readouterr().err
    assert "measuring the held-out classes in pictures of 48 px" in told
    assert "the encoder takes pictures of 32 px, as in training" in told


@pytest.mark.parametrize("case", ["frozen", "no hold-out", "off"])
def test_nothing_is_measured_where_there_is_no_choice(case: str, capsys: pytest.CaptureFixture[str]) -> None:
    config = override_config(SMALL, {"try_larger_image": case != "off"})
    before = end_run(build(), trained=0.3 if case == "frozen" else 0.5)
    result, choice = choose_image_size(config, before, None if case == "no hold-out" else refuse)
    assert result is before
    assert (choice.image_size, choice.values, choice.describe()) == (32, {}, "")
    assert capsys.readouterr().err == ""


def test_a_measurement_that_fails_is_a_failure_of_the_run_and_done_again() -> None:
    def lose_a_picture(encoder: ImageEncoder) -> Mapping[str, float]:
        raise DataError("the network drive is away")

    result, choice = choose_image_size(SMALL, end_run(build()), lose_a_picture)
    assert isinstance(result.failure, DataError)
    assert choice.image_size == 32


def test_a_backbone_that_takes_one_size_only_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse_size(*_: object) -> ImageEncoder:
        raise AssertionError("Input height (48) should be divisible by 32")

    monkeypatch.setattr("vitrieve.training.image_size.resize_encoder", refuse_size)
    before = end_run(build())
    result, _ = choose_image_size(SMALL, before, refuse)
    assert result is before
    assert capsys.readouterr().err == "test_vit takes no pictures of 48 px: the encoder stays at 32 px\n"


def test_a_size_that_cannot_be_measured_costs_a_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    def run_out_of_memory(encoder: ImageEncoder) -> Mapping[str, float]:
        raise torch.OutOfMemoryError("CUDA out of memory")

    before = end_run(build())
    result, choice = choose_image_size(SMALL, before, run_out_of_memory)
    assert result is before
    assert (choice.image_size, choice.describe()) == (32, "")
    assert "pictures of 48 px cannot be measured, and the encoder stays at 32 px: " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("architecture", "own", "larger"),
    [
        ("vit_tiny_patch16_224", 32, 48),
        ("vit_tiny_patch16_224", 16, 32),
        ("vit_small_patch14_dinov2", 70, 98),
        ("vit_small_patch14_dinov2", 112, 168),
        ("vit_small_patch14_dinov2", 126, 182),
        ("test_convnext", 64, 92),
    ],
)
def test_the_larger_size_is_the_multiple_of_the_patch_nearest_to_1_45_times(
    architecture: str, own: int, larger: int
) -> None:
    encoder = build(architecture, own)
    assert compute_larger_size(encoder) == larger
    result, _ = choose_image_size(SMALL, end_run(encoder), find(0.9))
    assert result.encoder(torch.zeros(1, 3, larger, larger)).shape == (1, encoder.spec.embedding_dim)


def test_prompts_and_heads_are_those_of_the_training() -> None:
    from vitrieve.config import PromptConfig

    encoder = build(prompts=PromptConfig(num_tokens=3), head_dim=8, head_norm=True, pooling="gem", gem_learnable=True)
    result, _ = choose_image_size(SMALL, end_run(encoder), find(0.9))
    own, kept = encoder.state_dict(), result.encoder.state_dict()
    assert any("prompts" in name for name in own)
    assert own.keys() == kept.keys()
    assert [name for name in own if not torch.equal(own[name], kept[name])] == ["backbone.pos_embed"]


class Growing:
    """A measurement that finds more each time it is asked, and notes the sizes that it was asked about."""

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def __call__(self, encoder: ImageEncoder) -> dict[str, float]:
        self.sizes.append(encoder.spec.preprocessing.image_size)
        return {"recall_at_1": 0.5, "map_at_r": 0.1 * len(self.sizes)}


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> Growing:
    growing = Growing()
    monkeypatch.setattr("vitrieve.training.run.build_mean_evaluate", lambda *_: growing)
    return growing


@pytest.fixture
def config(tiny_weights: Path) -> Config:
    changes = {"model.backbone": "test_vit", "model.weights": str(tiny_weights), "image_size": 32}
    more = {"num_steps": 2, "batch_size": 8, "num_threads": 1, "train.precision": "fp32"}
    return override_config(SMALL, {**changes, **more})


def test_a_whole_run_keeps_reports_and_exports_the_larger_size(
    measured: Growing, config: Config, tmp_path: Path
) -> None:
    photographs, out = write_pictures(tmp_path / "photographs", LARGER), tmp_path / "run"
    run = train(f"folder:{photographs}", config, out)
    assert measured.sizes == [32, 32, 48]
    assert run.summary["image_size"] == 48
    assert run.summary["holdout_map_at_r_by_image_size"] == {"32": 0.2, "48": pytest.approx(0.3)}
    assert run.summary["config"]["model"]["image_size"] == 32
    assert [result.image_size for result in run.results] == [48, 48]  # the frozen start is measured alike
    assert load_encoder(out, device="cpu").preprocessing.image_size == 48
    assert load_encoder(out, engine="onnx").preprocessing.image_size == 48
    card = (out / "encoder" / "README.md").read_text(encoding="utf-8")
    assert "the encoder takes pictures of 48 px, and was trained on 32 px" in card
    assert "center square of 48 px" in card


def test_a_run_that_goes_on_after_its_last_step_chooses_the_same_size(
    measured: Growing, config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photographs, out = write_pictures(tmp_path / "photographs", LARGER), tmp_path / "run"

    def fail(*_: object, **__: object) -> None:
        raise OSError("the disk is gone")

    with monkeypatch.context() as patch:
        patch.setattr("vitrieve.training.finishing.run_comparison", fail)
        with pytest.raises(UnfinishedRunError, match="the report failed"):
            train(f"folder:{photographs}", config, out)
    fingerprint = fingerprint_encoder(read_encoder(out / "encoder"))
    run = train(f"folder:{photographs}", config, out, resume=True)
    assert measured.sizes == [32, 32, 48, 48]
    assert run.summary["image_size"] == 48
    assert run.summary["encoder_fingerprint"] == fingerprint
    # The choice is made after the last step, so that a run may go on without it.
    assert json.loads((out / "config.json").read_text())["train"]["try_larger_image"] is True


def test_a_reduction_is_fitted_on_pictures_of_the_size_that_is_kept(
    measured: Growing, config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vitrieve.training.finishing.export_folder", lambda folder: None)
    photographs, out = write_pictures(tmp_path / "photographs", LARGER), tmp_path / "run"
    config = override_config(config, {"model.embedding_dim": 4})
    run = train(f"folder:{photographs}", config, out, report=False)
    encoder = read_encoder(out / "encoder")
    assert (encoder.spec.preprocessing.image_size, encoder.spec.embedding_dim) == (48, 4)
    assert run.summary["image_size"] == 48


@pytest.mark.parametrize(("values", "kept"), [([0.5, 0.4, 0.5], 48), ([0.5, 0.4, 0.49], 32), ([0.1, 0.4, 0.41], 48)])
def test_a_run_that_goes_on_from_larger_pictures_tries_their_size(
    values: list[float],
    kept: int,
    config: Config,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("vitrieve.training.finishing.export_folder", lambda folder: None)
    given = build(image_size=48)
    save_encoder(given, tmp_path / "given")
    found = iter(values)
    monkeypatch.setattr(
        "vitrieve.training.run.build_mean_evaluate",
        lambda *_: lambda encoder: {"recall_at_1": 0.5, "map_at_r": next(found)},
    )
    photographs = write_pictures(tmp_path / "photographs", LARGER)
    config = override_config(config, {"model.weights": str(tmp_path / "given")})
    run = train(f"folder:{photographs}", config, tmp_path / "run", report=False)
    assert "its image size 48 px: training sees 32 px (--image-size 48 keeps it)" in capsys.readouterr().err
    assert next(found, None) is None
    assert run.summary["image_size"] == kept


def test_another_run_may_go_on_without_the_choice(
    measured: Growing, config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photographs, out = write_pictures(tmp_path / "photographs", LARGER), tmp_path / "run"

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("vitrieve.training.run.choose_image_size", interrupt)
        with pytest.raises(KeyboardInterrupt):
            train(f"folder:{photographs}", config, out, report=False)
    monkeypatch.setattr("vitrieve.training.finishing.export_folder", lambda folder: None)
    run = train(f"folder:{photographs}", config, out, report=False, resume=True, try_larger_image=False)
    assert measured.sizes == [32, 32]
    assert (run.summary["image_size"], run.summary["holdout_map_at_r_by_image_size"]) == (32, {})
