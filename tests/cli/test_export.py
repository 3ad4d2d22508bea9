from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from vitrieve.artifacts import write_manifest
from vitrieve.cli.main import main
from vitrieve.errors import ConfigError
from vitrieve.runtime.encoder import load_encoder

pytest.importorskip("torch", reason="exporting needs vitrieve[train]")


@pytest.fixture
def encoder_folder(tiny_encoder_folder: Path, tmp_path: Path) -> Path:
    """A copy of the tiny encoder without its graph."""
    folder = tmp_path / "encoder"
    shutil.copytree(tiny_encoder_folder, folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["sha256"]["encoder.onnx"]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    (folder / "encoder.onnx").unlink()
    return folder


def test_export_adds_the_graph_to_the_encoder(encoder_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = load_encoder(encoder_folder).fingerprint
    assert main(["export", "--encoder", str(encoder_folder), "--json"]) == 0
    exported = json.loads(capsys.readouterr().out)
    assert exported["folder"] == str(encoder_folder)
    assert exported["fingerprint"] == before == load_encoder(encoder_folder, engine="onnx").fingerprint
    assert exported["cosine"] >= 0.9999
    assert exported["image_size"] == 32


def test_export_finds_the_encoder_of_a_run(encoder_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    encoder_folder.rename(tmp_path / "run" / "encoder")
    assert main(["export", "--encoder", str(tmp_path / "run")]) == 0
    assert load_encoder(tmp_path / "run", engine="onnx").engine == "onnx"


def test_export_copies_to_out(encoder_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["export", "--encoder", str(encoder_folder), "--out", str(tmp_path / "copy")]
    assert main(command) == 0
    copied = load_encoder(tmp_path / "copy", engine="onnx")
    assert copied.fingerprint == load_encoder(encoder_folder).fingerprint
    assert not (encoder_folder / "encoder.onnx").exists()
    assert main(command) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert main([*command, "--overwrite"]) == 0


def test_export_copies_what_may_only_be_read_and_its_text_part(
    aligned_folder: Path, tmp_path: Path, make_read_only: Callable[[Path], None]
) -> None:
    store, out = tmp_path / "store", tmp_path / "copy"
    shutil.copytree(aligned_folder, store)
    make_read_only(store)
    assert main(["export", "--encoder", str(store), "--out", str(out)]) == 0
    (tmp_path / "new").mkdir()
    for folder in (out, out / "text"):
        assert folder.stat().st_mode == (tmp_path / "new").stat().st_mode, "it can be written"
    expected = load_encoder(aligned_folder).encode_text("dark red")
    np.testing.assert_array_equal(load_encoder(out).encode_text("dark red"), expected)


def test_export_at_another_size_tells_that_the_text_part_stays_behind(
    aligned_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "larger"
    assert main(["export", "--encoder", str(aligned_folder), "--image-size", "64", "--out", str(out)]) == 0
    printed = capsys.readouterr().err
    assert "the text part is left out" in printed
    assert "make it again with vitrieve align" in printed
    assert load_encoder(out).text_part is None


@pytest.mark.parametrize(
    "words",
    [
        ["--encoder", "dinov2-vits15"],
        ["--encoder", "test_vit", "--weights", "missing.safetensors"],
        ["--encoder", "ENCODER", "--image-size", "64"],
        ["--encoder", "ENCODER", "--format", "torch-export"],
    ],
)
def test_an_occupied_folder_is_refused_before_any_weight_is_read(
    words: list[str], encoder_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (encoder_folder / "model.safetensors").unlink()
    (tmp_path / "occupied").mkdir()
    write_manifest(tmp_path / "occupied", "encoder", {})
    words = [str(encoder_folder) if word == "ENCODER" else word for word in words]
    assert main(["export", *words, "--out", str(tmp_path / "occupied")]) == 2
    assert "holds a finished result; pass --overwrite" in capsys.readouterr().err


def test_export_at_another_image_size_is_another_encoder(
    encoder_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["export", "--encoder", str(encoder_folder), "--image-size", "64"]
    assert main(command) == 2
    assert "give it a folder with --out" in capsys.readouterr().err
    out = tmp_path / "larger"
    assert main([*command, "--out", str(out)]) == 0
    larger = load_encoder(out, engine="onnx")
    assert larger.preprocessing.image_size == 64
    assert larger.fingerprint == load_encoder(encoder_folder, image_size=64).fingerprint
    assert "Made from an encoder for 32 px" in (out / "README.md").read_text()


def test_export_keeps_what_out_holds_when_the_size_is_wrong(
    encoder_folder: Path, tiny_encoder_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    shutil.copytree(tiny_encoder_folder, out)
    command = ["export", "--encoder", str(encoder_folder), "--image-size", "65", "--out", str(out), "--overwrite"]
    assert main(command) == 2
    assert "nearest valid: 64 or 80" in capsys.readouterr().err
    load_encoder(out, engine="onnx")


def test_export_never_overwrites_its_own_source(
    encoder_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    encoder_folder.rename(run / "encoder")
    assert main(["export", "--encoder", str(run), "--out", str(run), "--overwrite"]) == 2
    assert "leave --out away" in capsys.readouterr().err
    load_encoder(run)


@pytest.mark.parametrize("source", ["no/such/folder", "dinov2-vits15"])
def test_export_unknown_source_is_one_message(source: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", "--encoder", source]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("error: ")


def test_patterns_without_pictures_are_refused(
    tiny_encoder_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    encoder = ["--encoder", str(tiny_encoder_folder), "--exclude", "drafts/", "--out", str(tmp_path / "out")]
    for words in (["export", "--delta-rank", "2"], ["reduce", "--kind", "prefix", "--embedding-dim", "4"]):
        assert main([*words, *encoder]) == 2
        assert "--exclude leaves files out of the folder of --data; give both or none" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_export_without_torch_says_so(tiny_encoder_folder: Path, without_torch: str) -> None:
    body = f"""
import sys
from vitrieve.cli.main import main
from vitrieve.errors import ConfigError
sys.exit(main(["export", "--encoder", {str(tiny_encoder_folder)!r}]))
"""
    result = subprocess.run([sys.executable, "-c", without_torch + body], capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert "exporting needs torch" in result.stderr


@pytest.mark.data
@pytest.mark.usefixtures("dinov2_weights")
def test_export_weights_name_makes_an_encoder_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["export", "--encoder", "dinov2-vits14", "--image-size", "56", "--out", str(tmp_path / "d"), "--json"]
    assert main(command) == 0
    exported = json.loads(capsys.readouterr().out)
    assert exported["fingerprint"] == load_encoder("dinov2-vits14", image_size=56).fingerprint
    assert load_encoder(tmp_path / "d", engine="onnx").fingerprint == exported["fingerprint"]


def test_export_at_several_scales_is_another_encoder(
    encoder_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import torch

    from vitrieve.config import ModelConfig
    from vitrieve.model.encoder import build_encoder, save_encoder

    with torch.random.fork_rng(devices=[]):
        config = ModelConfig(backbone="test_resnet", pooling="gem", image_size=64, drop_path_rate=0.0)
        fingerprint = save_encoder(build_encoder(config, is_pretrained=False), tmp_path / "convnet")
    command = ["export", "--encoder", str(tmp_path / "convnet"), "--scales", "1", "0.5"]
    assert main(command) == 2
    assert "give it a folder with --out" in capsys.readouterr().err
    assert main([*command, "--out", str(tmp_path / "scaled")]) == 0
    scaled = load_encoder(tmp_path / "scaled", engine="onnx")
    assert scaled.scales == (1.0, 0.5)
    assert scaled.fingerprint == load_encoder(tmp_path / "convnet", scales=(1.0, 0.5)).fingerprint != fingerprint
    with pytest.raises(ConfigError, match=r"was exported for the scales 1 0\.5, .* cannot run at 1\."):
        load_encoder(tmp_path / "scaled", engine="onnx", scales=(1.0,))
    assert main(["export", "--encoder", str(encoder_folder), "--scales", "1", "0.5", "--out", str(tmp_path / "v")]) == 2
    assert "is a transformer" in capsys.readouterr().err
    assert not (tmp_path / "v").exists()
