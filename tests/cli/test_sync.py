from __future__ import annotations

import json
import os
import pty
import shutil
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path

import pytest
from PIL import Image

from tests.syncing.helpers import Watch
from vitrieve.cli.main import main
from vitrieve.errors import ArtifactError, FingerprintError
from vitrieve.index.open import open_index
from vitrieve.runtime.encoder import Encoder, load_encoder
from vitrieve.syncing.state import StateFile
from vitrieve.syncing.sync import EMBEDDED_ANEW, sync


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
        patch.setattr("vitrieve.syncing.sync.load_sync_encoder", lambda *args, **kwargs: encoder)
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


def read_all(terminal: int) -> bytes:
    """Read what was written to a terminal that is closed at its other end, and close it; one read may return a part."""
    parts = []
    with os.fdopen(terminal, "rb", buffering=0) as file, suppress(OSError):  # EIO on Linux where nothing is left
        while part := file.read(65_536):
            parts.append(part)
    return b"".join(parts)


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
    assert b"[y/N]" in read_all(ours)
    assert f"{num_left} images indexed" in capsys.readouterr().out


@pytest.mark.parametrize("store", ["lance", "exact"])
def test_watch_survives_an_index_that_is_deleted(
    store: str, words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with Watch([*words, "--store", store], capsys, monkeypatch) as watch:
        watch.wait_for("watching")
        (tmp_path / "index").rename(tmp_path / "deleted")  # in one step: a watch that looks in between finds no damage
        watch.wait_for("index was deleted; it is made again.")
        watch.wait_for("12 images indexed; 12 embedded")
    assert main(["index", "--verify", "--index", str(tmp_path / "index")]) == 0
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
    assert main(["index", "--verify", "--index", str(disk / "index")]) == 0


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


@pytest.fixture
def unsynced(words: list[str], tiny_encoder_folder: Path, picture_folder: Path, tmp_path: Path) -> Path:
    """The index that ``words`` names, made by ``vitrieve index``."""
    folder, embeddings = tmp_path / "index", str(tmp_path / "embeddings")
    flags = ["--encoder", str(tiny_encoder_folder), "--num-threads", "1"]
    assert main(["embed", "--data", str(picture_folder), "--out", embeddings, *flags]) == 0
    assert main(["index", "--embeddings", embeddings, "--out", str(folder), "--store", "exact"]) == 0
    return folder


def test_a_refused_sync_leaves_nothing_in_the_index(
    words: list[str],
    unsynced: Path,
    picture_folder: Path,
    tiny_encoder_folder: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = sorted(unsynced.rglob("*"))
    capsys.readouterr()
    assert main(words) == 2
    assert sorted(unsynced.rglob("*")) == before
    said = " ".join(capsys.readouterr().err.split())
    assert "holds images that no sync has put there" in said
    assert f"or is to be replaced. {EMBEDDED_ANEW}" in said
    other = load_encoder(tiny_encoder_folder, image_size=48, num_threads=1)
    with pytest.raises(FingerprintError):
        sync(picture_folder, unsynced, other, adopt=True)
    assert sorted(unsynced.rglob("*")) == before


def test_adopt_says_that_it_embeds_what_no_sync_has_recorded(
    words: list[str], unsynced: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert main([*words, "--adopt"]) == 0
    printed = capsys.readouterr()
    assert indexed(printed.out) == "12 images indexed; 12 embedded"
    assert EMBEDDED_ANEW in printed.err
    assert main([*words, "--adopt"]) == 0
    printed = capsys.readouterr()
    assert indexed(printed.out) == "12 images indexed; nothing to do"
    assert EMBEDDED_ANEW not in printed.err


def test_adopt_embeds_nothing_that_an_earlier_sync_has(
    words: list[str], picture_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 0
    shutil.copytree(picture_folder, tmp_path / "elsewhere")  # with other times
    (tmp_path / "elsewhere" / "06.png").rename(tmp_path / "elsewhere" / "other.png")
    Image.new("RGB", (40, 30), "red").save(tmp_path / "elsewhere" / "07.png")
    words[1] = str(tmp_path / "elsewhere")
    capsys.readouterr()
    assert main(words) == 2
    printed = capsys.readouterr()
    assert f"holds the collection {picture_folder}" in " ".join(printed.err.split())
    assert EMBEDDED_ANEW not in printed.err
    assert main([*words, "--adopt"]) == 0
    printed = capsys.readouterr()
    assert indexed(printed.out).startswith("12 images indexed; 1 embedded, 1 moved or copied, 10 with new metadata")
    assert EMBEDDED_ANEW not in printed.err


def test_a_second_sync_beside_the_first_is_told_and_changes_nothing(
    words: list[str], picture_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 0
    (picture_folder / "06.png").unlink()
    capsys.readouterr()
    with closing(StateFile(tmp_path / "index")):
        assert main(words) == 2
        printed = capsys.readouterr()
    said = " ".join(printed.err.split())
    assert f"another sync is at work on {tmp_path / 'index'}; wait until it is done, or stop it." in said
    assert printed.out == ""
    assert main(words) == 0
    assert indexed(capsys.readouterr().out) == "11 images indexed; 1 removed"


def indexed(out: str) -> str:
    return out.rsplit(": ", 1)[-1].strip()


def test_sync_remembers_what_is_excluded(
    words: list[str], picture_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*words, "--exclude", "drive/", "--exclude", "11.png"]) == 0
    assert indexed(capsys.readouterr().out) == "5 images indexed; 5 embedded"
    shutil.copy(picture_folder / "06.png", picture_folder / "drive" / "new.png")
    assert main(words) == 0
    printed = capsys.readouterr()
    assert indexed(printed.out) == "5 images indexed; nothing to do"
    assert "left out as before: drive/, 11.png; --exclude '' takes it in again." in printed.err
    assert main([*words, "--exclude", "drive/0*"]) == 0
    printed = capsys.readouterr()
    assert indexed(printed.out) == "7 images indexed; 1 embedded, 1 moved or copied"
    assert "left out from now on: drive/0*; before it was drive/, 11.png." in printed.err
    assert main([*words, "--exclude", ""]) == 0
    assert "left out from now on: nothing; before it was drive/0*." in capsys.readouterr().err
    assert main(words) == 0
    printed = capsys.readouterr()
    assert indexed(printed.out) == "13 images indexed; nothing to do"
    assert "left out" not in printed.err


@pytest.mark.parametrize("is_file", [False, True])
def test_sync_removes_what_is_excluded_from_now_on_however_much_it_is(
    is_file: bool, words: list[str], picture_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 0
    if is_file:
        (picture_folder / ".vitrieveignore").write_text("drive/\n")
    assert main(words if is_file else [*words, "--exclude", "drive/"]) == 0
    assert indexed(capsys.readouterr().out) == "6 images indexed; 6 removed"


def exclude_beside(index: Path, *patterns: str) -> None:
    """Say what is left out as another sync does, once the watch lets it."""
    while True:
        try:
            state_file = StateFile(index)
        except ArtifactError:
            continue
        state_file.write_exclude(patterns)
        return state_file.close()


def test_watch_leaves_out_what_an_earlier_sync_did_and_what_one_beside_it_does(
    words: list[str],
    picture_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert main([*words, "--exclude", "drive/"]) == 0
    with Watch(words, capsys, monkeypatch) as watch:
        watch.wait_for("watching")
        shutil.copy(picture_folder / "drive" / "00.png", picture_folder / "drive" / "new.png")
        Image.new("RGB", (40, 30), "red").save(picture_folder / "red.png")
        watch.wait_for("7 images indexed; 1 embedded\n")
    assert main([*words, "--exclude", "0*.png"]) == 0
    capsys.readouterr()
    with Watch([*words, "--exclude", "drive/"], capsys, monkeypatch) as watch:
        watch.wait_for("watching")
        exclude_beside(tmp_path / "index", "drive/", "red.png")
        Image.new("RGB", (40, 30), "blue").save(picture_folder / "blue.png")
        told = watch.wait_for("1 removed\n")
        if "1 embedded" not in told:  # it has looked between the two
            watch.wait_for("7 images indexed; 1 embedded\n")
    store = open_index(tmp_path / "index")
    assert set(store.image_ids()) == {"06.png", "07.png", "08.png", "09.png", "10.png", "11.png", "blue.png"}
    store.close()


def test_watch_keeps_what_a_drive_held_that_is_off(
    words: list[str],
    picture_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with Watch(words, capsys, monkeypatch) as watch:
        watch.wait_for("watching")
        (picture_folder / "drive").rename(tmp_path / "off")
        watch.wait_for(
            "6 of 12 images of the index have vanished from the collection, among them all of the folder drive."
        )
        (tmp_path / "off").rename(picture_folder / "drive")
        Image.new("RGB", (40, 30), "red").save(picture_folder / "red.png")
        watch.wait_for("13 images indexed; 1 embedded\n")  # and nothing of the drive, neither removed nor embedded
        picture_folder.rename(tmp_path / "off")
        watch.wait_for("not synced: ")
        (tmp_path / "off").rename(picture_folder)
        Image.new("RGB", (40, 30), "blue").save(picture_folder / "blue.png")
        watch.wait_for("14 images indexed; 1 embedded\n")
