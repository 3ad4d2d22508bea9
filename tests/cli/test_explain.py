from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from vitrieve.cli.main import main
from vitrieve.data.sources import read_collection
from vitrieve.embed.collection import embed_collection
from vitrieve.index.open import build_index
from vitrieve.runtime.encoder import load_encoder


@pytest.fixture
def index_folder(tiny_encoder_folder: Path, picture_folder: Path, tmp_path: Path) -> Path:
    encoder = load_encoder(tiny_encoder_folder, engine="onnx", num_threads=1)
    embed_collection(encoder, read_collection(str(picture_folder)), tmp_path / "embeddings")
    build_index(tmp_path / "embeddings", tmp_path / "index", store="exact")
    return tmp_path / "index"


@pytest.mark.parametrize(("name", "kind"), [("why.png", "PNG"), ("new/why.jpg", "JPEG")])
def test_explain_writes_a_picture_and_prints_the_matches(
    name: str, kind: str, index_folder: Path, picture_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["explain", str(picture_folder / "02.png"), "--index", str(index_folder), "--out", str(tmp_path / name)]
    assert main([*words, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["image_id"] == "02.png"
    assert result["matches"][0]["query"] == result["matches"][0]["result"]
    with Image.open(tmp_path / name) as picture:
        assert picture.format == kind
    assert main([*words, "--result", "05.png"]) == 0
    assert "05.png" in capsys.readouterr().out.splitlines()[0]


def test_explain_of_an_image_of_the_index_is_about_its_nearest_other(
    index_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["explain", "id:02.png", "--index", str(index_folder), "--out", str(tmp_path / "why.png"), "--json"]
    assert main(words) == 0
    assert json.loads(capsys.readouterr().out)["image_id"] != "02.png"


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["02.png", "--out", "why.gif"], "why.gif"),
        (["02.png", "--out", "why.png", "--result", "nobody"], "nobody"),
        (["gone.png", "--out", "why.png"], "gone.png"),
        (["id:nobody", "--out", "why.png"], "nobody"),
    ],
)
def test_explain_refuses_wrong_input_with_one_message(
    words: list[str],
    part: str,
    index_folder: Path,
    picture_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(picture_folder)
    assert main(["explain", *words, "--index", str(index_folder)]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert part in printed.err
    assert printed.err.count("error: ") == 1
