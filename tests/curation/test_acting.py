"""Moving, linking and undoing: nothing is lost, whatever happens in between."""

from __future__ import annotations

import errno
import os
import shutil
import stat
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from vitrieve import duplicates, link_duplicates, move_duplicates, undo_duplicates
from vitrieve.errors import ArtifactError, DataError, DiskFullError
from vitrieve.writing import sync_file

EXTRAS = ["0.png", "more/same_file.png"]


def read_tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_moving_keeps_the_best_and_undo_brings_all_back(album: Path, tmp_path: Path) -> None:
    before = read_tree(album)
    acted = move_duplicates(duplicates(album, level="exact"), tmp_path / "extra")
    assert (sorted(acted.done), acted.skipped) == (EXTRAS, ())
    assert read_tree(album) == {name: data for name, data in before.items() if name not in EXTRAS}
    assert (tmp_path / "extra" / "more" / "same_file.png").read_bytes() == before["more/same_file.png"]
    undone = undo_duplicates(tmp_path / "extra" / "undo.json")
    assert len(undone.done) == 2
    assert read_tree(album) == before
    assert not acted.undo_file.exists()


@pytest.mark.parametrize("name", ["{}.gif", "{}.tif", "{}.webp", "{}.png"])
def test_files_of_several_pictures_are_copies_only_as_whole_files(tmp_path: Path, name: str) -> None:
    album = tmp_path / "album"
    album.mkdir()
    pages = [Image.new("RGB", (40, 30), color) for color in ("red", "lime", "blue")]
    for one, others in (("a", pages[1:]), ("b", pages[2:]), ("c", pages[1:])):
        pages[0].save(album / name.format(one), save_all=True, append_images=others, lossless=True)
    first, other, same = (name.format(one) for one in "abc")
    report = duplicates(album, level="exact")
    assert [set(group.image_ids) for group in report.groups] == [{first, same}]
    # A similarity is of the first pictures alone, so another level finds all three; only the same bytes go.
    group = replace(report.groups[0], image_ids=(first, other, same), similarities=(1.0,) * 3, keep=first)
    records = {name: replace(report.records[first], image_id=name, path=album / name) for name in (first, other, same)}
    acted = move_duplicates(replace(report, groups=(group,), records=records), tmp_path / "extra")
    assert acted.done == (same,)
    assert acted.skipped == ((other, "it holds several pictures, of which only the first was compared"),)


def test_a_second_writer_is_refused_and_undo_writes_over_nothing(album: Path, tmp_path: Path) -> None:
    report = duplicates(album, level="exact")
    move_duplicates(report, tmp_path / "extra")
    with pytest.raises(ArtifactError, match="belongs to another command"):
        move_duplicates(report, tmp_path / "extra")
    assert move_duplicates(report, tmp_path / "other").done == ()  # the files are gone already
    (album / "0.png").write_bytes(b"new")
    undone = undo_duplicates(tmp_path / "extra" / "undo.json")
    assert [Path(path).name for path in undone.done] == ["same_file.png"]
    assert undone.skipped == ((str(album / "0.png"), "another file stands in its place"),)
    assert (album / "0.png").read_bytes() == b"new"
    (album / "0.png").unlink()
    assert undo_duplicates(tmp_path / "extra" / "undo.json").skipped == ()


