from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from vitrieve.cli.main import main


def run_embed(capsys: pytest.CaptureFixture[str], *words: Any) -> tuple[int, str, str]:
    status = main(["embed", *map(str, words)])
    printed = capsys.readouterr()
    return status, printed.out, printed.err


def test_embed_prints_one_object(
    tiny_encoder_folder: Path, picture_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (picture_folder / "03.png").write_bytes(b"")
    words = ("--encoder", tiny_encoder_folder, "--data", picture_folder, "--out", tmp_path / "out")
    status, out, err = run_embed(capsys, *words, "--max-bad-fraction", "0.2", "--num-threads", "1", "--json")
    result = json.loads(out)
    assert status == 0
    assert (result["num_images"], result["num_embedded"], result["num_failed"]) == (12, 11, 1)
    assert result["failures"][0]["image_id"] == "03.png"
    assert result["embedding_dim"] == 64
    assert "not embedded: 03.png" in err


def test_embed_plain_result_is_one_line(
    tiny_encoder_folder: Path, picture_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("--encoder", tiny_encoder_folder, "--data", picture_folder, "--out", tmp_path / "out")
    status, out, err = run_embed(capsys, *words, "--num-threads", "1")
    assert status == 0
    assert len(out.splitlines()) == 1
    assert "12 embeddings of 64 dimensions" in out
    assert "embed: 12/12" in err
    status, out, err = run_embed(capsys, *words)
    assert (status, out) == (2, "")
    assert "--overwrite" in err


def test_embed_takes_the_default_encoder_where_one_machine_embeds(
    tiny_encoder_folder: Path,
    picture_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("vitrieve.model.default.choose_default_encoder", lambda: str(tiny_encoder_folder))
    words = ("--data", picture_folder, "--out", tmp_path / "out", "--num-threads", "1")
    status, out, _ = run_embed(capsys, *words)
    assert status == 0
    assert "12 embeddings of 64 dimensions" in out
    for others in (["--shard", "1/2"], ["--join"], ["--ray"]):
        status, out, err = run_embed(capsys, *words[:3], tmp_path / "other", *others)
        assert (status, out) == (2, "")
        assert "name an --encoder" in err
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("engine", ["openvino", "onnx", "torch"])
def test_embed_prints_and_records_the_engine(
    engine: str, tiny_encoder_folder: Path, picture_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("--encoder", tiny_encoder_folder, "--data", picture_folder, "--out", tmp_path / "out")
    status, _, err = run_embed(capsys, *words, "--engine", engine, "--precision", "fp32", "--num-threads", "1")
    assert status == 0
    assert f"engine: {engine} fp32" in err
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert (manifest["engine"], manifest["precision"]) == (engine, "fp32")


def test_embed_refuses_a_precision_that_the_engine_has_not(
    tiny_encoder_folder: Path, picture_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("--encoder", tiny_encoder_folder, "--data", picture_folder, "--out", tmp_path / "out")
    status, out, err = run_embed(capsys, *words, "--engine", "onnx", "--precision", "bf16")
    assert (status, out) == (2, "")
    assert "'onnx' does not compute in 'bf16', only in fp32" in err
    assert not (tmp_path / "out").exists()


def test_embed_accepts_a_source_of_classes(
    tiny_encoder_folder: Path, picture_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number, path in enumerate(sorted(picture_folder.iterdir())):
        folder = picture_folder / f"class-{number % 2}"
        folder.mkdir(exist_ok=True)
        path.rename(folder / path.name)
    words = ("--encoder", tiny_encoder_folder, "--data", f"folder:{picture_folder}", "--out", tmp_path / "out")
    status, out, _ = run_embed(capsys, *words, "--num-threads", "1", "--json")
    assert (status, json.loads(out)["num_embedded"]) == (0, 12)


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"--data": "nowhere/at/all"}, "nowhere/at/all"),
        ({"--data": "EMPTY"}, "image"),
        ({"--encoder": "no-such-weights"}, "no-such-weights"),
        ({"--encoder": "./no/such/folder"}, "does not exist"),
        ({"--batch-size": "0"}, "batch_size is 0"),
        ({"--max-bad-fraction": "2"}, "max_bad_fraction is 2"),
        ({"--image-size": "33"}, "33"),
    ],
)
def test_embed_refuses_wrong_input_with_one_message(
    changes: dict[str, str],
    part: str,
    tiny_encoder_folder: Path,
    picture_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "empty").mkdir()
    flags = {"--encoder": tiny_encoder_folder, "--data": picture_folder, "--out": tmp_path / "out", **changes}
    if flags["--data"] == "EMPTY":
        flags["--data"] = tmp_path / "empty"
    status, out, err = run_embed(capsys, *(word for pair in flags.items() for word in pair))
    assert (status, out) == (2, "")
    assert part in err
    assert err.count("error: ") == 1
    assert "Traceback" not in err
    assert not (tmp_path / "out").exists()


def test_embed_at_several_scales_is_another_encoder(
    picture_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import torch

    from vitrieve.config import ModelConfig
    from vitrieve.model.encoder import build_encoder, save_encoder

    with torch.random.fork_rng(devices=[]):
        config = ModelConfig(backbone="test_resnet", pooling="gem", image_size=64, drop_path_rate=0.0)
        fingerprint = save_encoder(build_encoder(config, is_pretrained=False), tmp_path / "convnet")
    words = ("--encoder", tmp_path / "convnet", "--data", picture_folder, "--out", tmp_path / "out", "--json")
    status, out, _ = run_embed(capsys, *words, "--scales", "1", "0.5", "--num-threads", "1")
    assert status == 0
    assert json.loads(out)["fingerprint"] != fingerprint
