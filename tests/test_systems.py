"""What systems do differently with files: locks, reading at a place, paths; and a whole way by the rules of Windows."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path, PureWindowsPath

import numpy as np
import pytest

from vitrieve import folders, systems
from vitrieve.artifacts import prepare_folder, replacing_folder, write_manifest
from vitrieve.curation.decisions import spell_table_path
from vitrieve.data.layout import check_relative
from vitrieve.data.records import ImageRecord
from vitrieve.data.remote import parse_address, spell_address
from vitrieve.data.sources import find_source_path, read_collection
from vitrieve.data.table import find_path
from vitrieve.embed import unfinished
from vitrieve.errors import ArtifactError, ConfigError, DataError
from vitrieve.folders import find_aside
from vitrieve.search.searcher import map_paths, parse_path_map

CHECKOUT = Path(__file__).resolve().parents[1]
NUM_PROCESSES, NUM_TURNS = 4, 25
COUNT = """
import os, sys
from vitrieve import systems

for _ in range(int(sys.argv[2])):
    lock = os.open(sys.argv[1] + ".lock", systems.CHANGE | os.O_CREAT, 0o600)
    if sys.argv[3] == "wait":
        systems.wait_for_lock(lock)
    else:
        while not systems.try_lock(lock):
            pass
    number = int(open(sys.argv[1], encoding="ascii").read())
    open(sys.argv[1], "w", encoding="ascii").write(str(number + 1))
    os.close(lock)
"""
HOLD = """
import os, sys, time
from vitrieve import systems

