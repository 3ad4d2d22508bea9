"""Files that are written beside what a command prints."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from vitrieve.cli.files import FileToWrite, write_files
from vitrieve.cli.main import main
from vitrieve.errors import ArtifactError, ConfigError, DataError
from vitrieve.writing import check_files


def test_check_files_refuses_what_cannot_be_written(tmp_path: Path, refuse_writing: Callable[[Path], None]) -> None:
    check_files(None, tmp_path / "a.csv")
    with pytest.raises(ConfigError, match="is a folder; name a file in it"):
        check_files(tmp_path / "a.csv", tmp_path)
    with pytest.raises(ConfigError, match="there is no folder"):
        check_files(tmp_path / "nowhere" / "a.csv")
    check_files(tmp_path / "nowhere" / "at" / "all" / "a.csv", is_folder_made=True)
    (tmp_path / "file").touch()
    with pytest.raises(ArtifactError, match="is a file; name a folder"):
        check_files(tmp_path / "file" / "deep" / "a.csv", is_folder_made=True)
    refuse_writing(tmp_path)
    check_files(None)
    with pytest.raises(ArtifactError, match="which is read-only for this user"):
        check_files(tmp_path / "nowhere" / "a.csv", is_folder_made=True)
    with pytest.raises(ArtifactError, match="which is read-only for this user"):
        check_files(tmp_path / "a.csv")


@pytest.mark.parametrize(
    "words",
    [
        ("map", "--index", "NOWHERE", "--html", "FOLDER"),
        ("map", "--index", "NOWHERE", "--parquet", "FOLDER"),
        ("search", "--index", "NOWHERE", "a.jpg", "--html", "FOLDER"),
        ("explain", "--index", "NOWHERE", "a.jpg", "--out", "FOLDER"),
        ("runs", "NOWHERE", "--html", "FOLDER"),
        ("feedback", "--index", "NOWHERE", "--out", "FOLDER"),
        ("duplicates", "NOWHERE", "--html", "FOLDER"),
        ("data", "audit", "--data", "NOWHERE", "--csv", "FOLDER"),
    ],
)
def test_a_file_is_checked_before_anything_is_read(
    words: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is to be read is not there, and yet the message is about what is to be written."""
    (tmp_path / "folder.png").mkdir()
    places = {"NOWHERE": str(tmp_path / "nowhere"), "FOLDER": str(tmp_path / "folder.png")}
    assert main([places.get(word, word) for word in words]) == 2
    assert "folder.png is a folder; name a file in it" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words",
    [
        ("embed", "--encoder", "ENCODER", "--data", "PICTURES", "--out", "FOLDER"),
        ("train", "small", "--data", "PHOTOGRAPHS", "--out", "FOLDER"),
        ("sync", "PICTURES", "--encoder", "ENCODER", "--index", "FOLDER"),
    ],
)
def test_a_folder_whose_name_is_no_text_is_refused_before_the_work(
    words: tuple[str, ...],
    tiny_encoder_folder: Path,
    picture_folder: Path,
    photographs: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    places = {"ENCODER": tiny_encoder_folder, "PICTURES": picture_folder, "FOLDER": folder}
    places["PHOTOGRAPHS"] = photographs
    assert main([str(places.get(word, word)) for word in words]) == 2
    error = capsys.readouterr().err
    assert error.splitlines()[-1].endswith("libraries that write there take text alone; give a folder elsewhere.")
    assert "embed: " not in error
    assert not folder.exists()


def test_write_files_writes_the_others_and_raises_the_first_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(path: Path) -> None:
        raise PermissionError(13, "Permission denied")

    def fail(path: Path) -> None:
        raise DataError("second")

    written = tmp_path / "written.csv"
    with pytest.raises(PermissionError):
        write_files(
            FileToWrite("page", tmp_path / "a.html", refuse),
            FileToWrite("page", tmp_path / "b.html", fail),
            FileToWrite("page", None, fail),
            FileToWrite("table", written, Path.touch),
        )
    assert written.exists()
    first, second = capsys.readouterr().err.splitlines()
    assert first.endswith(f"not written: {tmp_path / 'b.html'}: second")
    assert second.endswith(f"table: {written}")
