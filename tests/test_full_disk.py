"""A full disk is one message that names the file and the bytes, and loses nothing. Small disks in memory need root."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from vitrieve.cli.main import main
from vitrieve.errors import DiskFullError
from vitrieve.writing import write_vectors_durably

NUM_PICTURES = 12
DISK_BYTES = 4 << 20


@pytest.fixture
def disk(mount_small_disk: Callable[[int], Path]) -> Path:
    """A disk of 4 MiB."""
    return mount_small_disk(DISK_BYTES)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, tiny_encoder_folder: Path, class_folder: Path) -> Path:
    """A folder with ``classes`` (a training and a test split) and ``embeddings``, made once."""
    folder = tmp_path_factory.mktemp("made")
    for split in ("train", "test"):
        shutil.copytree(class_folder, folder / "classes" / split)
    words = ["embed", "--encoder", tiny_encoder_folder, "--data", class_folder, "--out", folder / "embeddings"]
    assert run(*words) == 0
    return folder


def run(*words: object) -> int:
    return main(list(map(str, words)))


def fill(disk: Path, num_left: int) -> None:
    """Leave so many bytes free, a multiple of a page."""
    free = os.statvfs(disk)
    (disk / "ballast").write_bytes(b"x" * max(0, free.f_bavail * free.f_frsize - num_left))


def read_files(disk: Path) -> dict[str, bytes]:
    paths = [path for path in disk.rglob("*") if path.is_file() and path.name not in ("ballast", "writer.lock")]
    return {str(path.relative_to(disk)): path.read_bytes() for path in paths}


def assert_told(status: int, printed: str, place: Path) -> None:
    (message,) = [line for line in printed.splitlines() if line.startswith("error: ")]
    assert status == 2, printed
    assert str(place) in message
    assert "the disk is full" in message
    assert "bytes are free" in message
    assert "Traceback" not in printed


@pytest.mark.parametrize(
    ("words", "num_left", "file"),
    [
        ("reduce --encoder {encoder} --data folder:{made}/classes --embedding-dim 4 --out {disk}/out", 4_096, "out"),
        ("export --encoder {encoder} --out {disk}/out", 1 << 20, "out"),
        ("export --encoder {disk}/encoder", 4_096, "encoder/encoder.onnx"),
        # Releases of OpenVINO write graphs of different sizes, so the file that finds no room differs.
        ("quantize --encoder {disk}/encoder --data {made}/classes --num-images 2", 4_096, "encoder"),
        ("evaluate --encoder {encoder} --data folder:{made}/classes --out {disk}/out", 0, "out"),
        ("evaluate --encoder {encoder} --data folder:{made}/classes --out {disk}/out", 204_800, "out/report.html"),
        ("index --embeddings {made}/embeddings --store exact --out {disk}/out", 8_192, "out"),
        ("index --embeddings {made}/embeddings --out {disk}/out", 8_192, "out"),
        ("calibrate --index {disk}/index", 0, "index/threshold.json"),
        ("search --index {disk}/index --html {disk}/page.html {made}/classes/test/class0/0.png", 4_096, "page.html"),
        ("explain --index {disk}/index --out {disk}/match.png {made}/classes/test/class0/0.png", 0, "match.png"),
    ],
)
def test_a_full_disk_stops_a_command_with_one_message_and_loses_nothing(
    words: str,
    num_left: int,
    file: str,
    disk: Path,
    made: Path,
    tiny_encoder_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if "quantize" in words:
        pytest.importorskip("nncf", reason="needs vitrieve[int8]")
        monkeypatch.setattr("vitrieve.runtime.int8._quantize", lambda graph, pixels, preset: graph)
    if "{disk}/encoder" in words:
        shutil.copytree(tiny_encoder_folder, disk / "encoder")
    if "{disk}/index" in words:
        assert run("index", "--embeddings", made / "embeddings", "--out", disk / "index") == 0
    for name in ("page.html", "match.png"):
        (disk / name).write_text("what was there before")
    before = read_files(disk)
    fill(disk, num_left)
    capsys.readouterr()
    status = run(*words.format(disk=disk, made=made, encoder=tiny_encoder_folder).split())
    assert_told(status, capsys.readouterr().err, disk / file)
    after = read_files(disk)
    assert {name: after.get(name) for name in before} == before
    assert not (disk / "out" / "manifest.json").exists()


@pytest.mark.parametrize("store", ["lance", "exact"])
def test_an_index_that_met_a_full_disk_is_made_by_the_same_command(store: str, disk: Path, made: Path) -> None:
    words = ["index", "--embeddings", made / "embeddings", "--out", disk / "out", "--store", store]
    fill(disk, 8_192)
    assert run(*words) == 2
    (disk / "ballast").unlink()
    assert run(*words) == 0
    assert run("index", "--verify", "--index", disk / "out") == 0


@pytest.mark.parametrize("store", ["lance", "exact"])
def test_a_full_disk_stops_sync_with_one_message_and_loses_nothing(
    store: str, disk: Path, tiny_encoder_folder: Path, picture_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["sync", picture_folder, "--index", disk / "index", "--encoder", tiny_encoder_folder, "--store", store]
    assert run(*words, "--num-threads", 1) == 0
    shutil.copytree(picture_folder, picture_folder / "copies")
    fill(disk, 4_096)
    capsys.readouterr()
    assert_told(run(*words, "--num-threads", 1), capsys.readouterr().err, disk)
    (disk / "ballast").unlink()
    assert run(*words, "--num-threads", 1) == 0
    assert f"{2 * NUM_PICTURES} images indexed" in capsys.readouterr().out
    assert run("index", "--verify", "--index", disk / "index") == 0


def test_a_full_disk_stops_embed_with_one_message_and_it_can_be_resumed(
    disk: Path, tiny_encoder_folder: Path, picture_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["embed", "--encoder", tiny_encoder_folder, "--data", picture_folder, "--out", disk / "out"]
    fill(disk, 8_192)
    assert_told(run(*words, "--num-threads", 1), capsys.readouterr().err, disk / "out")
    (disk / "ballast").unlink()
    assert run(*words, "--resume", "--num-threads", 1) == 0
    assert f"{disk / 'out'}: {NUM_PICTURES} embeddings" in capsys.readouterr().out


def test_write_vectors_durably_keeps_the_old_file_when_the_disk_is_full(disk: Path) -> None:
    path = disk / "vectors.npy"
    old = np.arange(8, dtype=np.float32).reshape(2, 4)
    write_vectors_durably(path, (2, 4), [old[:1], old[1:]])
    np.testing.assert_array_equal(np.load(path), old)
    with pytest.raises(DiskFullError, match=r"vectors.npy .* the disk is full; 8,000,000 bytes are needed"):
        write_vectors_durably(path, (1_000, 2_000), [np.zeros((1_000, 2_000), dtype=np.float32)])
    np.testing.assert_array_equal(np.load(path), old)
    assert [one.name for one in disk.iterdir()] == ["vectors.npy"]
