"""``vitrieve sync`` reads the flags and prints what was done; ``syncing/sync.py`` syncs."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import tyro

from vitrieve.cli.arguments import (
    Adopt,
    BatchSize,
    DeviceFlag,
    ExcludeAsBefore,
    IndexImageSize,
    Json,
    NewStoreName,
    NewStoreUri,
    NoOcr,
    NumThreads,
    Ocr,
    Switch,
    read_data,
    read_ocr,
)
from vitrieve.cli.console import ask, print_error, print_json, print_message, print_result
from vitrieve.errors import ConfigError

if TYPE_CHECKING:
    from vitrieve.syncing.sync import SyncReport


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Make an index hold a collection as it is now; a stopped run goes on when it is started again."""

    collection: tyro.conf.Positional[str | None] = None
    """The same as --data, as it was spelled before."""
    data: str | None = None
    """A folder of pictures, or a source: table:FILE, folder:DIR, grocery:DIR, …"""
    index: Path
    """Folder of the index; made when it is not there."""
    exclude: ExcludeAsBefore = ()
    encoder: str | None = None
    """A run, an encoder folder, a weights name or hf:OWNER/NAME; None: the index's own, for a new one the default of
    `vitrieve weights list`."""
    store: NewStoreName = "lance"
    uri: NewStoreUri = None
    image_size: IndexImageSize = None
    batch_size: BatchSize = None
    device: DeviceFlag = "auto"
    num_threads: NumThreads = None
    max_bad_fraction: float = 0.05
    """Largest share of pictures that may be unreadable; above it nothing is removed, and the exit status is 1."""
    checksum: Switch = False
    """Compare the content of every file, whatever its size and times say."""
    allow_empty: Switch = False
    """Empty the index when the folder is missing or holds no picture."""
    adopt: Adopt = False
    allow_removals: Switch = False
    """Remove from the index what has vanished even when it is much: a tenth of it, or all of a top folder. Without it
    a person at a terminal is asked; else the images stay, as a drive may be off."""
    ocr: Ocr = False
    no_ocr: NoOcr = False
    watch: Switch = False
    """Go on, and sync again whenever the collection changes, until Ctrl-C."""
    json: Json = False


def run(arguments: Arguments) -> int:
    """Sync once, and again on every change with ``--watch``."""
    from vitrieve.syncing.scan import scan_collection
    from vitrieve.syncing.sync import NewIndex, SyncSettings, load_sync_encoder, sync
    from vitrieve.syncing.watch import follow

    if arguments.json and arguments.watch:
        raise ConfigError("--json prints one object at the end, and --watch has no end; leave one of them out.")
    settings = SyncSettings(
        batch_size=arguments.batch_size,
        num_threads=arguments.num_threads,
        max_bad_fraction=arguments.max_bad_fraction,
        is_checksum=arguments.checksum,
        is_removal_allowed=arguments.allow_removals,
        is_text_read=read_ocr(is_on=arguments.ocr, is_off=arguments.no_ocr),
        confirm=ask,
        show_progress=True,
    )
    source = read_data(arguments.data, arguments.collection)
    collection = scan_collection(
        source, arguments.index, exclude=arguments.exclude, is_empty_allowed=arguments.allow_empty
    )
    encoder = load_sync_encoder(
        arguments.index,
        arguments.encoder,
        image_size=arguments.image_size,
        num_threads=arguments.num_threads,
        device=arguments.device,
    )
    where = NewIndex(kind=arguments.store, uri=arguments.uri)
    report = sync(collection, arguments.index, encoder, settings=settings, store=where, adopt=arguments.adopt)
    if arguments.json:
        failures = [{"image_id": image_id, "reason": reason} for image_id, reason in report.failures]
        found = {**asdict(report), "failures": failures, "fingerprint": encoder.fingerprint}
        print_json({"index": str(arguments.index), **found})
    else:
        print_result(f"{arguments.index}: {report}")
    print_findings(report)
    if not arguments.watch:
        return 1 if report.is_too_bad or report.held else 0
    findings = report.failures, report.held, report.unreachable

    def tell(report: SyncReport) -> None:
        nonlocal findings
        if report.is_changed:
            print_result(f"{arguments.index}: {report}")
        if (report.failures, report.held, report.unreachable) != findings:  # told once for as long as it stays so
            print_findings(report)
        findings = report.failures, report.held, report.unreachable

    follow(collection, arguments.index, encoder, tell, settings=settings, where=where, adopt=arguments.adopt)
    return 0


def print_findings(report: SyncReport) -> None:
    """Report the bad images, and what they hinder."""
    print_message(*report.list_notes())
    for text in report.list_errors():
        print_error(text)
