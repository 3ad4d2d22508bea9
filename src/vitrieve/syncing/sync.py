"""``sync``: make an index hold a collection as it is now; and again whenever the collection changes.

The command ``vitrieve sync`` calls the same functions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from vitrieve.artifacts import MANIFEST_NAME
from vitrieve.config import Device
from vitrieve.data.sources import find_source_path
from vitrieve.errors import ConfigError, InputError
from vitrieve.progress import print_message
from vitrieve.runtime.encoder import Encoder
from vitrieve.syncing import watch
from vitrieve.syncing.exclusion import recall_exclude
from vitrieve.syncing.run import SyncReport, SyncSettings
from vitrieve.syncing.scan import Collection, scan_collection
from vitrieve.syncing.session import NewStoreKind, SyncSession, load_index_encoder, open_session


def sync(
    collection: Collection | str | Path,
    index: str | Path,
    encoder: Encoder | str | Path | None = None,
    *,
    settings: SyncSettings | None = None,
    store: NewStoreKind = "lance",
    adopt: bool = False,
    device: Device = "auto",
) -> SyncReport:
    """Make an index hold a collection as it is now: embed what is new or changed, remove what is gone.

    ``sync("photos", "index")`` makes the index when it is not there. Killed at any moment, the same call goes on.

    Args:
        collection: A folder of pictures at any depth, another source as ``read_collection`` takes it, or what
            ``scan_collection`` made of one.
        index: Folder of the index.
        encoder: An encoder, a run, an encoder's folder or a weights name; None: the index's own, and for a new index
            dinov2-vits14.
        settings: How the collection is compared and embedded; None: the defaults.
        store: What a new index is.
        adopt: Take over an index of another collection, or of this one under another path.
        device: Where an encoder that is loaded here computes; ``auto``: on a GPU where torch sees one.

    Returns:
        What was done; printed, it is a line.

    Raises:
        DataError: The collection cannot be read.
        FingerprintError: The index is of another encoder.
        ArtifactError: Another sync works on the index, it is of another collection, or damaged.
    """
    settings = settings or SyncSettings()
    index = Path(index)
    if not isinstance(collection, Collection):
        collection = scan_collection(str(collection), index)
    for note in collection.notes:
        print_message(note)
    if not isinstance(encoder, Encoder):
        encoder = load_index_encoder(index, None if encoder is None else str(encoder), device=device)
    # What an index held that is taken over may go.
    settings = replace(settings, is_removal_allowed=settings.is_removal_allowed or adopt)
    with open_session(
        collection.source,
        index,
        encoder,
        kind=store,
        license=collection.license,
        exclude=collection.exclude,
        is_adopted=adopt,
    ) as session:
        return _sync_asking(session, collection, settings)


def _sync_asking(session: SyncSession, collection: Collection, settings: SyncSettings) -> SyncReport:
    """Sync once; ask a person, where there is one, before much is removed."""
    report = session.sync(collection, settings)
    if report.held and settings.confirm and settings.confirm(f"{report.held.describe()}. Remove them from the index?"):
        again = session.sync(collection, replace(settings, is_removal_allowed=True))
        counts = {name: getattr(report, name) for name in ("num_embedded", "num_reused", "num_described")}
        return replace(again, **counts)
    return report


def follow(
    collection: Collection,
    index: Path,
    encoder: Encoder,
    tell: Callable[[SyncReport], None],
    *,
    settings: SyncSettings,
    store: NewStoreKind = "lance",
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
        store: What an index is that has to be made again.
        adopt: Take over an index of another collection, or of this one under another path.

    Raises:
        ConfigError: The collection has no folder or file that could be watched.
    """
    path = find_source_path(collection.source)
    if path is None:
        raise ConfigError(f"{collection.source} names no folder or file that could be watched.")
    settings = replace(settings, is_bad_retried=False, confirm=None)
    troubles: list[str] = []  # the one that hinders syncing now, if any
    try:
        print_message(f"watching {path}; Ctrl-C ends it.")
        looks = watch.watch_changes(path, index, exclude=collection.exclude, is_pending=lambda: bool(troubles))
        for _ in looks:
            try:
                report = _sync_again(collection, index, encoder, settings, store, adopt)
            except (InputError, OSError) as error:
                if [str(error)] != troubles:  # once, not at every attempt
                    print_message(f"not synced: {error}")
                troubles[:] = [str(error)]
                continue
            troubles.clear()
            tell(report)
    except KeyboardInterrupt:
        print_message(f"stopped; {index} is as the last sync left it, and the next one goes on from there.")


def _sync_again(
    collection: Collection, index: Path, encoder: Encoder, settings: SyncSettings, store: NewStoreKind, adopt: bool
) -> SyncReport:
    """Sync once; the index is opened anew, as it may have been deleted, replaced or repaired since the last time.

    Another sync may have been told to leave out something else meanwhile: the last word counts.
    """
    exclude = () if recall_exclude(index) is not None else collection.exclude
    now = scan_collection(collection.source, index, exclude=exclude, is_empty_allowed=collection.is_empty_allowed)
    is_gone = not (index / MANIFEST_NAME).exists()
    with open_session(
        now.source, index, encoder, kind=store, license=now.license, exclude=now.exclude, is_adopted=adopt
    ) as session:
        if is_gone:
            print_message(f"{index} was deleted; it is made again.")
        return session.sync(now, settings)
