from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from vitrieve.artifacts import check_replacing
from vitrieve.errors import ArtifactError, ConfigError, DiskFullError
from vitrieve.writing import check_files, check_writable, replacing_durably, write_bytes_durably, write_text_durably


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


def test_trap_what_is_read_is_not_written_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = tmp_path / "catalogue.csv"
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"catalogue\.csv is read, and would be lost"):
        check_files(None, Path("catalogue.csv"), read=table)
    with pytest.raises(ConfigError, match=r"two files would be .*a\.html"):
        check_files(Path("a.html"), tmp_path / "a.html")
    check_files(tmp_path / "a.html", tmp_path / "a.csv", None, read=table)
    check_files(Path(os.devnull), Path(os.devnull), read=table)
    with pytest.raises(ConfigError, match="is a folder; name a file in it"):
        check_files(tmp_path, read=tmp_path)


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
