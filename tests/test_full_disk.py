"""A full disk is one message that names the file and the bytes, and loses nothing. Small disks in memory need root."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from vitrieve.artifacts import write_vectors_durably
from vitrieve.errors import DiskFullError

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount a small disk")
NUM_PICTURES = 12


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 240 KB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=240k", "tmpfs", str(folder)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("this machine lets even root mount nothing")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(disk: Path, num_left: int) -> None:
    """Leave so many bytes free."""
    free = os.statvfs(disk)
    (disk / "ballast").write_bytes(b"x" * max(0, free.f_bavail * free.f_frsize - num_left))


def run(*words: object) -> subprocess.CompletedProcess[str]:
    """Run ``vitrieve`` in a process of its own, which a memory map of a full disk would kill."""
    command = [sys.executable, "-m", "vitrieve", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


def assert_told(done: subprocess.CompletedProcess[str], place: Path) -> None:
    (message,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.returncode == 2, done.stderr
    assert str(place) in message
    assert "the disk is full" in message
    assert "bytes are free" in message
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("store", ["lance", "exact"])
def test_a_full_disk_stops_sync_with_one_message_and_loses_nothing(
    store: str, disk: Path, tiny_encoder_folder: Path, picture_folder: Path
) -> None:
    words = ["sync", picture_folder, "--index", disk / "index", "--encoder", tiny_encoder_folder, "--store", store]
    assert run(*words, "--num-threads", 1).returncode == 0
    (picture_folder / "copies").mkdir()
    for number in range(NUM_PICTURES):
        (picture_folder / "copies" / f"{number:02}.png").write_bytes((picture_folder / f"{number:02}.png").read_bytes())
    fill(disk, 4_096)
    assert_told(run(*words, "--num-threads", 1), disk)
    (disk / "ballast").unlink()
    assert f"{2 * NUM_PICTURES} images indexed" in run(*words, "--num-threads", 1).stdout
    assert run("index", "--verify", "--out", disk / "index").returncode == 0


def test_a_full_disk_stops_embed_with_one_message_and_it_can_be_resumed(
    disk: Path, tiny_encoder_folder: Path, picture_folder: Path
) -> None:
    words = ["embed", "--encoder", tiny_encoder_folder, "--images", picture_folder, "--out", disk / "out"]
    fill(disk, 8_192)
    assert_told(run(*words, "--num-threads", 1), disk / "out")
    (disk / "ballast").unlink()
    done = run(*words, "--resume", "--num-threads", 1)
    assert done.stdout.startswith(f"{disk / 'out'}: {NUM_PICTURES} embeddings"), done.stderr


def test_write_vectors_durably_keeps_the_old_file_when_the_disk_is_full(disk: Path) -> None:
    path = disk / "vectors.npy"
    old = np.arange(8, dtype=np.float32).reshape(2, 4)
    write_vectors_durably(path, (2, 4), [old[:1], old[1:]])
    np.testing.assert_array_equal(np.load(path), old)
    with pytest.raises(DiskFullError, match=r"vectors.npy .* the disk is full; 400,000 bytes are needed"):
        write_vectors_durably(path, (1_000, 100), [np.zeros((1_000, 100), dtype=np.float32)])
    np.testing.assert_array_equal(np.load(path), old)
    assert [one.name for one in disk.iterdir()] == ["vectors.npy"]
