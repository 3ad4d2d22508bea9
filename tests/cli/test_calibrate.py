from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from vitrieve.cli.main import main
from vitrieve.data.sources import read_collection
from vitrieve.embed.collection import embed_collection
from vitrieve.index.open import build_index
from vitrieve.runtime.encoder import load_encoder
from vitrieve.search.threshold import load_threshold


@pytest.fixture
def labeled_index(tiny_encoder_folder: Path, class_folder: Path, tmp_path: Path) -> Path:
    encoder = load_encoder(tiny_encoder_folder, engine="onnx", num_threads=1)
    embed_collection(encoder, read_collection(f"folder:{class_folder}"), tmp_path / "embeddings")
    build_index(tmp_path / "embeddings", tmp_path / "index", store="exact")
    return tmp_path / "index"


def test_calibrate_writes_a_threshold_beside_the_index(labeled_index: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["calibrate", "--index", str(labeled_index), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    threshold = load_threshold(labeled_index)
    assert threshold is not None
    assert result["score"] == threshold.score
    assert (result["num_known"], result["num_unknown"]) == (20, 20)
    assert "class: label" in result["method"]
    assert Path(result["file"]) == labeled_index / "threshold.json"


def test_a_read_only_index_is_refused_before_the_work(
    labeled_index: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    refuse_writing: Callable[[Path], None],
) -> None:
    refuse_writing(labeled_index)
    monkeypatch.setattr("vitrieve.search.threshold.calibrate", None)  # no work is begun
    assert main(["calibrate", "--index", str(labeled_index)]) == 2
    assert "make the folder writable" in capsys.readouterr().err


def test_calibrate_on_a_labeled_source_equals_the_same_images_in_the_index(
    labeled_index: Path, class_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["calibrate", "--index", str(labeled_index), "--false-reject-rate", "0.1", "--json"]
    assert main(words) == 0
    of_index = json.loads(capsys.readouterr().out)
    (labeled_index / "threshold.json").write_text("damaged")
    # Every fifth class of a folder is its test split; the manifest names all as such.
    manifest = labeled_index.parent / "all.csv"
    lines = [f"{path},{path.parent.name},test" for path in sorted(class_folder.rglob("*.png"))]
    manifest.write_text("\n".join(["path,label,split", *lines]) + "\n")
    assert main([*words, "--data", f"table:{manifest}", "--num-threads", "1"]) == 0
    of_data = json.loads(capsys.readouterr().out)
    assert of_data["score"] == pytest.approx(of_index["score"], abs=2e-3)  # another engine, perhaps in bf16
    assert of_data["num_unknown"] == 20


def test_calibrate_on_embeddings_equals_the_same_images_in_the_index(
    labeled_index: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["calibrate", "--index", str(labeled_index), "--json"]
    assert main(words) == 0
    of_index = json.loads(capsys.readouterr().out)
    assert main([*words, "--embeddings", str(labeled_index.parent / "embeddings")]) == 0
    of_embeddings = json.loads(capsys.readouterr().out)
    assert of_embeddings["score"] == of_index["score"]
    assert (of_embeddings["num_known"], of_embeddings["num_unknown"]) == (20, 20)
    manifest = labeled_index.parent / "embeddings" / "manifest.json"
    manifest.write_text(manifest.read_text().replace(of_index["fingerprint"], "f" * 64))
    assert main([*words, "--embeddings", str(labeled_index.parent / "embeddings")]) == 2
    assert "the embeddings were made by another encoder" in capsys.readouterr().err
    assert main([*words, "--encoder", "dinov2-vits14"]) == 2
    assert "--encoder embeds the images of --data" in capsys.readouterr().err


def test_calibrate_leaves_out_what_is_excluded(
    labeled_index: Path, class_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = labeled_index.parent / "data"
    shutil.copytree(class_folder, data / "test")
    shutil.copytree(class_folder / "class0", data / "test" / "drafts")
    words = ["calibrate", "--index", str(labeled_index), "--num-threads", "1", "--json"]
    assert main([*words, "--data", f"folder:{data}", "--exclude", "drafts/"]) == 0
    printed = capsys.readouterr()
    assert "left out: 1 excluded" in printed.err
    assert json.loads(printed.out)["num_unknown"] == 20


def test_calibrate_prints_what_the_threshold_does(labeled_index: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["calibrate", "--index", str(labeled_index), "--false-accept-rate", "0.2"]) == 0
    printed = capsys.readouterr()
    assert printed.out.startswith("threshold ")
    assert "unknown queries accepted: " in printed.out
    assert "threshold.json" in printed.err


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["--column", "lable"], "Did you mean 'label'"),
        (["--column", "label", "--data", "emoji"], "--column belongs"),
        (["--embeddings", "e", "--data", "emoji"], "two ways to name"),
        (["--column", "label", "--embeddings", "e"], "--column belongs"),
        (["--exclude", "0.png"], "--exclude leaves files out of the folder of --data"),
        (["--false-accept-rate", "0.1", "--false-reject-rate", "0.1"], "one rate"),
        (["--false-accept-rate", "2"], "one rate"),
        (["--data", "./nowhere"], "nowhere"),
    ],
)
def test_calibrate_refuses_wrong_use_with_one_message(
    words: list[str], part: str, labeled_index: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["calibrate", "--index", str(labeled_index), *words]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert part in printed.err
    assert printed.err.count("error: ") == 1
    assert not (labeled_index / "threshold.json").exists()
