from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from vitrieve.errors import ArtifactError
from vitrieve.machine import CACHE_VARIABLE
from vitrieve.runtime import compiled
from vitrieve.runtime.encoder import Encoder, load_encoder

pytest.importorskip("openvino", reason="needs vitrieve[fast]")
SQUARES = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), dtype=np.uint8)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of compiled graphs, in an empty cache."""
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    return tmp_path / "cache" / "compiled"


@pytest.fixture
def builds(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Outputs of the graphs that were built, in order."""
    from vitrieve.runtime import graph_engines

    built: list[str] = []

    def cut(graph: object, output: str) -> object:
        built.append(output)
        return cut_graph(graph, output)

    cut_graph: Callable[[object, str], object] = graph_engines.cut_graph  # type: ignore[assignment]
    monkeypatch.setattr(graph_engines, "cut_graph", cut)
    return built


def load(encoder: Path, **given: object) -> Encoder:
    return load_encoder(encoder, engine="openvino", num_threads=1, **given)  # type: ignore[arg-type]


def list_files(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.exists() else []


def test_a_kept_graph_gives_the_same_bits_and_is_not_built_again(
    tiny_encoder_folder: Path, folder: Path, builds: list[str]
) -> None:
    expected = load(tiny_encoder_folder).encode_squares(SQUARES)
    (file,) = list_files(folder)
    assert len(builds) == 1
    encoder = load(tiny_encoder_folder)
    assert len(builds) == 1
    np.testing.assert_array_equal(encoder.encode_squares(SQUARES), expected)
    assert list_files(folder) == [file]
    pixels = np.zeros((1, 3, 32, 32), dtype=np.float32)
    assert encoder.encode_pixels(pixels).shape == expected[:1].shape  # what is not kept is built from the graph
    assert len(builds) == 2


def test_a_graph_that_was_replaced_meanwhile_is_not_mixed_with_the_kept_one(
    tiny_encoder_folder: Path, folder: Path, tmp_path: Path
) -> None:
    """A service reads its graph long after the kept one was loaded, for its first explanation."""
    copy = shutil.copytree(tiny_encoder_folder, tmp_path / "encoder")
    pixels = np.zeros((1, 3, 32, 32), dtype=np.float32)
    load(copy)
    for replace in (lambda graph: graph.write_bytes(graph.read_bytes() + b" "), Path.unlink):
        encoder = load(copy)
        replace(copy / "encoder.onnx")
        with pytest.raises(ArtifactError, match="was replaced since it was loaded"):
            encoder.encode_pixels(pixels)
        shutil.copy(tiny_encoder_folder / "encoder.onnx", copy)
    assert len(list_files(folder)) == 1


@pytest.mark.parametrize("fault", ["empty", "short", "cut", "changed", "refused"])
def test_a_damaged_file_counts_as_missing_and_is_replaced(
    fault: str, tiny_encoder_folder: Path, folder: Path, builds: list[str]
) -> None:
    expected = load(tiny_encoder_folder).encode_squares(SQUARES)
    (file,) = list_files(folder)
    whole = file.read_bytes()
    garbage = b"no graph" * 1000
    faults = {
        "empty": b"",
        "short": whole[:10],
        "cut": whole[: len(whole) // 2],
        "changed": whole[:5000] + bytes([whole[5000] ^ 1]) + whole[5001:],
        "refused": garbage + hashlib.sha256(garbage).digest(),
    }
    file.unlink()  # a process may have it mapped
    file.write_bytes(faults[fault])
    np.testing.assert_array_equal(load(tiny_encoder_folder).encode_squares(SQUARES), expected)
    assert len(builds) == 2
    load(tiny_encoder_folder)
    assert len(builds) == 2


def test_another_setting_or_version_has_its_own_file(
    tiny_encoder_folder: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load(tiny_encoder_folder, precision="fp32")
    load_encoder(tiny_encoder_folder, engine="openvino", precision="fp32", num_threads=2)
    monkeypatch.setattr(compiled, "FORMAT", 0)
    load(tiny_encoder_folder, precision="fp32")
    monkeypatch.setattr("openvino.get_version", lambda: "another")
    load(tiny_encoder_folder, precision="fp32")
    assert len(list_files(folder)) == 4


def test_a_cache_that_cannot_be_written_to_costs_time_only(
    tiny_encoder_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "file"))
    assert load(tiny_encoder_folder).encode_squares(SQUARES).shape[0] == 5
    monkeypatch.setenv(CACHE_VARIABLE, "~no-such-user/cache")
    assert load(tiny_encoder_folder).encode_squares(SQUARES).shape[0] == 5


def test_what_was_used_longest_ago_goes_first(
    tiny_encoder_folder: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load(tiny_encoder_folder)
    (first,) = list_files(folder)
    num_bytes = first.stat().st_size
    unfinished = folder / "unfinished.blob.1.2"  # of a process that was killed
    unfinished.write_bytes(b"x")
    os.utime(unfinished, (1, 1))
    os.utime(first, (2, 2))
    load(tiny_encoder_folder)
    assert first.stat().st_mtime > 2  # it was used
    os.utime(first, (2, 2))
    monkeypatch.setattr(compiled, "MAX_BYTES", 2 * num_bytes - 1)
    load_encoder(tiny_encoder_folder, engine="openvino", num_threads=2)
    (second,) = list_files(folder)
    assert second != first
    monkeypatch.setattr(compiled, "MAX_BYTES", 10)
    load(tiny_encoder_folder)
    assert list_files(folder) == [second]  # a file that is too large alone drops no other
