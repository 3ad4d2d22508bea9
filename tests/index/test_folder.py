"""An index that is replaced, deleted or damaged while a store has it open: every kind of store notices."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.index.conformance import WIDTH, fill, make_info, make_many, make_record
from vitrieve.embed.embeddings import Embeddings
from vitrieve.errors import ArtifactError, InputError, ReplacedError
from vitrieve.index import folder as guards
from vitrieve.index import open as opening
from vitrieve.index.lance_files import table_path
from vitrieve.index.open import build_index, create_index, open_index
from vitrieve.index.segments import FOLDER_NAME
from vitrieve.index.store import SERVERS, IndexSettings, StoreInfo, VectorStore

MANY_BYTES = 2**30


def list_calls(store: VectorStore) -> list[Callable[[], object]]:
    """Everything that a service, a search or a sync asks of a store."""
    vectors, _ = make_many(1)
    return [
        lambda: store.search(vectors, 3),
        lambda: store.get(["000001.png"]),
        lambda: list(store.image_ids()),
        store.columns,
        store.count,
        lambda: store.upsert(vectors, [make_record("late.png", {})]),
        lambda: store.delete(["000001.png"]),
        store.optimize,
    ]


def overwrite(folder: Path, kind: str, settings: IndexSettings, *, fingerprint: str, width: int) -> VectorStore:
    """As ``vitrieve index --overwrite`` does."""
    vectors, records = make_many(5, seed=8, width=width)
    embeddings = Embeddings(
        vectors=vectors,
        records=tuple(records),
        failures=(),
        fingerprint=fingerprint,
        encoder_source="other-weights",
        image_size=48,
        license="",
    )
    return build_index(embeddings, folder, store=kind, settings=settings, overwrite=True)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("fingerprint", "width", "is_other_kind"),
    [("f" * 64, WIDTH, False), ("e" * 64, WIDTH, False), ("e" * 64, 2 * WIDTH, False), ("f" * 64, WIDTH, True)],
    ids=["the same encoder", "another encoder", "another size", "another kind of store"],
)
@pytest.mark.parametrize("is_held", [False, True])
def test_trap_a_replaced_index_is_neither_read_nor_changed(
    store: VectorStore,
    kind: str,
    settings_of: IndexSettings,
    tmp_path: Path,
    fingerprint: str,
    width: int,
    is_other_kind: bool,
    is_held: bool,
) -> None:
    if is_held and kind in SERVERS:
        pytest.skip("a server holds its own copies in memory")
    fill(store, 20)
    if is_held:
        assert store.hold(MANY_BYTES)
    new_kind = "exact" if kind == "lance" and is_other_kind else "lance" if is_other_kind else kind
    settings = IndexSettings() if is_other_kind else settings_of
    new = overwrite(tmp_path / "index", new_kind, settings, fingerprint=fingerprint, width=width)
    for call in list_calls(store):
        with pytest.raises(ReplacedError, match="replaced by another"):
            call()
    assert new.count() == 5
    assert open_index(tmp_path / "index").info == new.info
    new.close()


def test_an_index_that_is_replaced_while_it_is_opened_opens_as_the_new_one(
    store: VectorStore, kind: str, settings_of: IndexSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(store, 20)
    read = opening.read_info
    is_replaced = False

    def read_and_replace(folder: Path) -> tuple[StoreInfo, dict[str, object]]:
        nonlocal is_replaced
        found = read(folder)
        if not is_replaced:
            is_replaced = True
            overwrite(folder, kind, settings_of, fingerprint="e" * 64, width=2 * WIDTH).close()
        return found

    monkeypatch.setattr(opening, "read_info", read_and_replace)
    opened = open_index(tmp_path / "index")
    assert opened.count() == 5
    opened.close()


def test_readers_find_the_old_or_the_new_index_at_every_moment_of_a_replacement(
    store: VectorStore, kind: str, settings_of: IndexSettings, tmp_path: Path
) -> None:
    """A reader that is told of the replacement opens the index again; nothing else may happen to it."""
    fill(store, 5, seed=8)
    query = make_many(1, seed=8)[0]
    faults: list[str] = []
    is_done = threading.Event()

    def read() -> None:
        reader = open_index(tmp_path / "index")
        while not is_done.is_set():
            try:
                if len(reader.search(query, 9)[0]) != 5:
                    faults.append("an index in part")
            except ReplacedError:
                reader.close()
                reader = open_index(tmp_path / "index")
            except Exception as error:
                faults.append(repr(error))
        reader.close()

    threads = [threading.Thread(target=read) for _ in range(2)]
    for thread in threads:
        thread.start()
    for _ in range(4):
        overwrite(tmp_path / "index", kind, settings_of, fingerprint="f" * 64, width=WIDTH).close()
    is_done.set()
    for thread in threads:
        thread.join()
    assert not faults, faults[:3]


def test_a_new_index_with_faults_does_not_replace_a_sound_one(
    store: VectorStore, kind: str, settings_of: IndexSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(store, 20)
    with monkeypatch.context() as patch:
        patch.setattr(type(store), "verify", lambda _: ["a page is torn"])
        with pytest.raises(ArtifactError, match="the old one stays: a page is torn"):
            overwrite(tmp_path / "index", kind, settings_of, fingerprint="f" * 64, width=WIDTH)
    assert store.count() == 20
    assert store.verify() == []
    assert [path.name for path in tmp_path.iterdir()] == ["index"]


@pytest.mark.parametrize("is_held", [False, True])
def test_trap_an_index_that_is_gone_is_told_in_a_line_and_found_again(
    store: VectorStore, kind: str, tmp_path: Path, is_held: bool
) -> None:
    if is_held and kind in SERVERS:
        pytest.skip("a server holds its own copies in memory")
    model = fill(store, 20)
    if is_held:
        assert store.hold(MANY_BYTES)
    (tmp_path / "index").rename(tmp_path / "elsewhere")
    for call in list_calls(store):
        with pytest.raises(ArtifactError, match=r"gone|cannot be changed") as caught:
            call()
        assert "\n" not in str(caught.value)
    (tmp_path / "elsewhere").rename(tmp_path / "index")
    assert store.count() == 20
    assert sorted(store.image_ids()) == sorted(model.images)


def test_an_unfinished_index_in_its_place_is_not_read(store: VectorStore, tmp_path: Path) -> None:
    """What an interrupted copy leaves, and ``index --overwrite`` on a folder that cannot be renamed."""
    fill(store, 3)
    (tmp_path / "index" / "manifest.json").unlink()
    for call in list_calls(store):
        with pytest.raises(ArtifactError, match="gone"):
            call()


def test_another_table_under_the_same_manifest_is_refused(tmp_path: Path) -> None:
    store = create_index(make_info("lance"), tmp_path / "index")
    fill(store, 5)
    other = create_index(make_info("lance", fingerprint="e" * 64), tmp_path / "other")
    fill(other, 5)
    shutil.rmtree(table_path(tmp_path / "index"))
    shutil.copytree(table_path(tmp_path / "other"), table_path(tmp_path / "index"))
    for call in (lambda: store.search(make_many(1)[0], 3), lambda: store.get(["000001.png"]), store.count):
        with pytest.raises(ArtifactError, match="another encoder"):
            call()


def test_what_was_read_while_the_index_was_replaced_is_not_returned(tmp_path: Path) -> None:
    class Reader:
        def __init__(self, folder: Path) -> None:
            self._folder = folder
            self._identity = guards.Identity(folder)

        @guards.guarded
        def read(self, fault: Exception | None = None) -> str:
            (tmp_path / "new").write_text("{}")
            (tmp_path / "new").replace(self._folder / "manifest.json")
            if fault is not None:
                raise fault
            return "of which index?"

    (tmp_path / "manifest.json").write_text('{"kind": "index"}')
    for fault in (None, OSError("torn"), InputError("no such column")):
        with pytest.raises(ReplacedError):
            Reader(tmp_path).read(fault)


def test_overwriting_waits_for_whoever_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    create_index(make_info("exact"), tmp_path / "index").close()
    monkeypatch.setattr(guards, "WAIT_SECONDS", 0.05)
    with guards.writing(tmp_path / "index"), pytest.raises(ArtifactError, match="being written by another process"):
        overwrite(tmp_path / "index", "exact", IndexSettings(), fingerprint="f" * 64, width=WIDTH)
    assert open_index(tmp_path / "index").count() == 0


def test_the_lock_of_a_deleted_file_does_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody who waited for the lock gets it when the index is made anew, on a file that nobody else sees."""
    try_lock = guards.try_lock
    num_locked = 0

    def lock_late(descriptor: int) -> bool:
        nonlocal num_locked
        num_locked += 1
        if num_locked == 1:
            (tmp_path / guards.LOCK_NAME).unlink()
        return try_lock(descriptor)

    monkeypatch.setattr(guards, "try_lock", lock_late)
    with guards.writing(tmp_path):
        assert num_locked == 2
        with pytest.raises(ArtifactError, match="being written"), guards.writing(tmp_path, wait_seconds=0):
            pass


