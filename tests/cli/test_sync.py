from __future__ import annotations

import json
import os
import pty
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from vitrieve.cli.main import main


@pytest.fixture
def words(tiny_encoder_folder: Path, picture_folder: Path, tmp_path: Path) -> list[str]:
    """The command that syncs an index with the folder of pictures, six of which are in the top folder ``drive``."""
    (picture_folder / "drive").mkdir()
    for number in range(6):
        (picture_folder / f"{number:02}.png").rename(picture_folder / "drive" / f"{number:02}.png")
    index, encoder = str(tmp_path / "index"), str(tiny_encoder_folder)
    return ["sync", str(picture_folder), "--index", index, "--encoder", encoder, "--num-threads", "1"]


def test_sync_keeps_what_a_drive_held_that_is_off(
    words: list[str], picture_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 0
    (picture_folder / "drive").rename(tmp_path / "off")
    capsys.readouterr()
    assert main(words) == 1
    printed = capsys.readouterr()
    assert printed.out.endswith("12 images indexed; 6 vanished but kept\n")
    assert "6 of 12 images of the index have vanished" in printed.err
    assert "all of the folder drive" in printed.err
    assert "--allow-removals" in printed.err
    assert main([*words, "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert (report["num_indexed"], report["num_removed"], report["num_kept"]) == (12, 0, 6)
    assert report["held"] == {"num_images": 6, "num_indexed": 12, "folders": ["drive"]}
    (tmp_path / "off").rename(picture_folder / "drive")
    assert main(words) == 0
    assert capsys.readouterr().out.endswith("12 images indexed; nothing to do\n")
    shutil.rmtree(picture_folder / "drive")
    assert main([*words, "--allow-removals"]) == 0
    assert capsys.readouterr().out.endswith("6 images indexed; 6 removed\n")


@pytest.mark.parametrize(("answer", "status", "num_left"), [(b"y\n", 0, 6), (b"\n", 1, 12), (b"no\n", 1, 12)])
def test_sync_asks_a_person_at_a_terminal(
    answer: bytes, status: int, num_left: int, words: list[str], picture_folder: Path
) -> None:
    assert main(words) == 0
    shutil.rmtree(picture_folder / "drive")
    ours, theirs = pty.openpty()
    try:
        process = subprocess.Popen(
            [sys.executable, "-m", "vitrieve", *words], stdin=theirs, stderr=theirs, stdout=subprocess.PIPE, text=True
        )
        os.close(theirs)
        printed = b""
        while b"[y/N]" not in printed:
            printed += os.read(ours, 4096)
        os.write(ours, answer)
        out = process.communicate(timeout=60)[0]
    finally:
        os.close(ours)
    assert process.returncode == status
    assert f"{num_left} images indexed" in out


def test_watch_survives_an_index_that_is_deleted(words: list[str], tmp_path: Path) -> None:
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "vitrieve", *words, "--watch"], stdout=subprocess.PIPE, stderr=log, text=True
        )
    assert process.stdout is not None
    try:
        assert process.stdout.readline().endswith("12 images indexed; 12 embedded\n")
        while "watching" not in (tmp_path / "log").read_text():
            assert process.poll() is None
        shutil.rmtree(tmp_path / "index")
        assert process.stdout.readline().endswith("12 images indexed; 12 embedded\n")  # made again
        process.terminate()
        assert process.wait(60) == 0
        assert "Traceback" not in (tmp_path / "log").read_text()
        assert (tmp_path / "index" / "manifest.json").is_file()
    finally:
        process.kill()
        process.stdout.close()


def test_the_advice_on_a_damaged_state_works(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 0
    (tmp_path / "index" / "sync.sqlite").write_bytes(b"no database, but long enough to be taken for one" * 100)
    capsys.readouterr()
    assert main(words) == 2
    advice = capsys.readouterr().err
    assert "Delete it, and sync again with --adopt" in advice
    (tmp_path / "index" / "sync.sqlite").unlink()
    assert main([*words, "--adopt"]) == 0
    assert "12 images indexed; 12 embedded" in capsys.readouterr().out
    assert main(words) == 0
