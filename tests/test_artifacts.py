from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import pytest

from vitrieve import __version__
from vitrieve.artifacts import (
    FORMAT_VERSION,
    MANIFEST_NAME,
    Kind,
    check_folder,
    check_replacing,
    prepare_folder,
    read_manifest,
    reopen_folder,
    replacing_folder,
    write_manifest,
)
from vitrieve.cli.main import COMMANDS
from vitrieve.errors import ArtifactError, DiskFullError
from vitrieve.folders import copy_folder, locking_folder
from vitrieve.writing import check_writable, replacing_durably, write_bytes_durably, write_text_durably


def make_finished(folder: Path, kind: Kind = "index") -> None:
    prepare_folder(folder, kind=kind)
    (folder / "content").write_text("old")
    write_manifest(folder, kind, {"num_vectors": 3})


def test_a_read_only_folder_is_refused_and_so_is_what_would_be_made_in_it(
    tmp_path: Path, refuse_writing: Callable[[Path], None]
) -> None:
    for folder in (tmp_path, tmp_path / "new" / "er"):
        check_writable(folder)
    refuse_writing(tmp_path)
    for folder in (tmp_path, tmp_path / "new" / "er"):
        with pytest.raises(ArtifactError, match="which is read-only for this user; make the folder writable"):
            check_writable(folder)
    assert not (tmp_path / "new").exists()


def make_partial(folder: Path, kind: Kind | None = None) -> None:
    prepare_folder(folder, kind=kind)
    (folder / "content").write_text("old")


