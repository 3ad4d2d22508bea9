from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from vitrieve.cli.main import main
from vitrieve.data.sources import read_collection
from vitrieve.embed.collection import embed_collection
from vitrieve.embed.embeddings import load_embeddings
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
    with_names = load_embeddings(embeddings_folder)
    store = open_index(tmp_path / "index")
    vectors, records = store.get([record.image_id for record in with_names.records])
    assert np.array_equal(vectors, with_names.vectors)
    assert tuple(records) == with_names.records


@pytest.mark.parametrize("store", ["exact", "lance"])
def test_index_verify_tells_a_sound_index_from_a_damaged_one(
    embeddings_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], store: str
) -> None:
    out = tmp_path / "index"
    assert main(["index", "--embeddings", str(embeddings_folder), "--out", str(out), "--store", store]) == 0
    capsys.readouterr()
    assert main(["index", "--verify", "--index", str(out)]) == 0
    assert "no fault" in capsys.readouterr().out
    pattern = "segments/*.npy" if store == "exact" else "images.lance/data/*"
    path = next(out.glob(pattern))
    path.write_bytes(path.read_bytes()[:-40] + bytes(40))
    assert main(["index", "--verify", "--index", str(out), "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["faults"]


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def _flip(path: Path) -> None:
    """Flip the highest bit of an exponent in the first vector, or a bit in the middle of a file without vectors."""
    content = bytearray(path.read_bytes())
    vector = load_embeddings(path.parents[3 if "images.lance" in path.parts else 2] / "embeddings").vectors[0]
    place = content.find(vector.astype("<f4").tobytes())
    content[len(content) // 2 if place < 0 else place + 3] ^= 0x40
    path.write_bytes(content)


def _flip_low(path: Path) -> None:
    """Flip the lowest bit of a number of the first vector."""
    content = bytearray(path.read_bytes())
    place = content.find(load_embeddings(path.parents[3] / "embeddings").vectors[0].astype("<f4").tobytes())
    assert place >= 0
    content[place] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("store", "pattern", "damage"),
    [
        ("exact", "segments/*.npy", _cut),
        ("exact", "segments/*.npy", Path.unlink),
        ("exact", "segments/*.npy", _flip),
        ("exact", "segments/*.parquet", _cut),
        ("exact", "segments/*.parquet", Path.unlink),
        ("exact", "segments/*.parquet", _flip),
        ("lance", "images.lance/data/*.lance", _cut),
        ("lance", "images.lance/data/*.lance", Path.unlink),
        ("lance", "images.lance/data/*.lance", _flip),
        ("lance", "images.lance/data/*.lance", _flip_low),  # no norm tells it
        ("lance", "images.lance/_transactions/*", _flip),
        ("lance", "checksums.json", _cut),
        ("lance", "images.lance/_versions/*.manifest", _cut),
    ],
)
def test_index_verify_names_the_damaged_file(
    store: str,
    pattern: str,
    damage: Callable[[Path], None],
    embeddings_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "index"
    assert main(["index", "--embeddings", str(embeddings_folder), "--out", str(out), "--store", store]) == 0
    path = max(out.glob(pattern), key=lambda one: (one.stat().st_mtime_ns, one.name))
    damage(path)
    capsys.readouterr()
    assert main(["index", "--verify", "--index", str(out)]) == 1
    printed = capsys.readouterr()
    assert path.name in printed.out
    assert "Traceback" not in printed.out + printed.err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--store", "milvus"], "address"),
        (["--uri", "http://localhost:1"], "address"),
        (["--code-bytes", "8"], "ivf_pq"),
        (["--code-bytes", "7", "--index-kind", "ivf_pq"], "divide"),
        (["--store", "exact", "--index-kind", "ivf_pq"], "exact has no codes"),
        (["--store", "milvus", "--uri", "localhost"], "no address"),
        (["--store", "pgvector"], "address"),
        (["--store", "pgvector", "--uri", "localhost"], "no address"),
        (["--store", "pgvector", "--uri", "postgresql://h/d", "--index-kind", "ivf_pq"], "pgvector has no codes"),
        (["--verify"], "--verify changes nothing"),
    ],
)
def test_index_refuses_settings_that_do_not_belong_together(
    embeddings_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    assert main(["index", "--embeddings", str(embeddings_folder), "--out", str(tmp_path / "index"), *words]) == 2
    assert message in capsys.readouterr().err


def test_index_names_the_missing_embeddings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["index", "--out", str(tmp_path / "index")]) == 2
    assert "--embeddings" in capsys.readouterr().err


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
