"""Whether a folder still holds the index that was opened.

An index is checked when it is opened: its store, format, encoder and embedding size. A process that keeps it open for
days must know that what it reads is still that index. The manifest tells it: an index that is made anew is another
folder with another manifest, which takes the place of the old one when it is complete. Whoever finds the same manifest
after reading has read one index. That costs one ``stat`` a call.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Concatenate, ParamSpec, Protocol, TypeVar

from vitrieve.artifacts import MANIFEST_NAME
from vitrieve.errors import ArtifactError, InputError, ReplacedError
from vitrieve.index.lock import writing

P = ParamSpec("P")
R = TypeVar("R")

FileStamp = tuple[int, int, int]
"""Inode, modification time and size of a file: two files of one name differ in one of them."""


def read_stamp(path: Path) -> FileStamp | None:
    """Return what tells a file from the one that replaces it; None while there is none."""
    try:
        status = path.stat()
    except OSError:
        return None
    return (status.st_ino, status.st_mtime_ns, status.st_size)


class Identity:
    """The index that a folder held when it was opened.

    Args:
        folder: The index. Without a manifest it is being made, by this process, and everything is allowed.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._stamp = read_stamp(folder / MANIFEST_NAME)

    def require(self) -> None:
        """Refuse to go on where the folder no longer holds the index that was opened.

        Raises:
            ArtifactError: It holds none, for now or for good.
            ReplacedError: It holds another one.
        """
        stamp = read_stamp(self._folder / MANIFEST_NAME)
        if self._stamp in (None, stamp):
            return
        if stamp is None:
            raise ArtifactError(
                f"the index {self._folder} is gone: it was moved or deleted, or is being made anew. Once it is back, "
                "it is read again."
            )
        raise ReplacedError(f"the index {self._folder} was replaced by another one while it was open; open it again.")

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Hold the writer's lock, on the index that was opened; raises as ``lock.writing`` and ``require``."""
        with writing(self._folder):
            self.require()
            yield


class Identified(Protocol):
    """A store that knows which index it opened."""

    _identity: Identity
    _folder: Path


S = TypeVar("S", bound=Identified)


def guarded(read: Callable[Concatenate[S, P], R]) -> Callable[Concatenate[S, P], R]:
    """Let a method of a store return only what it has read from the index that was opened.

    Whatever an engine raises over files that have vanished or are damaged becomes an ``ArtifactError`` of one line.
    """

    @functools.wraps(read)
    def call(store: S, /, *args: P.args, **kwargs: P.kwargs) -> R:
        try:
            answer = read(store, *args, **kwargs)
        except InputError:
            store._identity.require()
            raise
        except (OSError, RuntimeError, ValueError) as error:
            store._identity.require()
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise ArtifactError(
                f"{store._folder} cannot be read ({reason}); vitrieve index --verify names the damage."
            ) from error
        store._identity.require()
        return answer

    return call
