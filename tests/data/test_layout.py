from __future__ import annotations

from pathlib import Path

import pytest

from vitrieve.data.layout import Row, check_relative, note_files, read_rows
from vitrieve.data.walk import walk_pictures
from vitrieve.errors import DataError


def test_walk_pictures_passes_over_hidden_files_and_circles(tmp_path: Path) -> None:
    for name in ("b/2.JPG", "b/._2.JPG", "a.jpg", "a.txt", ".hidden/3.jpg", "._b/4.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "b" / "up").symlink_to(tmp_path / "b")
    (tmp_path / "self").symlink_to(tmp_path / "self")
    assert walk_pictures(tmp_path).paths == ["a.jpg", "b/2.JPG"]


def test_walk_pictures_follows_a_linked_folder(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "1.jpg").write_bytes(b"x")
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "jpg").symlink_to(tmp_path / "real")
    assert walk_pictures(tmp_path / "root").paths == ["jpg/1.jpg"]


def test_note_files_accepts_listed_files_without_a_suffix(tmp_path: Path) -> None:
    (tmp_path / "ims").mkdir()
    (tmp_path / "ims" / "abc").write_bytes(b"x")
    assert note_files(["ims/abc"], tmp_path, "ims") == ()
    assert note_files(["ims/abc", "ims/d"], tmp_path, "ims") == ("1 of 2 listed images are missing: ims/d.",)


def test_note_files_names_only_the_first_few(tmp_path: Path) -> None:
    (note,) = note_files([f"jpg/{number}.jpg" for number in range(9)], tmp_path, "jpg")
    assert note == "9 of 9 listed images are missing: jpg/0.jpg, jpg/1.jpg, jpg/2.jpg, …."


def test_read_rows_keeps_line_numbers_across_empty_lines_and_a_byte_order_mark(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbf1 a\r\n\r\n 2\t b \r\n")
    assert read_rows(tmp_path / "a.txt", 2) == (Row(number=1, cells=("1", "a")), Row(number=3, cells=("2", "b")))


def test_read_rows_refuses_what_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"1 \xff\n")
    with pytest.raises(DataError, match="is not UTF-8 text"):
        read_rows(tmp_path / "a.txt", 2)
    with pytest.raises(DataError, match="cannot be read: No such file"):
        read_rows(tmp_path / "absent.txt", 2)


@pytest.mark.parametrize("path", ["", "/a", "../a", "a/../../b", "a\0b"])
def test_check_relative_refuses_paths_that_lead_out(path: str) -> None:
    with pytest.raises(DataError, match=r"here: .* is not a path inside"):
        check_relative(path, "here")
    assert check_relative("a/b..c.jpg", "here") == "a/b..c.jpg"