def find_largest(folder: Path, ending: str) -> Path:
    return max(folder.rglob(f"*{ending}"), key=lambda path: path.stat().st_size)


@pytest.mark.parametrize(("kind", "place", "ending"), [("exact", FOLDER_NAME, ".npy"), ("lance", "", ".lance")])
def test_trap_a_file_cut_short_is_told_in_a_line_and_mended(tmp_path: Path, kind: str, place: str, ending: str) -> None:
    store = create_index(make_info(kind), tmp_path / "index")
    fill(store, 2_000)
    queries = make_many(3, seed=4)[0]
    expected = store.search(queries, 5)
    path = find_largest(tmp_path / "index" / place, ending)
    whole = path.read_bytes()
    os.truncate(path, 100)
    for _ in range(2):
        with pytest.raises(ArtifactError) as caught:
            store.search(queries, 5)
        assert "\n" not in str(caught.value)
    path.write_bytes(whole)
    assert store.search(queries, 5) == expected


def test_a_file_of_vectors_with_another_content_is_refused(tmp_path: Path) -> None:
    store = create_index(make_info("exact"), tmp_path / "index")
    fill(store, 50)
    assert store.count() == 50
    path = find_largest(tmp_path / "index" / FOLDER_NAME, ".npy")
    whole = path.read_bytes()
    path.write_bytes(whole[:-4] + np.float32(0.5).tobytes())
    os.utime(path, ns=(0, 0))  # a clock as coarse as some file systems' need not have moved
    with pytest.raises(ArtifactError, match="is not what was written"):
        store.count()
    path.write_bytes(whole)
    assert store.count() == 50
