"""``vitrieve sync``: keep an index true to a collection. Next: ``up.py``."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import tyro

from vitrieve.artifacts import MANIFEST_NAME
from vitrieve.cli.arguments import Exclude, Switch
from vitrieve.cli.console import ask, print_error, print_json, print_message, print_result
from vitrieve.errors import ConfigError, InputError
from vitrieve.quoting import quote_name

if TYPE_CHECKING:
    from vitrieve.runtime.encoder import Encoder
    from vitrieve.syncing.run import SyncReport, SyncSettings
    from vitrieve.syncing.scan import Collection
    from vitrieve.syncing.session import SyncSession

NUM_FAILURES_SHOWN = 10


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Make an index hold a collection as it is now; a stopped run goes on when it is started again."""

    collection: tyro.conf.Positional[str]
    """A folder of pictures, or a source: manifest:FILE, folder:DIR, grocery:DIR, …"""
    index: Path
    """Folder of the index; made when it is not there."""
    exclude: Exclude = ()
    """Leave out of the folder, like a line of .vitrieveignore: --exclude drafts/ --exclude '*_small.jpg'."""
    encoder: str | None = None
    """A run, an encoder folder or a weights name; None: the index's own, for a new one dinov2-vits14."""
    store: Literal["lance", "exact"] = "lance"
    """What a new index is."""
    image_size: int | None = None
    """Side of the square input in pixels; None: the index's or the encoder's own."""
    batch_size: int = 32
    """Pictures in one forward pass."""
    num_threads: int | None = None
    """CPU threads; None: all cores."""
    max_bad_fraction: float = 0.05
    """Largest share of pictures that may be unreadable; above it nothing is removed, and the exit status is 1."""
    checksum: Switch = False
    """Compare the content of every file, whatever its size and times say."""
    allow_empty: Switch = False
    """Empty the index when the folder is missing or holds no picture."""
    adopt: Switch = False
    """Take over an index of another collection, or of this one under another path."""
    allow_removals: Switch = False
    """Remove from the index what has vanished even when it is much: a tenth of it, or all of a top folder. Without it
    a person at a terminal is asked; else the images stay, as a drive may be off."""
    watch: Switch = False
    """Go on, and sync again whenever the collection changes, until Ctrl-C."""
    json: Switch = False
    """Print one JSON object."""


def run(arguments: Arguments) -> int:
    """Sync once, and again on every change with ``--watch``."""
    from vitrieve.syncing.run import SyncSettings
    from vitrieve.syncing.scan import scan_collection
    from vitrieve.syncing.session import load_index_encoder, open_session

    if arguments.json and arguments.watch:
        raise ConfigError("--json prints one object at the end, and --watch has no end; leave one of them out.")
    settings = SyncSettings(
        batch_size=arguments.batch_size,
        num_threads=arguments.num_threads,
        max_bad_fraction=arguments.max_bad_fraction,
        is_checksum=arguments.checksum,
        is_removal_allowed=arguments.allow_removals,
        show_progress=True,
    )
    collection = scan_collection(
        arguments.collection, arguments.index, exclude=arguments.exclude, is_empty_allowed=arguments.allow_empty
    )
    for note in collection.notes:
        print_message(note)
    encoder = load_index_encoder(
        arguments.index, arguments.encoder, image_size=arguments.image_size, num_threads=arguments.num_threads
    )
    with open_session(
        arguments.collection,
        arguments.index,
        encoder,
        kind=arguments.store,
        license=collection.license,
        is_adopted=arguments.adopt,
    ) as session:
        report = sync_asking(session, collection, settings, is_replaced=arguments.adopt)
        if arguments.json:
            print_json(_to_json(report, session, arguments.index))
        else:
            print_result(f"{arguments.index}: {describe_report(report, session.store.count())}")
        print_failures(report)
    if arguments.watch:
        _watch(encoder, arguments, replace(settings, is_bad_retried=False), report)
        return 0
    return 1 if report.is_too_bad or report.held else 0


def sync_asking(
    session: SyncSession, collection: Collection, settings: SyncSettings, *, is_replaced: bool = False
) -> SyncReport:
    """Sync once; ask a person at a terminal before much is removed.

    Args:
        session: The index.
        collection: What it is to hold.
        settings: How.
        is_replaced: What the index held may go: the user takes it over for this collection.
    """
    report = session.sync(collection, replace(settings, is_removal_allowed=settings.is_removal_allowed or is_replaced))
    if report.held and ask(f"{report.held.describe()}. Remove them from the index?"):
        again = session.sync(collection, replace(settings, is_removal_allowed=True))
        counts = {name: getattr(report, name) for name in ("num_embedded", "num_reused", "num_described")}
        return replace(again, **counts)
    return report


