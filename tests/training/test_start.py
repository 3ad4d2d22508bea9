"""Weights that have seen the test classes of a data set are no start for a training that is measured on them."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

import vitrieve
from vitrieve.comparison.methods import ContestSettings, read_methods
from vitrieve.config import Config
from vitrieve.data.several import train_on_all_classes
from vitrieve.evaluation.run import evaluate
from vitrieve.model.pretrained import WEIGHTS, DeltaSource, WeightsEntry
from vitrieve.model.seen import hash_names
from vitrieve.recipes import find_recipe
from vitrieve.runtime.encoder import load_encoder
from vitrieve.settings import override_config
from vitrieve.training.run import choose_unseen_start

BASE, GENERAL = "dinov2-vits14", "tiny-general"


@pytest.fixture(autouse=True)
def _register(photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights that were trained on the photographs, which are known by their names."""
    known = np.unique(hash_names(path.name for path in photographs.rglob("*.png")))
    save_file({"mine": known}, tmp_path / "pictures.safetensors")
    entry = WeightsEntry(
        name=GENERAL,
        architecture="test_vit",
        license="none",
        delta=DeltaSource(base=BASE, path=Path("none"), sha256=""),
        trained_on=("others", "mine"),
        pictures=tmp_path / "pictures.safetensors",
    )
    monkeypatch.setitem(WEIGHTS, GENERAL, entry)


def start_from(name: str, **changes: object) -> Config:
    return override_config(find_recipe("small")(), {"model.backbone": name, **changes})


def test_training_starts_from_what_has_not_seen_the_test_classes(
    photographs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dataset = vitrieve.read_source(f"folder:{photographs}")
    chosen = choose_unseen_start(start_from(GENERAL), [dataset])
    assert chosen == start_from(BASE)
    assert (
        f"{GENERAL} has seen the test classes of {dataset.name} (its pictures are named as in mine): training starts "
        f"from {BASE}"
    ) in capsys.readouterr().err
    # Nothing is measured on test classes, weights of the user's own, other weights: as they are.
    for config, data in (
        (start_from(GENERAL), train_on_all_classes(dataset)),
        (start_from(GENERAL, weights=Path("mine")), dataset),
        (start_from(BASE), dataset),
        (start_from("resnet18"), dataset),
    ):
        assert choose_unseen_start(config, [data]) == config
    assert capsys.readouterr().err == ""


def test_a_copy_of_what_the_general_encoder_has_seen_is_known_by_its_pictures(
    photographs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = override_config(find_recipe("small")(), {"model.backbone": "vitrieve-general-v2"})
    assert choose_unseen_start(config, [vitrieve.read_source(f"folder:{photographs}")]) == config
    assert capsys.readouterr().err == ""
    for number, path in enumerate(sorted(photographs.rglob("*.png"))):
        path.rename(path.with_name(f"Kiwi_{number:03}.png"))
    chosen = choose_unseen_start(config, [vitrieve.read_source(f"folder:{photographs}")])
    assert chosen == override_config(config, {"model.backbone": BASE})
    assert (
        "vitrieve-general-v2 has seen the test classes of photographs (its pictures are named as in grocery): training "
        f"starts from {BASE}"
    ) in capsys.readouterr().err


def test_train_and_compare_choose_it(photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Reached(Exception):  # noqa: N818 - it is no error
        pass

    def stop(name: str, **_: object) -> None:
        raise Reached(name)

    monkeypatch.setattr("vitrieve.model.encoder.build_backbone", stop)
    settings = {"backbone": GENERAL, "image_size": 32, "num_threads": 1}
    with pytest.raises(Reached, match=BASE):
        vitrieve.train(f"folder:{photographs}", "small", tmp_path / "run", **settings)
    with pytest.raises(Reached, match=BASE):
        vitrieve.compare(["small"], [f"folder:{photographs}"], tmp_path / "contest", num_images=64, **settings)
    (method,) = read_methods(["small"], ContestSettings(backbone=GENERAL))
    assert method.with_backbone(BASE).config == override_config(method.config, {"model.backbone": BASE})


def test_evaluate_says_it_of_what_was_trained_from_it(
    photographs: Path, tiny_weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = f"folder:{photographs}"
    model = {"backbone": "test_vit", "weights": tiny_weights, "image_size": 32}
    settings = {"num_steps": 1, "batch_size": 6, "num_threads": 1, "holdout": False, "report": False}
    vitrieve.train(source, "small", tmp_path / "run", model=model, **settings)
    encoder = load_encoder(tmp_path / "run")
    assert encoder.backbone == "test_vit"
    capsys.readouterr()
    evaluate(encoder, source)
    assert "has seen" not in capsys.readouterr().err
    evaluate(dataclasses.replace(encoder, backbone=GENERAL), source)
    assert f"{encoder.name}: its start, {GENERAL}, has seen the test classes of" in capsys.readouterr().err
