"""Sort out the images that cannot be decoded, before a training run begins."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from vitrieve.data.decode import describe_failure, read_image
from vitrieve.data.records import ImageRecord
from vitrieve.errors import DataError, DecodeError
from vitrieve.machine import count_cores
from vitrieve.progress import track

NUM_REASONS_SHOWN = 3
NUM_THREADS = max(2, min(32, count_cores()))
"""Pictures decoded at a time."""
BLOCK_SIZE = 1024
"""Images handed to the threads at once: a million waiting tasks would take a gigabyte."""


class Readable(NamedTuple):
    """Images that can be decoded, and those that cannot.

    Attributes:
        records: The readable ones, in order.
        failures: ``(image_id, reason)`` of the others.
        digests: SHA-256 of the file of each readable one, in order.
    """

    records: tuple[ImageRecord, ...]
    failures: tuple[tuple[str, str], ...]
    digests: tuple[bytes, ...]


def find_readable(records: Sequence[ImageRecord], *, max_bad_fraction: float, show_progress: bool = False) -> Readable:
    """Decode every image once.

    Args:
        records: All images of a source, whatever their split: the share of unreadable ones is one of the whole.
        max_bad_fraction: Largest share of undecodable images that is put up with, in [0, 1].
        show_progress: Report progress on standard error.

    Raises:
        DataError: More images than that are undecodable; the message names the first reasons.
    """
    outcomes = list(track(_read_all(records), "read images", total=len(records), is_shown=show_progress))
    pairs = list(zip(records, outcomes, strict=True))
    failures = tuple((record.image_id, outcome) for record, outcome in pairs if isinstance(outcome, str))
    if len(failures) > max_bad_fraction * len(records):
        shown = "; ".join(f"{image_id}: {reason}" for image_id, reason in failures[:NUM_REASONS_SHOWN])
        raise DataError(
            f"{len(failures)} of {len(records)} images are unreadable, more than the {max_bad_fraction:.0%} "
            f"that --train.max-bad-fraction allows ({shown}). `vitrieve data check` lists them all."
        )
    return Readable(
        records=tuple(record for record, outcome in pairs if isinstance(outcome, bytes)),
        failures=failures,
        digests=tuple(outcome for outcome in outcomes if isinstance(outcome, bytes)),
    )


def _read_all(records: Sequence[ImageRecord]) -> Iterator[bytes | str]:
    """Yield the digest of each image's file, or the reason why the image is unreadable, in order."""
    remaining = iter(records)
    with ThreadPoolExecutor(NUM_THREADS) as pool:
        while block := list(itertools.islice(remaining, BLOCK_SIZE)):
            yield from pool.map(_read, block)


def _read(record: ImageRecord) -> bytes | str:
    try:
        read_image(record)
        with record.path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").digest()
    except (DecodeError, MemoryError) as error:
        return describe_failure(error)
    except OSError as error:  # gone since it was decoded
        return f"the file cannot be read: {error.strerror or error}"