lock = os.open(sys.argv[1], systems.CHANGE | os.O_CREAT, 0o600)
print(systems.try_lock(lock), flush=True)
sys.stdin.read()
"""


@pytest.fixture
def descriptors() -> Iterator[list[int]]:
    opened: list[int] = []
    yield opened
    for descriptor in opened:
        os.close(descriptor)


def test_one_process_at_a_time_has_the_lock(tmp_path: Path) -> None:
    counter = tmp_path / "counter"
    counter.write_text("0", encoding="ascii")
    words = [sys.executable, "-c", COUNT, str(counter), str(NUM_TURNS)]
    running = [subprocess.Popen([*words, "wait" if number % 2 else "try"]) for number in range(NUM_PROCESSES)]
    assert [process.wait(timeout=60) for process in running] == [0] * NUM_PROCESSES
    assert counter.read_text(encoding="ascii") == str(NUM_PROCESSES * NUM_TURNS)


def test_the_lock_of_a_killed_process_is_free(tmp_path: Path, descriptors: list[int]) -> None:
    path = tmp_path / "lock"
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "True\n"
        descriptors.append(os.open(path, systems.CHANGE))
        assert not systems.try_lock(descriptors[0])
        holder.kill()
        holder.wait()
        systems.wait_for_lock(descriptors[0])
    descriptors.append(os.open(path, systems.CHANGE))
    assert not systems.try_lock(descriptors[1])  # threads of one process exclude each other, too


def test_reading_at_a_place_leaves_the_position(tmp_path: Path, descriptors: list[int]) -> None:
    data = np.random.default_rng(0).bytes(5_000)
    (tmp_path / "a").write_bytes(data)
    descriptors.append(os.open(tmp_path / "a", systems.READ | systems.NO_WAIT | systems.NO_FOLLOW))
    assert systems.read_at(descriptors[0], 100, 4_950) == data[4_950:]
    buffer = bytearray(70)
    assert systems.read_into(descriptors[0], memoryview(buffer), 1_000) == 70
    assert buffer == data[1_000:1_070]
    assert os.read(descriptors[0], 10) == data[:10]


def test_a_locked_file_is_removed_before_anybody_else_gets_it(tmp_path: Path, descriptors: list[int]) -> None:
    path = tmp_path / "a"
    descriptor = os.open(path, systems.CHANGE | os.O_CREAT, 0o600)
    descriptors.append(os.open(path, systems.CHANGE))
    systems.wait_for_lock(descriptor)
    systems.remove_locked(path, descriptor)
    assert not path.exists()
    assert systems.try_lock(descriptors[0])  # the lock of a file without a name, which whoever waits must notice


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="what is open is read from /proc")
def test_the_whole_way_by_the_rules_of_windows(tmp_path: Path, picture_folder: Path, tiny_encoder_folder: Path) -> None:
    """Every module is imported, and index, search, sync, replacing and service run without what Windows lacks."""
    for module in ("fastapi", "lancedb"):
        pytest.importorskip(module)
    (tmp_path / "work").mkdir()
    script = CHECKOUT / "tests" / "pretend_windows.py"
    words = [tmp_path / "work", picture_folder, tiny_encoder_folder]
    done = subprocess.run([sys.executable, script, *words], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "the whole way"


# Folders that change places


def make_two(tmp_path: Path) -> tuple[Path, Path]:
    for name in ("one", "other"):
        prepare_folder(tmp_path / name)
        (tmp_path / name / "content").write_text(name, encoding="utf-8")
        write_manifest(tmp_path / name, "index", {})
    return tmp_path / "one", tmp_path / "other"


def read_content(*folders: Path) -> list[str]:
    return [(folder / "content").read_text(encoding="utf-8") for folder in folders]


class MacLibrary:
    """The C library of macOS, as far as a folder is renamed with it: no ``renameat2``."""

    def renamex_np(self, one: bytes, other: bytes, flags: object) -> int:
        assert getattr(flags, "value", None) == 2
        aside = other + b".swap"
        os.rename(other, aside)
        os.rename(one, other)
        os.rename(aside, one)
        return 0


@pytest.mark.parametrize("library", [MacLibrary(), object()], ids=["as on macOS", "a library without either"])
def test_folders_change_places_on_other_systems(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, library: object
) -> None:
    one, other = make_two(tmp_path)
    monkeypatch.setattr(folders.ctypes, "CDLL", lambda *_, **__: library)
    folders.exchange_folders(one, other)
    assert read_content(one, other) == ["other", "one"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "other"]


@pytest.mark.parametrize("refused", ["one", "other"])
def test_folders_that_cannot_be_renamed_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: str) -> None:
    one, other = make_two(tmp_path)
    rename = Path.rename

    def refuse(source: Path, target: Path) -> Path:
        if source.name == refused:
            raise PermissionError(13, "Access is denied", str(source))
        return rename(source, target)

    monkeypatch.setattr(Path, "rename", refuse)
    monkeypatch.setattr(folders, "_exchange_at_once", lambda one, other: False)
    monkeypatch.setattr(folders.sys, "platform", "win32")
    with pytest.raises(ArtifactError, match="has one of its files open"):
        folders.exchange_folders(one, other)
    assert read_content(one, other) == ["one", "other"]


def test_what_a_kill_before_the_last_rename_left_aside_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = make_two(tmp_path)
    shutil.copytree(one, find_aside(other))
    monkeypatch.setattr(folders, "_exchange_at_once", lambda one, other: False)
    folders.exchange_folders(one, other)
    assert read_content(one, other) == ["other", "one"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "other"]


def test_what_a_kill_between_two_renames_left_aside_comes_back(tmp_path: Path) -> None:
    _, other = make_two(tmp_path)
    other.rename(find_aside(other))
    with pytest.raises(ArtifactError, match="holds a finished result"), replacing_folder(other):
        pass
    assert read_content(other) == ["other"]


def test_a_command_that_begins_between_two_renames_stops_neither(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It takes the other command for a killed one, and puts the old artifact back; that one renames again."""
    one, other = make_two(tmp_path)
    rename, num_begun = Path.rename, 0

    def begin_another(source: Path, target: Path) -> Path:
        nonlocal num_begun
        moved = rename(source, target)
        if source == other and num_begun < 2:
            num_begun += 1
            with pytest.raises(ArtifactError, match="holds a finished result"), replacing_folder(other):
                pass
        return moved

    monkeypatch.setattr(Path, "rename", begin_another)
    monkeypatch.setattr(folders, "_exchange_at_once", lambda one, other: False)
    folders.exchange_folders(one, other)
    assert num_begun == 2
    assert read_content(one, other) == ["other", "one"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "other"]


def test_a_command_that_begins_as_the_second_rename_is_made_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = make_two(tmp_path)
    other.rename(find_aside(other))
    rename = Path.rename

    def come_second(source: Path, target: Path) -> Path:
        if source == find_aside(other):
            shutil.copytree(one, other)  # the second rename of the other command
        return rename(source, target)

    monkeypatch.setattr(Path, "rename", come_second)
    with pytest.raises(ArtifactError, match="holds a finished result"), replacing_folder(other):
        pass
    assert read_content(other, find_aside(other)) == ["one", "other"]


