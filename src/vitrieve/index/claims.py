"""What an index has on a server while no manifest says so: tables and collections that are being made or replaced.

A process may be killed at any moment, and its folder then says nothing of the table that it made. So a claim is written
beside the index before the table is made: a file with the server's address and the table's name, locked for as long as
its process lives. One rule settles a claim at the end, whatever the end was, and a claim whose process is dead when the
index is next written: what the manifest of the index names stays, and anything else is removed from its server.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from vitrieve.artifacts import MANIFEST_NAME
from vitrieve.errors import VitrieveError
from vitrieve.folders import find_aside, is_replaceable
from vitrieve.index.store import SERVERS, StoreKind
from vitrieve.progress import print_message
from vitrieve.systems import CHANGE, remove_locked, try_lock, wait_for_lock
from vitrieve.writing import explaining_full_disk, sync_folder

Release = Callable[[StoreKind, str, str], None]
"""Removes from a server what an index has there: the kind of its store, its address, and the name."""
_NAME = re.compile(r"vitrieve_[0-9a-f]{32}")


@dataclass(frozen=True, kw_only=True)
class Claim:
    """What a process has on a server.

    Attributes:
        kind: Store of the index.
        uri: Address of its server.
        name: Name of its table or collection.
        folder: Name of the folder where the index is made, beside its place; empty where it is made in its place.
    """

    kind: StoreKind
    uri: str
    name: str
    folder: str = ""


class Claims:
    """The claims of this process on behalf of one index.

    Args:
        out: Place of the index.
        release: Removes what is not kept.

    Attributes:
        feedback_key: Key of the corrections of the replaced index (``find_feedback_key``); None where it has none on a
            server.
    """

    def __init__(self, out: Path, release: Release) -> None:
        self.feedback_key: str | None = None
        self._out = out.resolve()  # of a link, what it leads to
        self._release = release
        self._open: dict[Path, int] = {}

    def add(self, claim: Claim) -> None:
        """Write a claim; it is on disk when the call returns.

        Raises:
            DiskFullError: There is no room for it.
            OSError: The folder around the index cannot be written.
        """
        folder = self._out.parent if is_replaceable(self._out) else self._out
        path = folder / f".{self._out.name}.{claim.name}.claim"
        with explaining_full_disk(path):
            self._open[path] = _make_locked(path)
            os.write(self._open[path], json.dumps(asdict(claim)).encode())
            os.fsync(self._open[path])
            sync_folder(folder)

    def settle(self) -> None:
        """Keep or remove what was claimed, as the manifest of the index says; what is kept comes first."""
        named = _read_named(self._out)
        for path in sorted(self._open, key=lambda path: not _is_named(path, named)):
            _settle_and_close(self._out, path, self._open.pop(path), named, self._release)


@contextmanager
def settling(out: Path, release: Release) -> Iterator[Claims]:
    """Settle the claims that the block adds, and first those of processes that were killed.

    Args:
        out: Place of the index.
        release: Removes from its server what is not kept.
    """
    settle_abandoned(out, release)
    claims = Claims(out, release)
    try:
        yield claims
    finally:
        claims.settle()


def settle_abandoned(out: Path, release: Release) -> None:
    """Settle the claims of processes that were killed; those of living ones are left to them.

    Args:
        out: Place of the index.
        release: Removes from its server what is not kept. Where that fails it is told, and tried again the next time.
    """
    out = out.resolve()
    for path in _find(out):
        try:
            descriptor = os.open(path, CHANGE)
        except OSError:  # another process has just settled it, or it is somebody else's
            continue
        try:
            is_ours = try_lock(descriptor) and _is_at(path, descriptor)
        except OSError:
            is_ours = False
        if is_ours:
            _settle_and_close(out, path, descriptor, _read_named(out), release)
        else:
            os.close(descriptor)


def _find(out: Path) -> list[Path]:
    prefix, suffix = f".{out.name}.", ".claim"
    found = []
    for folder in (out.parent, out):
        with suppress(OSError):
            found += [folder / name for name in os.listdir(folder) if name.startswith(prefix) and name.endswith(suffix)]
    return sorted(path for path in found if _NAME.fullmatch(path.name[len(prefix) : -len(suffix)]))


def _make_locked(path: Path) -> int:
    """Make a file, and lock it; once more where another process took it for abandoned before it was locked."""
    while True:
        descriptor = os.open(path, CHANGE | os.O_CREAT | os.O_TRUNC, 0o644)
        wait_for_lock(descriptor)
        if _is_at(path, descriptor):
            return descriptor
        os.close(descriptor)


def _is_at(path: Path, descriptor: int) -> bool:
    """Say whether an open file still has its name: another process may have removed it before it was locked."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _read(path: Path) -> Claim | None:
    """Read a claim; None where its process was killed while it wrote it, before it made anything on a server."""
    try:
        claim = Claim(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None
    return claim if claim.kind in SERVERS and _NAME.fullmatch(claim.name) else None


def _read_named(out: Path) -> set[object] | None:
    """Read the names that the index in its place may stand for; None where its manifest cannot be read."""
    named: set[object] = set()
    for folder in (out, find_aside(out)):
        try:
            named.update(json.loads((folder / MANIFEST_NAME).read_text(encoding="utf-8")).values())
        except (FileNotFoundError, NotADirectoryError):
            continue
        except (OSError, ValueError, AttributeError, TypeError):
            return None
    return named


def _is_named(path: Path, named: set[object] | None) -> bool:
    claim = _read(path)
    return claim is not None and named is not None and claim.name in named


def _settle_and_close(out: Path, path: Path, descriptor: int, named: set[object] | None, release: Release) -> None:
    """Settle a claim whose file this process has locked, and close the file."""
    is_settled = False
    try:
        is_settled = _settle(out, path, named, release)
    finally:
        if is_settled:
            remove_locked(path, descriptor)
        else:
            os.close(descriptor)


def _settle(out: Path, path: Path, named: set[object] | None, release: Release) -> bool:
    """Keep or remove what was claimed; return whether the claim has done its work."""
    if named is None:  # nothing tells what belongs to the index
        return False
    claim = _read(path)
    if claim is not None and claim.name not in named:
        try:
            release(claim.kind, claim.uri, claim.name)
        except VitrieveError as error:
            print_message(
                f"{claim.name}, of an index that is gone, stays on its {SERVERS[claim.kind]} server: {error} The next "
                f"command that writes {out} tries again; delete {path} to let it stay."
            )
            return False
        if _is_beside(out, claim.folder):
            shutil.rmtree(out.parent / claim.folder, ignore_errors=True)
    return True


def _is_beside(out: Path, folder: str) -> bool:
    return re.fullmatch(rf"\.{re.escape(out.name)}\.(new|\d+)", folder) is not None
