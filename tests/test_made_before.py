"""A run, a stopped run, an index and their settings that commit 9b56add wrote open and give the same answers.

The files in ``made_before`` were written by ``made_before/make.py``, whose answers stand in ``answers.json``.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import vitrieve
from vitrieve.settings import config_from_json

pytest.importorskip("torch", reason="needs vitrieve[train]")

FOLDER = Path(__file__).parent / "made_before"


@pytest.fixture
def before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the files, as somebody has them who updates; timm knows their backbone."""
    monkeypatch.syspath_prepend(FOLDER)
    import backbone  # type: ignore[import-not-found]

    assert sys.modules["backbone"] is backbone
    shutil.copytree(FOLDER, tmp_path / "before")
    return tmp_path / "before"


@pytest.fixture
def answers() -> dict[str, Any]:
    answers: dict[str, Any] = json.loads((FOLDER / "answers.json").read_text())
    return answers


@pytest.mark.parametrize("engine", ["onnx", "torch"])
@pytest.mark.parametrize("folder", ["run", "run/encoder"])
def test_encoder_gives_the_same_vector(folder: str, engine: Any, before: Path, answers: dict[str, Any]) -> None:
    encoder = vitrieve.load_encoder(before / folder, engine=engine, num_threads=1, device="cpu")
    vector = encoder.encode(before / "photographs" / "class9" / "2.png")
    assert encoder.fingerprint == answers["fingerprint"]
    np.testing.assert_allclose(vector, answers["vector"], atol=1e-3)  # it was made by another engine


def test_run_is_measured_as_before(before: Path, answers: dict[str, Any]) -> None:
    evaluation = vitrieve.evaluate(before / "run", before / "photographs", device="cpu")
    assert evaluation.results[0].metrics == pytest.approx(answers["metrics"])


def test_settings_of_a_run_are_read(before: Path) -> None:
    config = config_from_json(vitrieve.Config, json.loads((before / "run" / "manifest.json").read_text())["config"])
    assert config.model.backbone == "vit_of_one_block"
    assert config.objective.koleo.weight == 0.3
    assert config.objective.memory_fraction == 0.5
    assert config.objective.contrastive.weight == config.objective.multi_similarity.weight == 1.0


def test_stopped_run_goes_on_to_the_same_encoder(before: Path, answers: dict[str, Any]) -> None:
    run = vitrieve.train(
        before / "photographs",
        "small",
        before / "stopped",
        resume=True,
        report=False,
        model={"backbone": "vit_of_one_block", "weights": before / "weights.safetensors", "image_size": 32},
        objective={"koleo": {"weight": 0.3}, "contrastive": {"weight": 1.0}, "memory_fraction": 0.5},
        num_steps=6,
        checkpoint_every=2,
        batch_size=6,
        num_threads=1,
        holdout=False,
    )
    vector = run.encoder.encode(before / "photographs" / "class9" / "2.png")
    np.testing.assert_allclose(vector, answers["vector"], atol=1e-3)
    log, kept = (folder / "stopped" / "metrics.jsonl" for folder in (before, FOLDER))
    assert log.read_text().splitlines()[:5] == kept.read_text().splitlines()[:5]  # the first steps are not done again
    assert [json.loads(line)["step"] for line in log.read_text().splitlines()] == [1, 2, 3, 4, 5, 6]


def test_index_finds_the_same_and_is_synced_without_embedding(before: Path, answers: dict[str, Any]) -> None:
    picture = before / "photographs" / "class9" / "2.png"
    encoder = vitrieve.load_encoder(before / "run", num_threads=1, device="cpu")
    with vitrieve.Searcher.open(before / "index", encoder) as searcher:
        found = searcher.search(picture, k=5)
        assert searcher.store.verify() == []
    assert [result.image_id for result in found] == [image_id for image_id, _ in answers["found"]]
    assert [result.score for result in found] == pytest.approx([score for _, score in answers["found"]], abs=1e-3)
    report = vitrieve.sync(before / "photographs", before / "index", encoder, adopt=True)  # it has moved
    assert (report.num_embedded, report.num_removed, report.num_indexed) == (0, 0, 30)
