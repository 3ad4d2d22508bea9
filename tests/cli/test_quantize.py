"""The command end to end; what it makes is tested in tests/runtime/test_int8.py."""

from __future__ import annotations

import json
import shutil
import sys
from contextlib import redirect_stdout
from pathlib import Path

import pytest

from vitrieve.cli.main import main


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # NNCF and what it imports warn of each other
def test_quantize_then_embed_in_int8(
    tiny_encoder_folder: Path, class_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("openvino", reason="needs vitrieve[fast]")
    with redirect_stdout(sys.stderr):  # where the command has its log
        pytest.importorskip("nncf", reason="needs vitrieve[int8]")
    folder = tmp_path / "encoder"
    shutil.copytree(tiny_encoder_folder, folder)
    (class_folder_copy := tmp_path / "pictures").mkdir()
    for number, path in enumerate(sorted(class_folder.rglob("*.png"))):
        shutil.copy(path, class_folder_copy / f"{number}.png")
    (class_folder_copy / "broken.png").write_bytes(b"no picture")
    words = ["quantize", "--encoder", str(folder), "--data", str(class_folder_copy), "--num-images", "12", "--json"]
    words += ["--exclude", "0.png"]
    assert main(words) == 0
    printed = capsys.readouterr()
    answer = json.loads(printed.out)
    assert answer["cosine"] > 0.98
    assert answer["num_images"] in (11, 12)
    assert "left out: 1 excluded" in printed.err
    assert set(answer["images_per_second"]) in ({"bf16", "int8"}, {"fp32", "int8"})
    assert min(answer["images_per_second"].values()) > 0
    words = ["embed", "--encoder", str(folder), "--data", str(class_folder), "--precision", "int8", "--json"]
    assert main([*words, "--out", str(tmp_path / "embeddings")]) == 0
    assert "engine: openvino int8" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--encoder", "ENCODER", "--data", "PICTURES", "--num-images", "0"], "num_images is 0"),
        (["--encoder", "ENCODER", "--data", "PICTURES", "--image-size", "64"], "is for weights names"),
        (["--encoder", "nothing-of-this-name", "--data", "PICTURES"], "unknown"),
        (["--encoder", "deit_small_patch16_224", "--data", "PICTURES"], "is not exported"),
        (["--encoder", "ENCODER", "--data", "emoji", "--exclude", "*.png"], "emoji lists its images itself"),
    ],
)
def test_wrong_use_is_refused_in_one_line(
    words: list[str],
    reason: str,
    tiny_encoder_folder: Path,
    class_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("VITRIEVE_CACHE", str(tmp_path))
    places = {"ENCODER": str(tiny_encoder_folder), "PICTURES": str(class_folder)}
    assert main(["quantize", *(places.get(word, word) for word in words)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert reason in captured.err
