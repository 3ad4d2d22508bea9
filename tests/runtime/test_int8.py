"""int8: quantized on real pictures, and what load_encoder makes of it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import pytest

from vitrieve.artifacts import read_manifest
from vitrieve.data.decode import read_image_bytes
from vitrieve.data.preprocess import Preprocessing, to_square
from vitrieve.errors import ArtifactError, ConfigError, FingerprintError
from vitrieve.model.artifact import INT8_NAMES, ONNX_NAME, read_spec
from vitrieve.model.export import export_folder
from vitrieve.runtime import int8
from vitrieve.runtime.encoder import load_encoder
from vitrieve.runtime.int8 import MIN_COSINE, quantize_folder

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore"),  # NNCF and what it imports warn of each other
]


@pytest.fixture(scope="module", autouse=True)
def _needs_nncf() -> None:
    pytest.importorskip("openvino", reason="needs vitrieve[fast]")
    pytest.importorskip("nncf", reason="needs vitrieve[int8]")


def read_squares(folder: Path, preprocessing: Preprocessing) -> list[np.ndarray]:
    from vitrieve.data.decode import decode_image

    paths = sorted(folder.rglob("*.png"))
    return [to_square(decode_image(read_image_bytes(path)), preprocessing) for path in paths]


@pytest.fixture(scope="module")
def squares(tiny_encoder_folder: Path, class_folder: Path) -> list[np.ndarray]:
    return read_squares(class_folder, read_spec(tiny_encoder_folder).preprocessing)


@pytest.fixture(scope="module")
def quantized(tiny_encoder_folder: Path, squares: list[np.ndarray], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("quantized") / "encoder"
    shutil.copytree(tiny_encoder_folder, folder)
    assert quantize_folder(folder, squares) >= MIN_COSINE
    return folder


def test_int8_is_near_fp32_but_not_it(quantized: Path, squares: list[np.ndarray]) -> None:
    batch = np.stack(squares)
    short = load_encoder(quantized, precision="int8")
    exact = load_encoder(quantized, precision="fp32", engine="openvino")
    assert (short.engine, short.precision) == ("openvino", "int8")
    found, expected = short.encode_squares(batch), exact.encode_squares(batch)
    cosines = (found * expected).sum(axis=1)
    assert cosines.min() > 0.98
    assert not np.array_equal(found, expected)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)


def test_int8_has_the_fingerprint_of_its_encoder(quantized: Path, tiny_encoder_folder: Path) -> None:
    assert load_encoder(quantized, precision="int8").fingerprint == load_encoder(tiny_encoder_folder).fingerprint


def test_auto_does_not_take_int8(quantized: Path) -> None:
    assert load_encoder(quantized).precision != "int8"


def test_patch_tokens_of_int8_come_from_the_exported_graph(quantized: Path) -> None:
    pixels = np.zeros((1, 3, 32, 32), np.float32)
    exact = load_encoder(quantized, precision="fp32", engine="openvino").patch_tokens(pixels)
    assert load_encoder(quantized, precision="int8").patch_tokens(pixels).shape == exact.shape


@pytest.mark.parametrize("name", INT8_NAMES)
def test_trap_a_damaged_graph_is_refused(quantized: Path, tmp_path: Path, name: str) -> None:
    folder = tmp_path / "encoder"
    shutil.copytree(quantized, folder)
    data = bytearray((folder / name).read_bytes())
    data[len(data) // 2] ^= 1
    (folder / name).write_bytes(data)
    with pytest.raises(FingerprintError, match=name):
        load_encoder(folder, precision="int8")


@pytest.fixture(scope="module")
def quantized_again(
    quantized: Path, squares: list[np.ndarray], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, object]:
    """The folder of an encoder that was quantized twice, and the second graph, so that NNCF need not make it again."""
    folder = tmp_path_factory.mktemp("quantized_again") / "encoder"
    shutil.copytree(quantized, folder)
    quantize, graphs = int8._quantize, list[object]()

    def quantize_and_keep(*given: object) -> object:
        graphs.append(quantize(*given))  # type: ignore[arg-type]
        return graphs[0]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(int8, "_quantize", quantize_and_keep)
        quantize_folder(folder, squares[:3], "performance")
    return folder, graphs[0]


def test_quantizing_again_replaces_the_graph(quantized: Path, quantized_again: tuple[Path, object]) -> None:
    folder, _ = quantized_again
    before, after = read_manifest(quantized, "encoder"), read_manifest(folder, "encoder")
    assert before["sha256"][ONNX_NAME] == after["sha256"][ONNX_NAME]
    assert before["sha256"]["int8.xml"] != after["sha256"]["int8.xml"]
    assert sorted(path.name for path in folder.iterdir()) == sorted(path.name for path in quantized.iterdir())


@pytest.mark.parametrize("num_moved", [0, 1, 2])
def test_quantizing_again_stopped_at_any_file_leaves_an_encoder(
    quantized: Path,
    quantized_again: tuple[Path, object],
    squares: list[np.ndarray],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    num_moved: int,
) -> None:
    folder = tmp_path / "encoder"
    shutil.copytree(quantized, folder)
    monkeypatch.setattr(int8, "_quantize", lambda *_: quantized_again[1])
    replace, moved = int8.replacing_durably, list[Path]()

    def replace_until_stopped(path: Path) -> AbstractContextManager[Path]:
        if len(moved) == num_moved:
            raise KeyboardInterrupt
        moved.append(path)
        return replace(path)

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(int8, "replacing_durably", replace_until_stopped)
        patch.setattr(int8, "note_export", stop)
        with pytest.raises(KeyboardInterrupt):
            quantize_folder(folder, squares[:3], "performance")
    assert len(moved) == num_moved
    export_folder(folder)  # notes its own graph, not a mixture of old and new that lies beside it
    with pytest.raises(ArtifactError, match="vitrieve quantize"):
        load_encoder(folder, precision="int8")
    quantize_folder(folder, squares[:3], "performance")
    load_encoder(folder, precision="int8")


def test_int8_without_its_graph_says_how_to_make_it(tiny_encoder_folder: Path) -> None:
    with pytest.raises(ArtifactError, match="vitrieve quantize --encoder"):
        load_encoder(tiny_encoder_folder, precision="int8")


def test_int8_is_for_openvino(quantized: Path) -> None:
    for engine in ("onnx", "torch"):
        with pytest.raises(ConfigError, match="does not compute in 'int8'"):
            load_encoder(quantized, precision="int8", engine=engine)  # type: ignore[arg-type]


def test_a_read_only_folder_is_refused_before_the_work(
    tiny_encoder_folder: Path,
    squares: list[np.ndarray],
    monkeypatch: pytest.MonkeyPatch,
    refuse_writing: Callable[[Path], None],
) -> None:
    refuse_writing(tiny_encoder_folder)
    monkeypatch.setattr(int8, "_quantize", None)  # no work is begun
    with pytest.raises(ArtifactError, match="make the folder writable"):
        quantize_folder(tiny_encoder_folder, squares)


def test_quantize_needs_pictures_and_an_export(
    tiny_encoder_folder: Path, squares: list[np.ndarray], tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="at least one"):
        quantize_folder(tiny_encoder_folder, [])
    from vitrieve.model.encoder import read_encoder, save_encoder

    save_encoder(read_encoder(tiny_encoder_folder), tmp_path / "plain")
    with pytest.raises(ArtifactError, match="vitrieve export"):
        quantize_folder(tmp_path / "plain", squares)
