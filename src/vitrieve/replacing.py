"""Overwriting a finished artifact: the new one is built beside it and takes its place when it is complete.

A failure or a kill at any moment leaves the old artifact.
"""

from __future__ import annotations

import ctypes
import os
import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

from vitrieve.artifacts import has_artifact, is_partial, prepare_folder, sync_folder
from vitrieve.progress import print_message

_AT_FDCWD, _RENAME_EXCHANGE = -100, 2


@contextmanager
def replacing_folder(
    folder: Path,
    *,
    is_overwrite: bool = False,
    is_resume: bool = False,
    is_resumable: bool = True,
    locked: AbstractContextManager[None] | None = None,
) -> Iterator[Path]:
    """Give the block a folder to write an artifact to, its manifest last; afterwards the artifact is at ``folder``.

    Where ``folder`` holds a finished artifact, the block gets another folder beside it, which changes places with it at
    the end. What a stopped block leaves there, ``is_resume`` goes on with.

    Args:
        folder: What ``--out`` names.
        is_overwrite: Replace what is there.
        is_resume: Go on with a partial artifact.
        is_resumable: Whether the caller can go on at all. If not, what a failed block has written is removed.
        locked: Held while the folders change places.

    Raises:
        ArtifactError: As ``prepare_folder``.
    """
    place = folder.resolve()  # of a link, what it leads to
    beside = place.parent / f".{place.name}.new"
    is_going_on = is_resume and has_artifact(place) and is_partial(beside)
    if not is_going_on and not (is_overwrite and has_artifact(place) and _can_be_replaced(place)):
        prepare_folder(folder, is_overwrite=is_overwrite, is_resume=is_resume, is_resumable=is_resumable)
        yield folder
        return
    if not is_going_on:
        shutil.rmtree(beside, ignore_errors=True)  # of a block that was killed
    prepare_folder(beside, is_resume=is_going_on)
    try:
        yield beside
        with locked or nullcontext():
            exchange_folders(beside, place)
    except BaseException:
        if not is_resumable:
            shutil.rmtree(beside, ignore_errors=True)
        raise
    shutil.rmtree(beside, ignore_errors=True)  # the old artifact


def exchange_folders(one: Path, other: Path) -> None:
    """Let two folders of one parent change places: in one step on Linux, elsewhere in three renames."""
    if not _exchange_at_once(one, other):
        aside = one.with_name(f"{one.name}.old")
        other.rename(aside)
        one.rename(other)
        aside.rename(one)
    sync_folder(one.parent)


def _exchange_at_once(one: Path, other: Path) -> bool:
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:
        return False
    status = rename(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), ctypes.c_uint(_RENAME_EXCHANGE))
    return int(status) == 0


def _can_be_replaced(place: Path) -> bool:
    """Say whether a folder can be renamed; tell it where it cannot."""
    if not os.path.ismount(place) and os.access(place.parent, os.W_OK | os.X_OK):
        return True
    print_message(
        f"{place} cannot be renamed (it is a mount point, or the folder around it is read-only): what it holds is "
        "deleted before the new content is complete."
    )
    return False
