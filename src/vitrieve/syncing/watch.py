"""``follow``: sync again whenever the collection changes. ``vitrieve sync --watch`` calls it.

The operating system's notices (through ``watchfiles``) only say when to look; what has changed is found by scanning
the whole collection. So a notice that is lost, or never comes (network drives, links to other places), delays a
change until the next regular look and loses nothing. Notices rather than looking every few seconds, because a look
at 100,000 files costs about a second of work.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from threading import Event

from watchfiles import Change, watch

from vitrieve.artifacts import MANIFEST_NAME
from vitrieve.data.decode import list_image_suffixes
from vitrieve.data.sources import find_source_path
from vitrieve.data.walk import IGNORE_NAME, Rules
from vitrieve.errors import ConfigError, DataError, InputError, first_line
from vitrieve.index.folder import read_stamp
from vitrieve.progress import print_failure, print_message
from vitrieve.runtime.encoder import Encoder
from vitrieve.syncing.scan import Collection, recall_exclude, scan_collection
from vitrieve.syncing.sync import LOCAL, NewIndex, SyncReport, SyncSettings, open_synced, read_place, sync_collection

DEBOUNCE_MS = 1_600
"""Longest time for which notices are gathered while they keep coming: many files are copied at once."""
QUIET_MS = 200
"""Without a notice for so long, what has come is acted upon."""
TICK_MS = 1_000
"""How often the clock is looked at without notices."""
RETRY_SECONDS = 5.0
"""Time between looks while the last one could not be acted upon."""
_MOUNTS = Path("/proc/self/mountinfo")
RESCAN_SECONDS = 300.0
"""Time between looks without a notice."""


def follow(
    collection: Collection,
    index: Path,
    encoder: Encoder,
    tell: Callable[[SyncReport], None],
    *,
    settings: SyncSettings,
    where: NewIndex = LOCAL,
    adopt: bool = False,
) -> None:
    """Sync again and again until Ctrl-C, which is the ordinary end: every sync leaves a consistent index.

    Nothing but that ends it: a full disk, a drive that is off, an index that was deleted or replaced are told in one
    line, and the next look tries again.

    Args:
        collection: What ``scan_collection`` found; it is scanned again each time.
        index: Folder of the index.
        encoder: Makes the vectors.
        tell: Told what each sync did.
        settings: How the collection is compared and embedded. Bad files that have not changed are not read again, and
            nobody is asked.
        where: Store and server of the index, where it has to be made and is not there when the watching begins.
        adopt: Take over an index of another collection, or of this one under another path.

    Raises:
        ConfigError: The collection has no folder or file that could be watched.
    """
    path = find_source_path(collection.source)
    if path is None:
        raise ConfigError(f"{collection.source} names no folder or file that could be watched.")
    if (index / MANIFEST_NAME).exists():
        where = read_place(index)
    settings = replace(settings, is_bad_retried=False, confirm=None)
    troubles: list[str] = []  # the one that hinders syncing now, if any
    try:
        print_message(f"watching {path}; Ctrl-C ends it.")
        looks = watch_changes(path, index, exclude=collection.exclude, is_pending=lambda: bool(troubles))
        for _ in looks:
            try:
                report = _sync_again(collection, index, encoder, settings, where, adopt)
            except (InputError, OSError) as error:
                if [str(error)] != troubles:  # once, not at every attempt
                    print_failure(f"not synced: {error}")
                troubles[:] = [str(error)]
                continue
            troubles.clear()
            tell(report)
    except KeyboardInterrupt:
        print_message(f"stopped; {index} is as the last sync left it, and the next one goes on from there.")


def _sync_again(
    collection: Collection, index: Path, encoder: Encoder, settings: SyncSettings, where: NewIndex, adopt: bool
) -> SyncReport:
    """Sync once; the index is opened anew, as it may have been deleted, replaced or repaired since the last time.

    Another sync may have been told to leave out something else meanwhile: the last word counts.
    """
    exclude = () if recall_exclude(index) is not None else collection.exclude
    now = scan_collection(collection.source, index, exclude=exclude, is_empty_allowed=collection.is_empty_allowed)
    is_gone = not (index / MANIFEST_NAME).exists()
    with open_synced(now, index, encoder, where=where, is_adopted=adopt) as synced:
        if is_gone:
            print_message(f"{index} was deleted; it is made again.")
        else:  # what the last sync was told is remembered
            settings = replace(settings, is_text_read=None)
        return sync_collection(synced, encoder, now, settings)


def watch_changes(
    path: Path,
    index: Path,
    *,
    exclude: str | Sequence[str] = (),
    stop: Event | None = None,
    rescan_seconds: float = RESCAN_SECONDS,
    is_pending: Callable[[], bool] = lambda: False,
) -> Iterator[None]:
    """Yield whenever the collection may have changed; once right after the watching has begun, for what came before.

    Args:
        path: Folder of the collection, or its manifest: then the folder around it.
        index: Folder of the index, whose own changes do not count.
        exclude: One pattern, or several, of what is left out of the folder; a change of it does not count.
        stop: Ends the watching when it is set.
        rescan_seconds: Time after which it is yielded without a notice.
        is_pending: Says whether the last look could not be acted upon, as on a full disk: then the next is soon.
    """
    stop = stop or Event()
    while not stop.is_set():
        root = path if path.is_dir() else path.parent
        if root.is_dir():
            with suppress(FileNotFoundError):  # it goes just now
                yield from _watch_place(path, root, index, exclude, stop, rescan_seconds, is_pending)
        else:
            stop.wait(TICK_MS / 1_000)


def _watch_place(
    path: Path,
    root: Path,
    index: Path,
    exclude: str | Sequence[str],
    stop: Event,
    rescan_seconds: float,
    is_pending: Callable[[], bool],
) -> Iterator[None]:
    """Watch until ``stop`` is set, or a drive has come or gone: notices belong to the folders that were there."""
    place = _describe_place(root)
    known_index = read_stamp(index / MANIFEST_NAME)
    looked = float("-inf")
    rules = Rules(root, exclude)
    notices = _watch_folder(
        root, lambda change, name: _may_matter(change, Path(name), rules, path, index), stop, rescan_seconds
    )
    for changes in notices:
        if _describe_place(root) != place:
            return
        pause = min(RETRY_SECONDS, rescan_seconds) if is_pending() else rescan_seconds
        found_index = read_stamp(index / MANIFEST_NAME)
        if changes or found_index != known_index or time.monotonic() - looked >= pause:
            rules = Rules(root, exclude)  # one of the files with patterns may have changed
            yield
            looked = time.monotonic()
            # An index that takes the place of this one during the look is found by the next; one that was not there is
            # the one that the look has made.
            known_index = read_stamp(index / MANIFEST_NAME) if found_index is None else found_index


def _watch_folder(
    root: Path, may_matter: Callable[[Change, str], bool], stop: Event, rescan_seconds: float
) -> Iterator[bool]:
    """Yield whether the system has told of changes, at least every ``TICK_MS``, until ``stop`` is set.

    A folder that may not be read is left out. The system watches a limited number of folders. If there are more, a
    message says so once. The library then watches as many as it can, and the regular look finds the rest.
    """
    is_told = False
    for is_lenient in (False, True):  # a library that is told to leave out folders is silent about the limit, too
        try:
            notices = watch(
                root,
                watch_filter=may_matter,
                debounce=DEBOUNCE_MS,
                step=QUIET_MS,
                rust_timeout=TICK_MS,
                yield_on_timeout=True,
                stop_event=stop,
                ignore_permission_denied=is_lenient,
            )
            yield from map(bool, notices)
            return
        except FileNotFoundError:
            raise
        except (OSError, RuntimeError) as error:
            if isinstance(error, PermissionError) and not is_lenient:
                continue
            if not is_told:
                print_message(
                    f"the system does not tell of every change in {root} ({first_line(error)}); all of it is looked "
                    f"at every {rescan_seconds:g} seconds. On Linux fs.inotify.max_user_watches and "
                    "fs.inotify.max_user_instances are its limits."
                )
            is_told = True
    while not stop.wait(TICK_MS / 1_000):
        yield False


def _describe_place(root: Path) -> tuple[object, ...]:
    """Tell a folder and the drives in it from another one at the same path; no notice tells that they changed."""
    try:
        lines = _MOUNTS.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:  # no Linux: the regular look finds it
        lines = []
    start = re.sub(r"[\s\\]", lambda sign: f"\\{ord(sign[0]):03o}", str(root.absolute()))
    return (_identify(root), *(line for line in lines if line.split(" ")[4].startswith(start)))


def _identify(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _may_matter(change: Change, name: Path, rules: Rules, path: Path, index: Path) -> bool:
    """Say whether a notice can be about an image: nothing that a walk leaves out, nothing of the index."""
    if name.is_relative_to(index.absolute()):
        return False
    if name == path.absolute() or name.name == IGNORE_NAME:
        return True
    root = rules.folder.absolute()
    try:
        if name.is_relative_to(root) and rules.is_passed_over(name.relative_to(root).as_posix()):
            return False
    except DataError:  # the next sync tells that the patterns cannot be read
        return True
    is_file_of_another_kind = (
        change != Change.deleted and name.is_file() and name.suffix.lower() not in list_image_suffixes()
    )
    return not is_file_of_another_kind
