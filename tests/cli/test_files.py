"""Files that are written beside what a command prints."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from vitrieve.cli.files import FileToWrite, check_files, write_files
from vitrieve.errors import ArtifactError, ConfigError, DataError


def test_check_files_refuses_what_cannot_be_written(tmp_path: Path, refuse_writing: Callable[[Path], None]) -> None:
    check_files(None, tmp_path / "a.csv")
    with pytest.raises(ConfigError, match="is a folder; name a file in it"):
        check_files(tmp_path / "a.csv", tmp_path)
    with pytest.raises(ConfigError, match="there is no folder"):
        check_files(tmp_path / "nowhere" / "a.csv")
    refuse_writing(tmp_path)
    check_files(None)
    with pytest.raises(ArtifactError, match="which is read-only for this user"):
        check_files(tmp_path / "a.csv")


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