def test_of_those_who_write_first_one_does_where_a_disk_has_no_links(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(os, "link", refuse)
    for text in ("first", "second"):
        unfinished._write_first(tmp_path / "plan", text)
    assert (tmp_path / "plan").read_text(encoding="utf-8") == "first"
    assert [path.name for path in tmp_path.iterdir()] == ["plan"]


# Names


@pytest.mark.parametrize("source", [r"C:\photos", "C:/photos", r"z:\a:b"])
def test_a_drive_is_no_kind_of_source(source: str) -> None:
    assert find_source_path(source) == Path(source)
    assert find_source_path(f"folder:{source}") == Path(source)
    with pytest.raises(DataError, match="is not a folder that exists"):
        read_collection(source)


def test_a_list_names_nothing_outside_of_its_folder_on_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    for path in (r"C:\a.jpg", "C:a.jpg", r"a\..\..\b.jpg", "a.jpg:stream", "/a.jpg", "../a.jpg"):
        with pytest.raises(DataError, match="not a path inside"):
            check_relative(path, "list.txt, line 1")
    assert check_relative("a/b.jpg", "list.txt, line 1") == "a/b.jpg"


def test_tables_spell_names_alike_on_windows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / r"a\b.jpg").touch()  # as Windows finds what is in a folder
    monkeypatch.setattr(sys, "platform", "win32")
    assert find_path(r"a\b.jpg", tmp_path, "row 1").image_id == "a/b.jpg"
    assert find_path("file:///C:/photos/a.jpg", tmp_path, "row 1").image_id == "C:/photos/a.jpg"


def test_a_table_names_what_is_on_another_drive_in_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> str:
        raise ValueError("path is on mount 'D:', start on mount 'C:'")

    monkeypatch.setattr(os.path, "relpath", refuse)
    assert spell_table_path(tmp_path / "a.jpg", tmp_path) == str(tmp_path / "a.jpg")


def test_addresses_are_paths_on_windows_too() -> None:
    path = PureWindowsPath(spell_address("s3://bucket/shards/0.tar"))
    assert parse_address(path) == "s3://bucket/shards/0.tar"  # type: ignore[arg-type]
    assert parse_address(PureWindowsPath("s3:/bucket/shards")) is None  # type: ignore[arg-type]


class WindowsStore:
    """A store that was filled on Windows."""

    def __init__(self, path: str = r"C:\photos\a\b.jpg") -> None:
        self._path = path

    def get(self, image_ids: list[str]) -> tuple[np.ndarray, list[ImageRecord]]:
        path = Path(self._path)
        return np.ones((1, 1), np.float32), [ImageRecord(image_id=image_ids[0], path=path, label=0, split="test")]


def test_an_index_made_on_windows_is_read_here() -> None:
    moved = map_paths(WindowsStore(), [parse_path_map(r"C:\Photos=/srv/photos")])  # type: ignore[arg-type]
    assert moved.get(["a/b.jpg"])[1][0].path == Path("/srv/photos/a/b.jpg")
    for text in ("photos=/srv", "C:photos=/srv", r"/srv=C:\photos"):
        with pytest.raises(ConfigError, match="two absolute paths"):
            parse_path_map(text)


def test_a_mapped_path_stays_in_the_new_folder() -> None:
    outside = WindowsStore("/home/me/photos/../../../etc/hostname")
    moved = map_paths(outside, [parse_path_map("/home/me/photos=/srv/photos")])  # type: ignore[arg-type]
    assert not moved.get(["a"])[1][0].path.is_relative_to("/srv")


# Processes


def list_targets() -> list[Callable[..., object]]:
    from vitrieve.data import emoji, pack
    from vitrieve.serve import processes

    return [emoji._rasterise, pack._prepare_chunk, pack._end_with_parent, processes.answer_requests]


def test_what_runs_in_other_processes_can_be_imported_there() -> None:
    """A process that is spawned imports its work by name."""
    import pickle

    for target in list_targets():
        assert pickle.loads(pickle.dumps(target)) is target


def test_every_pool_of_processes_is_spawned() -> None:
    """A fork is unsafe beside threads, and Windows and macOS have none; nothing relies on the default of the system."""
    for path in sorted((CHECKOUT / "src").rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        for call in ("ProcessPoolExecutor(", "multiprocessing.Process(", "multiprocessing.Pool(", "os.fork("):
            for line in text.splitlines():
                assert call not in line or "spawn" in line, f"{path}: {line}"


def test_threads_wait_for_each_other(tmp_path: Path) -> None:
    order: list[str] = []
    first = os.open(tmp_path / "lock", systems.CHANGE | os.O_CREAT, 0o600)
    systems.wait_for_lock(first)

    def wait() -> None:
        second = os.open(tmp_path / "lock", systems.CHANGE)
        systems.wait_for_lock(second)
        order.append("second")
        os.close(second)

    thread = threading.Thread(target=wait)
    thread.start()
    order.append("first")
    os.close(first)
    thread.join()
    assert order == ["first", "second"]
