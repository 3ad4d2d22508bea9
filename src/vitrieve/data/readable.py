"""Sort out the images that cannot be decoded, before a training run begins. Next file: ``augment.py``."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from vitrieve.data.decode import read_image
from vitrieve.data.records import ImageRecord
from vitrieve.errors import DataError, DecodeError
from vitrieve.progress import track

NUM_REASONS_SHOWN = 3


class Readable(NamedTuple):
    """Records that can be decoded, in order, and ``(image_id, reason)`` of those that cannot."""

    records: tuple[ImageRecord, ...]
    failures: tuple[tuple[str, str], ...]


def find_readable(records: Sequence[ImageRecord], *, max_bad_fraction: float, show_progress: bool = False) -> Readable:
    """Decode every image once.

    Args:
        records: Any number.
        max_bad_fraction: Largest share of undecodable images that is put up with, in [0, 1].
        show_progress: Report progress on standard error.

    Raises:
        DataError: More images than that are undecodable; the message names the first reasons.
    """
    with ThreadPoolExecutor(max_workers=2) as pool:
        done = pool.map(_find_reason, records)
        reasons = list(track(done, "read training images", total=len(records), is_shown=show_progress))
    failures = tuple(
        (record.image_id, reason) for record, reason in zip(records, reasons, strict=True) if reason is not None
    )
    if len(failures) > max_bad_fraction * len(records):
        shown = "; ".join(f"{image_id}: {reason}" for image_id, reason in failures[:NUM_REASONS_SHOWN])
        raise DataError(
            f"{len(failures)} of {len(records)} training images are unreadable, more than the {max_bad_fraction:.0%} "
            f"that --train.max-bad-fraction allows ({shown}). `vitrieve data check` lists them all."
        )
    good = tuple(record for record, reason in zip(records, reasons, strict=True) if reason is None)
    return Readable(good, failures)


def _find_reason(record: ImageRecord) -> str | None:
    try:
        read_image(record)
    except DecodeError as error:
        return str(error)
    return None
