from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from vitrieve.cli.main import main
from vitrieve.data.sources import read_collection
from vitrieve.embed.collection import embed_collection, load_embeddings
from vitrieve.index.open import open_index
from vitrieve.runtime.encoder import load_encoder


@pytest.fixture
def embeddings_folder(tiny_encoder_folder: Path, picture_folder: Path, tmp_path: Path) -> Path:
    encoder = load_encoder(tiny_encoder_folder, engine="onnx", num_threads=1)
    embed_collection(encoder, read_collection(str(picture_folder)), tmp_path / "embeddings")
    return tmp_path / "embeddings"


def test_index_prints_one_object(embeddings_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["index", "--embeddings", str(embeddings_folder), "--out", str(tmp_path / "index"), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["num_vectors"], result["embedding_dim"], result["store"]) == (12, 64, "lance")
    embeddings = load_embeddings(embeddings_folder)
    vectors, records = open_index(tmp_path / "index").get([record.image_id for record in embeddings.records])
    assert np.array_equal(vectors, embeddings.vectors)
    assert tuple(records) == embeddings.records


def test_index_takes_the_exact_store(embeddings_folder: Path, tmp_path: Path) -> None:
    words = ["index", "--embeddings", str(embeddings_folder), "--out", str(tmp_path / "index"), "--store", "exact"]
    assert main(words) == 0
    assert open_index(tmp_path / "index").info.kind == "exact"


def test_index_refuses_a_finished_out_unless_overwritten(
    embeddings_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["index", "--embeddings", str(embeddings_folder), "--out", str(tmp_path / "index")]
    assert [main(words), main(words), main([*words, "--overwrite"])] == [0, 2, 0]
    assert "--overwrite" in capsys.readouterr().err


def test_index_refuses_what_are_no_embeddings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for folder in (tmp_path / "missing", tmp_path):
        assert main(["index", "--embeddings", str(folder), "--out", str(tmp_path / "index")]) == 2
        assert "'embeddings'" in capsys.readouterr().err


def test_index_never_writes_over_the_embeddings(embeddings_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["index", "--embeddings", str(embeddings_folder), "--out", str(embeddings_folder), "--overwrite"]
    assert main(words) == 2
    assert "another --out" in capsys.readouterr().err
    assert (embeddings_folder / "vectors.npy").exists()
