"""What an engine raises, as errors of ours: LanceDB raises RuntimeError for whatever happens to its files."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from inspect import isgeneratorfunction
from pathlib import Path
from typing import Any, TypeVar

from vitrieve.artifacts import describe_full_disk, is_full_disk
from vitrieve.errors import ArtifactError, DiskFullError, VitrieveError

T = TypeVar("T")
_METHODS = ("upsert", "delete", "search", "get", "image_ids", "columns", "count", "optimize", "snapshot", "hold")


def translate_errors(store: type[T]) -> type[T]:
    """Let the methods of a store, and its ``create``, raise ``ArtifactError`` and ``DiskFullError`` for its files."""
    for name in _METHODS:
        setattr(store, name, _translated(getattr(store, name)))
    create = store.__dict__["create"].__func__

    @wraps(create)
    def create_translated(cls: type[T], folder: Path, *args: Any, **kwargs: Any) -> Any:
        with translating(folder):
            return create(cls, folder, *args, **kwargs)

    setattr(store, "create", classmethod(create_translated))  # noqa: B010  mypy knows no other way to replace it
    return store


def _translated(method: Callable[..., Any]) -> Callable[..., Any]:
    if isgeneratorfunction(method):

        @wraps(method)
        def generate(self: Any, *args: Any, **kwargs: Any) -> Any:
            with translating(self._folder):
                yield from method(self, *args, **kwargs)

        return generate

    @wraps(method)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        with translating(self._folder):
            return method(self, *args, **kwargs)

    return call


@contextmanager
def translating(folder: Path) -> Iterator[None]:
    """Turn what the engine raises in the block into an error about the index.

    Args:
        folder: The index.

    Raises:
        DiskFullError: Its disk is full; what was finished before is kept.
        ArtifactError: Its files are gone, damaged, or may not be changed.
    """
    try:
        yield
    except VitrieveError:
        raise
    except (OSError, RuntimeError, ValueError) as error:
        if is_full_disk(error):
            advice = "What the index held before is kept; make room and run the same command again."
            raise DiskFullError(describe_full_disk(folder, advice=advice)) from error
        if not folder.exists():
            raise ArtifactError(f"the index {folder} is gone; make it again.") from error
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ArtifactError(
            f"the index {folder} cannot be used ({reason}). vitrieve index --verify --index {folder} says what is "
            "damaged; make the index again, or put a copy of it back."
        ) from error
