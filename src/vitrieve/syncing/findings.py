"""What a person must be told of a sync, beside what it did."""

from __future__ import annotations

from collections.abc import Iterator

from vitrieve.quoting import quote_name
from vitrieve.syncing.run import SyncReport

NUM_FAILURES_SHOWN = 10


def list_findings(report: SyncReport) -> tuple[object, ...]:
    """List what is to be told once for as long as it stays so."""
    return report.failures, report.held, report.unreachable


def list_notes(report: SyncReport) -> Iterator[str]:
    """Say which images are bad, and which folders are out of reach."""
    for image_id, reason in report.failures[:NUM_FAILURES_SHOWN]:
        yield f"not indexed: {image_id}: {reason}"
    if len(report.failures) > NUM_FAILURES_SHOWN:
        yield f"and {len(report.failures) - NUM_FAILURES_SHOWN} more; --json lists them all"
    if report.unreachable:
        folders = ", ".join(map(quote_name, report.unreachable[:NUM_FAILURES_SHOWN]))
        yield f"kept: what the index holds of {folders}, which cannot be looked into now."


def list_errors(report: SyncReport) -> Iterator[str]:
    """Say why the sync is not fine: a removal that is held, or too many bad images."""
    if report.held:
        yield (
            f"{report.held.describe()}. They are kept in the index, as a drive may be off; when it is back, nothing "
            "is embedded again. To remove them, sync with --allow-removals."
        )
    if report.is_too_bad:
        yield (
            f"{len(report.failures)} of {report.num_images} images cannot be read, more than --max-bad-fraction "
            f"allows. The others are indexed; {report.num_kept} images that would have been removed are kept. Repair "
            "the files, or allow a larger share, and sync again."
        )