def test_prepare_folder_makes_missing_parents(tmp_path: Path) -> None:
    prepare_folder(tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b").is_dir()


def test_prepare_folder_accepts_an_empty_folder(tmp_path: Path) -> None:
    prepare_folder(tmp_path)


def test_prepare_folder_refuses_a_finished_artifact(tmp_path: Path) -> None:
    make_finished(tmp_path / "a")
    for is_resume in (False, True):
        with pytest.raises(ArtifactError, match="--overwrite"):
            prepare_folder(tmp_path / "a", is_resume=is_resume)
    assert (tmp_path / "a" / "content").read_text() == "old"


def test_prepare_folder_overwrites_when_asked(tmp_path: Path) -> None:
    for name, make in {"a": make_finished, "b": make_partial}.items():
        make(tmp_path / name)
        prepare_folder(tmp_path / name, is_overwrite=True)
        assert not (tmp_path / name / "content").exists()
        with pytest.raises(ArtifactError, match="unfinished"):
            read_manifest(tmp_path / name, "index")


def test_resuming_is_advised_where_the_caller_can(tmp_path: Path) -> None:
    make_partial(tmp_path / "a", "run")
    for settings, is_advised in (({}, False), ({"is_resumable": True}, True)):
        with pytest.raises(ArtifactError, match="--overwrite to start again") as caught:
            check_replacing(tmp_path / "a", kind="run", **settings)
        assert ("--resume" in str(caught.value)) == is_advised


def test_a_file_is_not_taken_for_a_read_only_folder(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    with pytest.raises(ArtifactError, match=r"notes\.txt is a file; name a folder"):
        check_writable(tmp_path / "notes.txt" / "sub")


def test_what_cannot_be_written_is_refused_before_the_work(
    tmp_path: Path, refuse_writing: Callable[[Path], None]
) -> None:
    check_replacing(tmp_path / "new" / "er")
    (tmp_path / "notes.txt").touch()
    with pytest.raises(ArtifactError, match=r"notes\.txt is a file"):
        check_replacing(tmp_path / "notes.txt" / "new")
    refuse_writing(tmp_path)
    with pytest.raises(ArtifactError, match="which is read-only for this user"):
        check_replacing(tmp_path / "new" / "er")


@pytest.mark.parametrize("is_within", [False, True], ids=["of its own", "of the folder worked in"])
def test_a_folder_whose_name_is_no_text_is_refused_and_not_made(
    is_within: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    if is_within:  # LanceDB spells it whole
        folder.mkdir()
        monkeypatch.chdir(folder)
        folder = Path("run")
    for prepare in (check_folder, check_replacing, prepare_folder):
        with pytest.raises(ArtifactError, match=r"the whole name .*caf\\udce9.* is not UTF-8"):
            prepare(folder)
    with pytest.raises(ArtifactError, match="is not UTF-8"), replacing_folder(folder):
        pass
    assert list(Path.cwd().iterdir() if is_within else tmp_path.iterdir()) == []


@pytest.mark.parametrize("make", [make_finished, make_partial])
@pytest.mark.parametrize("settings", [{"is_overwrite": True}, {"is_resume": True}])
def test_trap_a_wrong_folder_does_not_cost_an_artifact_of_another_kind(
    make: Callable[..., None], settings: dict[str, bool], tmp_path: Path
) -> None:
    make(tmp_path / "a", "index")
    for prepare in (prepare_folder, check_replacing, lambda *a, **k: replacing_folder(*a, **k).__enter__()):
        with pytest.raises(ArtifactError, match="holds an artifact of kind 'index', which one of kind 'run' does not"):
            prepare(tmp_path / "a", kind="run", **settings)
        assert (tmp_path / "a" / "content").read_text() == "old"
        assert [path.name for path in tmp_path.iterdir()] == ["a"]
    if make is make_finished and "is_resume" in settings:
        return
    with replacing_folder(tmp_path / "a", kind="index", **settings) as folder:
        (folder / "content").write_text("new")
        write_manifest(folder, "index", {})
    assert (tmp_path / "a" / "content").read_text() == "new"


def test_an_artifact_that_is_reopened_is_still_of_its_kind(tmp_path: Path) -> None:
    make_finished(tmp_path / "a")
    reopen_folder(tmp_path / "a")
    with pytest.raises(ArtifactError, match="kind 'index'"):
        prepare_folder(tmp_path / "a", kind="run", is_overwrite=True)
    prepare_folder(tmp_path / "a", kind="index", is_resume=True)


def test_prepare_folder_keeps_a_partial_artifact_on_resume(tmp_path: Path) -> None:
    make_partial(tmp_path / "a")
    with pytest.raises(ArtifactError, match="--resume"):
        prepare_folder(tmp_path / "a")
    prepare_folder(tmp_path / "a", is_resume=True)
    assert (tmp_path / "a" / "content").read_text() == "old"


def test_prepare_folder_advises_no_resume_where_there_is_none(tmp_path: Path) -> None:
    make_partial(tmp_path / "a")
    with pytest.raises(ArtifactError, match="--overwrite") as caught:
        prepare_folder(tmp_path / "a", is_resumable=False)
    assert "--resume" not in str(caught.value)


@pytest.mark.parametrize("name", ["thesis.txt", "manifest.json"])
def test_prepare_folder_never_empties_a_folder_of_others(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text('{"name": "a web page", "icons": []}')
    for is_overwrite in (False, True):
        with pytest.raises(ArtifactError, match="other files"):
            prepare_folder(tmp_path, is_overwrite=is_overwrite)
    assert (tmp_path / name).exists()


def test_prepare_folder_refuses_a_file(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("")
    with pytest.raises(ArtifactError, match="is a file"):
        prepare_folder(tmp_path / "a", is_overwrite=True)


def test_read_manifest_returns_what_was_written(tmp_path: Path) -> None:
    make_finished(tmp_path / "a")
    manifest = read_manifest(tmp_path / "a", "index")
    assert manifest["num_vectors"] == 3
    assert manifest["vitrieve_version"] == __version__


def test_read_manifest_refuses_what_does_not_fit(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"does not exist; .* 'index' \(made by vitrieve index, sync or up\)"):
        read_manifest(tmp_path / "nothing", "index")
    with pytest.raises(ArtifactError, match=r"\(made by vitrieve index, sync or up\), but .* is not one"):
        read_manifest(tmp_path, "index")
    make_finished(tmp_path / "a")
    with pytest.raises(ArtifactError, match=r"of kind 'index'; expected .* 'run' \(made by vitrieve train\)"):
        read_manifest(tmp_path / "a", "run")


@pytest.mark.parametrize("kind", get_args(Kind))
def test_read_manifest_advises_resuming_where_the_command_can(tmp_path: Path, kind: Kind) -> None:
    make_partial(tmp_path / "a", kind)
    with pytest.raises(ArtifactError, match="is unfinished") as caught:
        read_manifest(tmp_path / "a", kind)
    made_by = str(caught.value).partition("(made by vitrieve ")[2].partition(")")[0]
    command = COMMANDS[made_by.partition(",")[0].partition(" or ")[0].partition(" --")[0]]
    assert ("with --resume" in str(caught.value)) == (command.is_resumable and kind != "encoder")


@pytest.mark.parametrize("text", ["", "{", "[]", "3", '{"kind": "index"}', '{"kind": "index", "format_version": "x"}'])
def test_read_manifest_refuses_damage(tmp_path: Path, text: str) -> None:
    (tmp_path / MANIFEST_NAME).write_text(text)
    with pytest.raises(ArtifactError, match="damaged"):
        read_manifest(tmp_path, "index")


def test_read_manifest_refuses_a_newer_format(tmp_path: Path) -> None:
    (tmp_path / MANIFEST_NAME).write_text(json.dumps({"kind": "index", "format_version": FORMAT_VERSION + 1}))
    with pytest.raises(ArtifactError, match="newer vitrieve"):
        read_manifest(tmp_path, "index")


def test_write_text_durably_replaces_whole_files(tmp_path: Path) -> None:
    write_text_durably(tmp_path / "a", "long old text")
    write_text_durably(tmp_path / "a", "new")
    assert (tmp_path / "a").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_write_bytes_durably_on_a_full_disk_names_file_and_bytes_and_keeps_the_old_content(
    mount_small_disk: Callable[[int], Path],
) -> None:
    path = mount_small_disk(65_536) / "weights"
    write_bytes_durably(path, b"old")
    with pytest.raises(
        DiskFullError,
        match=r"weights cannot be written: the disk is full; 100,000 bytes are needed, ",
    ):
        write_bytes_durably(path, bytes(100_000))
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in path.parent.iterdir()] == ["weights"]


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
        assert path.stat().st_mode == like.stat().st_mode, (
            path
        )  # root may write everywhere, so it is the mode that tells


def test_copy_folder_into_the_folder_itself_ends(tmp_path: Path) -> None:
    (tmp_path / "deep" / "copy").mkdir(parents=True)
    (tmp_path / "file").touch()
    copy_folder(tmp_path, tmp_path / "deep" / "copy")
    assert [path.name for path in (tmp_path / "deep" / "copy").iterdir()] == ["file"]


def write_half(path: Path) -> None:
    with replacing_durably(path) as temporary:
        temporary.write_bytes(b"new")
        raise RuntimeError("no graph")


def test_replacing_durably_removes_the_temporary_file_of_a_block_that_fails(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"old")
    with pytest.raises(RuntimeError, match="no graph"):
        write_half(tmp_path / "file")
    assert [entry.read_bytes() for entry in tmp_path.iterdir()] == [b"old"]


def test_a_folder_where_a_file_is_to_be_written_is_named_and_stays(tmp_path: Path) -> None:
    (tmp_path / "page.html").mkdir()
    with pytest.raises(ArtifactError, match=r"page\.html is a folder; give the name of a file"):
        write_text_durably(tmp_path / "page.html", "new")
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]


def test_a_disk_without_a_free_block_can_still_be_cleared_by_overwriting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An empty mark needs no block; the name of the kind in it is given up."""
    make_finished(tmp_path / "a", "index")

    def refuse(path: Path, *_: object, **__: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(Path, "write_text", refuse)
    prepare_folder(tmp_path / "a", kind="index", is_overwrite=True)
    assert not (tmp_path / "a" / "content").exists()
    monkeypatch.undo()
    prepare_folder(tmp_path / "a", kind="index", is_resume=True)


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
