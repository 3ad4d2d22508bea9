from __future__ import annotations

import errno
import json
import os
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
    is_partial,
    prepare_folder,
    read_manifest,
    reopen_folder,
    replacing_folder,
    write_manifest,
)
from vitrieve.cli.main import COMMANDS
from vitrieve.errors import ArtifactError


def make_finished(folder: Path, kind: Kind = "index") -> None:
    prepare_folder(folder, kind=kind)
    (folder / "content").write_text("old")
    write_manifest(folder, kind, {"num_vectors": 3})


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


def test_trap_overwriting_and_resuming_goes_on_with_what_is_begun(tmp_path: Path) -> None:
    """A stopped command with ``--overwrite`` says to run it again with ``--resume``: that keeps what it has made."""
    make_partial(tmp_path / "a", "index")
    prepare_folder(tmp_path / "a", kind="index", is_overwrite=True, is_resume=True)
    assert (tmp_path / "a" / "content").read_text() == "old"
    with replacing_folder(tmp_path / "a", kind="index", is_overwrite=True, is_resume=True) as folder:
        assert (folder / "content").read_text() == "old"
        write_manifest(folder, "index", {})
    prepare_folder(tmp_path / "a", kind="index", is_overwrite=True, is_resume=True)
    assert not (tmp_path / "a" / "content").exists()  # a finished one is replaced


@pytest.mark.parametrize("is_folder", [False, True])
def test_trap_the_mark_of_another_program_makes_no_folder_ours(is_folder: bool, tmp_path: Path) -> None:
    mark = tmp_path / "photos" / ".partial"
    mark.parent.mkdir()
    mark.mkdir() if is_folder else mark.write_text("of another program")  # as rsync --partial-dir=.partial
    (tmp_path / "photos" / "1.jpg").touch()
    for flags in ({}, {"is_overwrite": True}, {"is_resume": True}):
        with pytest.raises(ArtifactError, match="holds other files"):
            prepare_folder(tmp_path / "photos", kind="index", **flags)
    assert (tmp_path / "photos" / "1.jpg").exists()


def test_a_finished_artifact_beside_the_mark_of_another_program_is_reopened_or_refused(tmp_path: Path) -> None:
    make_finished(tmp_path / "a")
    (tmp_path / "a" / ".partial").write_text("of another program")
    reopen_folder(tmp_path / "a")
    assert is_partial(tmp_path / "a")
    make_finished(tmp_path / "b")
    (tmp_path / "b" / ".partial").mkdir()
    with pytest.raises(ArtifactError, match="is a folder of another program"):
        reopen_folder(tmp_path / "b")
    assert read_manifest(tmp_path / "b", "index")["num_vectors"] == 3


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