def test_a_kill_between_two_files_can_be_undone(album: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = read_tree(album)
    moved: list[Path] = []

    rename = os.rename

    def move_one(source: Path, target: Path) -> None:
        if moved:
            raise KeyboardInterrupt
        moved.append(target)
        rename(source, target)

    monkeypatch.setattr("vitrieve.curation.acting.os.rename", move_one)
    with pytest.raises(KeyboardInterrupt):
        move_duplicates(duplicates(album, level="exact"), tmp_path / "extra")
    monkeypatch.undo()
    assert undo_duplicates(tmp_path / "extra" / "undo.json").skipped == ()
    assert read_tree(album) == before


@pytest.mark.parametrize("killed_in", [None, "copyfile", "copystat", "replace", "unlink"])
def test_moving_to_another_disk_leaves_no_half_file_and_can_be_undone(
    album: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, killed_in: str | None
) -> None:
    before = read_tree(album)
    report = duplicates(album, level="exact")

    def refuse(*_: object) -> None:
        raise OSError(errno.EXDEV, "another file system")

    def kill(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("vitrieve.curation.acting.os.rename", refuse)
        if killed_in is None:
            assert sorted(move_duplicates(report, tmp_path / "extra").done) == EXTRAS
            assert (tmp_path / "extra" / "0.png").read_bytes() == before["0.png"]
            assert not (album / "0.png").exists()
        else:
            module = {"replace": "os", "unlink": "Path"}.get(killed_in, "shutil")
            patch.setattr(f"vitrieve.curation.acting.{module}.{killed_in}", kill)
            with pytest.raises(KeyboardInterrupt):
                move_duplicates(report, tmp_path / "extra")
            assert read_tree(album) == before
    left = {name: data for name, data in read_tree(tmp_path / "extra").items() if not name.endswith((".json", ".tmp"))}
    assert all(before[name] == data for name, data in left.items())
    assert undo_duplicates(tmp_path / "extra" / "undo.json").skipped == ()
    assert read_tree(album) == before
    with pytest.raises(DataError, match="cannot be read"):
        undo_duplicates(tmp_path / "extra" / "undo.json")


def test_a_file_that_is_read_only_is_moved_to_another_disk(
    album: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EXDEV, "another file system")

    def sync(path: Path) -> None:
        if not path.stat().st_mode & stat.S_IWUSR:  # as the system does for everybody but root
            raise PermissionError(errno.EACCES, "Permission denied")
        sync_file(path)

    for name in EXTRAS:
        os.utime(album / name, (1, 1))
        os.chmod(album / name, 0o444)
    monkeypatch.setattr("vitrieve.curation.acting.os.rename", refuse)
    monkeypatch.setattr("vitrieve.curation.acting.sync_file", sync)
    acted = move_duplicates(duplicates(album, level="exact"), tmp_path / "extra")
    assert (sorted(acted.done), acted.skipped) == (EXTRAS, ())
    status = (tmp_path / "extra" / "0.png").stat()
    assert (status.st_mode & 0o777, status.st_mtime) == (0o444, 1)


def test_linking_joins_the_same_bytes_only_and_undo_parts_them(album: Path, tmp_path: Path) -> None:
    (album / "more" / "same_pixels.bmp").unlink()
    os.chmod(album / "more" / "same_file.png", 0o600)
    os.utime(album / "more" / "same_file.png", (1, 1))
    (album / "more" / "saved_anew.png").write_bytes((album / "0.png").read_bytes() + b"\0")
    before = read_tree(album)
    report = duplicates(album, level="exact")
    assert report.groups[0].keep == "more/saved_anew.png"  # the largest file
    acted = link_duplicates(report, tmp_path / "undo.json")
    assert (acted.done, len(acted.skipped)) == ((), 2)
    (album / "more" / "saved_anew.png").unlink()
    acted = link_duplicates(duplicates(album, level="exact"), tmp_path / "undo_2.json")
    assert acted.done == ("more/same_file.png",)
    assert (album / "0.png").samefile(album / "more" / "same_file.png")
    assert undo_duplicates(tmp_path / "undo_2.json").skipped == ()
    assert not (album / "0.png").samefile(album / "more" / "same_file.png")
    status = (album / "more" / "same_file.png").stat()
    assert (status.st_mode & 0o777, status.st_mtime) == (0o600, 1)
    assert read_tree(album) == {name: data for name, data in before.items() if name != "more/saved_anew.png"}


def test_a_link_to_a_kept_symbolic_link_leads_to_the_file_itself(album: Path, tmp_path: Path) -> None:
    folder = tmp_path / "collection"
    for name in ("albums", "photos/backup"):
        (folder / name).mkdir(parents=True)
    for name in ("photos/1.png", "photos/backup/1.png"):
        shutil.copy(album / "1.png", folder / name)
    (folder / "albums" / "1.png").symlink_to("../photos/1.png")
    report = duplicates(folder, level="exact")
    assert report.groups[0].keep == "albums/1.png"  # the first name of three equal ones
    acted = link_duplicates(report, tmp_path / "undo.json")
    assert acted.done == ("photos/backup/1.png",)
    copy = folder / "photos" / "backup" / "1.png"
    assert not copy.is_symlink()
    assert copy.samefile(folder / "photos" / "1.png")
    assert len(undo_duplicates(tmp_path / "undo.json").done) == 1
    assert not copy.samefile(folder / "photos" / "1.png")
    assert copy.read_bytes() == (album / "1.png").read_bytes()


def test_linking_one_file_through_a_linked_folder_leaves_nothing_beside_it(album: Path, tmp_path: Path) -> None:
    folder = tmp_path / "collection"
    for name in ("a", "b", "c"):
        (folder / name).mkdir(parents=True)
        shutil.copy(album / "1.png", folder / name)
    report = duplicates(folder, level="exact")
    shutil.rmtree(folder / "c")
    (folder / "c").symlink_to("b")
    assert link_duplicates(report, tmp_path / "undo.json").done == ("b/1.png", "c/1.png")
    assert os.listdir(folder / "b") == ["1.png"]


@pytest.fixture
def linked(album: Path, tmp_path: Path) -> Path:
    """Three files that are one since they were linked, ``a.png`` kept; ``undo.json`` beside the folder."""
    folder = tmp_path / "linked"
    folder.mkdir()
    for number, name in enumerate(("a.png", "b.png", "c.png"), start=1):
        shutil.copy(album / "1.png", folder / name)
        os.utime(folder / name, (number, number))
    assert link_duplicates(duplicates(folder, level="exact"), tmp_path / "undo.json").done == ("b.png", "c.png")
    return folder


@pytest.mark.parametrize("change", ["deleted", "renamed", "saved anew"])
def test_links_to_a_picture_that_has_gone_are_parted(linked: Path, change: str) -> None:
    data = (linked / "a.png").read_bytes()
    if change == "renamed":
        (linked / "a.png").rename(linked / "other.png")
    else:
        (linked / "a.png").unlink()
    if change == "saved anew":
        (linked / "a.png").write_bytes(b"another picture")
    undone = undo_duplicates(linked.parent / "undo.json")
    assert ([Path(path).name for path in undone.done], undone.skipped) == (["b.png", "c.png"], ())
    for number, name in enumerate(("b.png", "c.png"), start=2):
        status = (linked / name).stat()
        assert ((linked / name).read_bytes(), status.st_nlink, status.st_mtime) == (data, 1, number)


def test_undo_leaves_alone_what_was_saved_anew(linked: Path) -> None:
    for name in ("a.png", "b.png", "c.png"):
        (linked / name).unlink()
    (linked / "b.png").write_bytes(b"another picture")  # it may have the number of the file that was kept
    undone = undo_duplicates(linked.parent / "undo.json")
    assert (undone.done, [Path(path).name for path, _ in undone.skipped]) == ((), ["c.png"])
    assert (linked / "b.png").stat().st_mtime > 2


def test_undo_on_a_full_disk_names_what_is_left_and_leaves_no_half_file(
    linked: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = shutil.copyfile

    def fill(source: Path, target: Path) -> None:
        copy(source, target)
        if source.name == "b.png":
            raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("vitrieve.curation.acting.shutil.copyfile", fill)
        undone = undo_duplicates(linked.parent / "undo.json")
    ((path, reason),) = undone.skipped
    assert (path, [Path(path).name for path in undone.done]) == (str(linked / "b.png"), ["c.png"])
    assert "the disk is full" in reason
    assert sorted(os.listdir(linked)) == ["a.png", "b.png", "c.png"]
    assert [Path(path).name for path in undo_duplicates(linked.parent / "undo.json").done] == ["b.png"]


def test_an_undo_file_that_finds_no_room_is_removed(
    album: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fill(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    (album / "more" / "same_pixels.bmp").unlink()
    before, report = read_tree(album), duplicates(album, level="exact")
    with monkeypatch.context() as patch:
        patch.setattr("vitrieve.writing.os.fsync", fill)
        with pytest.raises(DiskFullError):
            move_duplicates(report, tmp_path / "extra")
        with pytest.raises(DiskFullError):
            link_duplicates(report, tmp_path / "undo.json")
    assert read_tree(album) == before
    assert os.listdir(tmp_path / "extra") == []
    assert not (tmp_path / "undo.json").exists()


def test_no_undo_file_is_written_where_there_is_nothing_to_do(album: Path, tmp_path: Path) -> None:
    (album / "more" / "same_file.png").unlink()
    report = duplicates(album, level="exact")
    assert len(link_duplicates(report, tmp_path / "undo.json").skipped) == 1  # other bytes
    (album / report.groups[0].image_ids[1]).unlink()
    assert len(move_duplicates(report, tmp_path / "extra").skipped) == 1
    assert sorted(os.listdir(tmp_path)) == ["album"]


@pytest.mark.parametrize(
    "text", ["", "{}", "[1]", '{"format": "vitrieve duplicates undo", "kind": "move", "steps": 3}']
)
def test_what_is_no_undo_file_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        undo_duplicates(tmp_path / "none.json")
    (tmp_path / "undo.json").write_text(text)
    with pytest.raises(DataError, match="no undo file"):
        undo_duplicates(tmp_path / "undo.json")