def _watch(encoder: Encoder, arguments: Arguments, settings: SyncSettings, report: SyncReport) -> None:
    """Sync again and again until Ctrl-C, which is the ordinary end: every sync leaves a consistent index.

    Nothing but that ends it: a full disk, a drive that is off, an index that was deleted or replaced are told in one
    line, and the next look tries again.
    """
    from vitrieve.data.sources import find_source_path
    from vitrieve.syncing.watch import watch_changes

    path = find_source_path(arguments.collection)
    if path is None:
        raise ConfigError(f"{arguments.collection} names no folder or file that could be watched.")
    troubles: list[str] = []  # the one that hinders syncing now, if any
    try:
        print_message(f"watching {path}; Ctrl-C ends it.")
        for _ in watch_changes(path, arguments.index, exclude=arguments.exclude, is_pending=lambda: bool(troubles)):
            try:
                previous, report = report, _sync_again(encoder, arguments, settings)
            except (InputError, OSError) as error:
                if [str(error)] != troubles:  # once, not at every attempt
                    print_message(f"not synced: {error}")
                troubles[:] = [str(error)]
                continue
            troubles.clear()
            if _list_findings(report) != _list_findings(previous):
                print_failures(report)
    except KeyboardInterrupt:
        print_message(f"stopped; {arguments.index} is as the last sync left it, and the next one goes on from there.")


def _sync_again(encoder: Encoder, arguments: Arguments, settings: SyncSettings) -> SyncReport:
    """Sync once; the index is opened anew, as it may have been deleted, replaced or repaired since the last time."""
    from vitrieve.syncing.scan import scan_collection
    from vitrieve.syncing.session import open_session

    collection = scan_collection(
        arguments.collection, arguments.index, exclude=arguments.exclude, is_empty_allowed=arguments.allow_empty
    )
    is_gone = not (arguments.index / MANIFEST_NAME).exists()
    with open_session(
        arguments.collection, arguments.index, encoder, kind=arguments.store, is_adopted=arguments.adopt
    ) as session:
        if is_gone:
            print_message(f"{arguments.index} was deleted; it is made again.")
        report = session.sync(collection, settings)
        if report.is_changed:
            print_result(f"{arguments.index}: {describe_report(report, session.store.count())}")
    return report


def _list_findings(report: SyncReport) -> tuple[object, ...]:
    """List what a person must be told of a sync, once for as long as it stays so."""
    return report.failures, report.held, report.unreachable


def describe_report(report: SyncReport, num_indexed: int) -> str:
    """Say in a line what a sync did."""
    done = (
        (report.num_embedded, "embedded"),
        (report.num_reused, "moved or copied"),
        (report.num_described, "with new metadata"),
        (report.num_removed, "removed"),
        (report.num_kept, "vanished but kept"),
        (len(report.failures), "unreadable"),
    )
    parts = ", ".join(f"{count} {what}" for count, what in done if count)
    return f"{num_indexed} images indexed; {parts or 'nothing to do'}"


def print_failures(report: SyncReport) -> None:
    """Report the bad images, and what they hinder."""
    for image_id, reason in report.failures[:NUM_FAILURES_SHOWN]:
        print_message(f"not indexed: {image_id}: {reason}")
    if len(report.failures) > NUM_FAILURES_SHOWN:
        print_message(f"and {len(report.failures) - NUM_FAILURES_SHOWN} more; --json lists them all")
    if report.unreachable:
        print_message(
            f"kept: what the index holds of {', '.join(map(quote_name, report.unreachable[:NUM_FAILURES_SHOWN]))}, "
            "which cannot be looked into now."
        )
    if report.held:
        print_error(
            f"{report.held.describe()}. They are kept in the index, as a drive may be off; when it is back, nothing "
            "is embedded again. To remove them, sync with --allow-removals."
        )
    if report.is_too_bad:
        print_error(
            f"{len(report.failures)} of {report.num_images} images cannot be read, more than --max-bad-fraction "
            f"allows. The others are indexed; {report.num_kept} images that would have been removed are kept. Repair "
            "the files, or allow a larger share, and sync again."
        )


def _to_json(report: SyncReport, session: SyncSession, index: Path) -> dict[str, object]:
    failures = [{"image_id": image_id, "reason": reason} for image_id, reason in report.failures]
    return {
        "index": str(index),
        "num_indexed": session.store.count(),
        **{**asdict(report), "failures": failures},
        "fingerprint": session.encoder.fingerprint,
    }
