from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from vitrieve.artifacts import check_replacing, prepare_folder, write_manifest
from vitrieve.errors import ArtifactError
from vitrieve.folders import copy_folder, locking_folder


def test_copy_folder_copies_all_but_modes(tmp_path: Path, make_read_only: Callable[[Path], None]) -> None:
    source, copy = tmp_path / "source", tmp_path / "copy"
    (source / "text").mkdir(parents=True)
    for name in ("manifest.json", "weights", "text/manifest.json"):
        (source / name).write_text(name)
    make_read_only(source)
    copy_folder(source, copy, left_out=("manifest.json",))
    assert {path.relative_to(copy).as_posix() for path in copy.rglob("*")} == {"weights", "text", "text/manifest.json"}
    assert (copy / "text" / "manifest.json").read_text() == "text/manifest.json"
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "file").touch()
    for path in (copy, *copy.rglob("*")):
        like = tmp_path / "new" if path.is_dir() else tmp_path / "new" / "file"
        # The mode tells, because root may write everywhere.
        assert path.stat().st_mode == like.stat().st_mode, path


def test_copy_folder_into_the_folder_itself_ends(tmp_path: Path) -> None:
    (tmp_path / "deep" / "copy").mkdir(parents=True)
    (tmp_path / "file").touch()
    copy_folder(tmp_path, tmp_path / "deep" / "copy")
    assert [path.name for path in (tmp_path / "deep" / "copy").iterdir()] == ["file"]


@pytest.mark.parametrize("is_mount", [False, True])
def test_a_folder_that_is_written_is_locked_and_a_killed_process_leaves_no_lock(
    tmp_path: Path, is_mount: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "new" / "run"
    if is_mount:
        folder.mkdir(parents=True)
        monkeypatch.setattr("os.path.ismount", lambda path: path == folder)
    with locking_folder(folder):
        check_replacing(folder, kind="run")  # the lock is nothing that stands in the way
        with (
            pytest.raises(ArtifactError, match=rf"run is being written by another process \(process {os.getpid()} on "),
            locking_folder(folder / ".." / "run"),
        ):
            pass
    if not is_mount:
        assert not (tmp_path / "new").exists()
    assert not list(tmp_path.rglob("*lock"))
    program = (
        "import sys, time\nfrom pathlib import Path\nfrom vitrieve.folders import locking_folder\n"
        "with locking_folder(Path(sys.argv[1])):\n    print('locked', flush=True)\n    time.sleep(120)"
    )
    killed = tmp_path / "killed"
    with subprocess.Popen([sys.executable, "-c", program, str(killed)], stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline().strip() == b"locked"
        with pytest.raises(ArtifactError, match=f"process {holder.pid} on "), locking_folder(killed):
            pass
        holder.kill()
    with locking_folder(killed):
        assert [path.name for path in tmp_path.glob(".*")] == [".killed.lock"]
    assert not list(tmp_path.glob(".*"))


def test_a_lock_within_a_folder_outlasts_overwriting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "run"
    (folder / "state").mkdir(parents=True)
    (folder / "state" / "1.pt").write_bytes(b"old")
    write_manifest(folder, "run", {})
    monkeypatch.setattr("os.path.ismount", lambda path: path == folder)
    with locking_folder(folder):
        prepare_folder(folder, kind="run", is_overwrite=True)
        assert not (folder / "state").exists()
        with pytest.raises(ArtifactError, match="is being written"), locking_folder(folder):
            raise AssertionError
    assert not list(tmp_path.rglob("*lock"))


def test_a_disk_without_locks_is_told_and_stops_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(descriptor: int) -> bool:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("vitrieve.folders.try_lock", refuse)
    with locking_folder(tmp_path / "run"):
        assert "No locks available" in capsys.readouterr().err
