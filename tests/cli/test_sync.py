from __future__ import annotations

import json
import os
import pty
import shutil
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from vitrieve.cli.main import main
from vitrieve.runtime.encoder import Encoder, load_encoder
from vitrieve.syncing.watch import watch_changes


@pytest.fixture(scope="module")
def encoder(tiny_encoder_folder: Path) -> Encoder:
    """The tiny encoder, loaded once for all tests."""
    return load_encoder(tiny_encoder_folder, num_threads=1)


@pytest.fixture
def words(
    tiny_encoder_folder: Path,
    encoder: Encoder,
    picture_folder: Path,
    tmp_path: Path,
) -> Iterator[list[str]]:
    """The command that syncs an index with the folder of pictures, six of which are in the top folder ``drive``."""
    (picture_folder / "drive").mkdir()
    for number in range(6):
        (picture_folder / f"{number:02}.png").rename(picture_folder / "drive" / f"{number:02}.png")
    index, folder = str(tmp_path / "index"), str(tiny_encoder_folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vitrieve.syncing.session.load_index_encoder", lambda *args, **kwargs: encoder)
        yield ["sync", str(picture_folder), "--index", index, "--encoder", folder, "--num-threads", "1"]


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
    answer: bytes,
    status: int,
    num_left: int,
    words: list[str],
    picture_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(words) == 0
    shutil.rmtree(picture_folder / "drive")
    capsys.readouterr()
    ours, theirs = pty.openpty()
    os.write(ours, answer)  # the terminal keeps it until it is read
    with os.fdopen(theirs) as terminal, os.fdopen(os.dup(theirs), "w") as screen:
        monkeypatch.setattr("sys.stdin", terminal)
        monkeypatch.setattr("sys.stderr", screen)
        assert main(words) == status
        monkeypatch.undo()
        assert b"[y/N]" in os.read(ours, 65_536)
    os.close(ours)
    assert f"{num_left} images indexed" in capsys.readouterr().out


class Watch:
    """A watch in a thread of its own, and what it has printed."""

    def __init__(self, words: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
        self._stop = threading.Event()
        self._capsys, self._printed = capsys, ""
        monkeypatch.setattr("vitrieve.syncing.watch.watch_changes", partial(watch_changes, stop=self._stop))
        for name, value in (("RETRY_SECONDS", 0.1), ("DEBOUNCE_MS", 100), ("QUIET_MS", 20), ("TICK_MS", 50)):
            monkeypatch.setattr(f"vitrieve.syncing.watch.{name}", value)
        self._thread = threading.Thread(target=main, args=([*words, "--watch"],))

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *raised: object) -> None:
        self._stop.set()
        self._thread.join()

    def wait_for(self, text: str) -> str:
        """Wait until a text has been printed; return what was printed up to then since the last call."""
        while text not in self._printed:
            assert self._thread.is_alive(), self._printed
            self._printed += "".join(self._capsys.readouterr())
            self._stop.wait(0.01)
        before, _, self._printed = self._printed.partition(text)
        return before + text


@pytest.mark.parametrize("store", ["lance", "exact"])
def test_watch_survives_an_index_that_is_deleted(
    store: str, words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with Watch([*words, "--store", store], capsys, monkeypatch) as watch:
        watch.wait_for("watching")
        (tmp_path / "index").rename(tmp_path / "deleted")  # in one step: a watch that looks in between finds no damage
        watch.wait_for("index was deleted; it is made again.")
        watch.wait_for("12 images indexed; 12 embedded")
    assert main(["index", "--verify", "--out", str(tmp_path / "index")]) == 0
    assert "Traceback" not in capsys.readouterr().err


def test_watch_goes_on_when_a_full_disk_has_room(
    words: list[str],
    picture_folder: Path,
    mount_small_disk: Callable[[int], Path],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    disk = mount_small_disk(1 << 20)
    words[words.index("--index") + 1] = str(disk / "index")
    with Watch(words, capsys, monkeypatch) as watch:
        watch.wait_for("watching")
        free = os.statvfs(disk)
        (disk / "ballast").write_bytes(bytes(free.f_bavail * free.f_frsize))
        shutil.copytree(picture_folder / "drive", picture_folder / "copies")
        assert str(disk / "index") in watch.wait_for("the disk is full")
        watch.wait_for("bytes are free")
        (disk / "ballast").unlink()
        watch.wait_for("18 images indexed; 6 moved or copied")
    assert main(["index", "--verify", "--out", str(disk / "index")]) == 0


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
