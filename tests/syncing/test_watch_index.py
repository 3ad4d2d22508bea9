"""When watching looks again because of the index: whenever its folder holds another one than the last look found."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Event

import pytest

from vitrieve.artifacts import write_manifest
from vitrieve.syncing.watch import watch_changes

NUM_TICKS = 5


def make(index: Path) -> None:
    index.mkdir()
    write_manifest(index, "index", {})


def rename_over(index: Path) -> None:
    make(index.with_name("other"))
    index.rename(index.with_name("old"))
    index.with_name("other").rename(index)


def make_anew(index: Path) -> None:
    """Replace the index in its folder, whose number stays: that of a new folder is often the one of the deleted."""
    (index / "manifest.json").rename(index / "old.json")
    write_manifest(index, "index", {})


def rename_away(index: Path) -> None:
    index.rename(index.with_name("old"))


def delete_and_make(index: Path) -> None:
    shutil.rmtree(index)
    make(index)
    os.utime(index / "manifest.json", ns=(1, 1))  # some clocks of files stand still for milliseconds


@pytest.fixture
def watched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Iterator[None]]:
    """Return the folder of an index, not there yet, and the looks at its collection, which end after some ticks."""
    stop = Event()

    def tick(root: Path, **settings: object) -> Iterator[set[object]]:
        yield from [set()] * NUM_TICKS
        stop.set()

    monkeypatch.setattr("vitrieve.syncing.watch.watch", tick)
    (tmp_path / "collection").mkdir()
    index = tmp_path / "index"
    return index, watch_changes(tmp_path / "collection", index, stop=stop, rescan_seconds=3600)


@pytest.mark.parametrize("replace", [rename_over, make_anew, rename_away, delete_and_make])
def test_an_index_that_is_replaced_during_a_look_is_found_by_the_next(
    replace: Callable[[Path], None], watched: tuple[Path, Iterator[None]]
) -> None:
    index, looks = watched
    make(index)
    next(looks)
    replace(index)
    assert len(list(looks)) == 1


def test_an_index_that_the_look_has_made_is_not_looked_at_again(
    watched: tuple[Path, Iterator[None]],
) -> None:
    index, looks = watched
    next(looks)
    make(index)
    assert list(looks) == []
