"""Vectors that were made before, of pictures that have not changed since."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from vitrieve.artifacts import read_manifest
from vitrieve.data.parts import stat_picture
from vitrieve.data.records import ImageRecord, find_absolute
from vitrieve.embed.batches import EncodedBatch
from vitrieve.embed.embeddings import load_embeddings
from vitrieve.errors import ArtifactError
from vitrieve.model.artifact import require_made_by
from vitrieve.runtime.encoder import Encoder


def find_known(reuse: Path | str | None, encoder: Encoder, records: Sequence[ImageRecord]) -> dict[str, np.ndarray]:
    """Find the vectors of pictures that were embedded before and are the same now, by ``image_id``.

    Args:
        reuse: Embeddings that were made before; None: there are none.
        encoder: The encoder of the new embeddings.
        records: Records of the new embeddings.

    Raises:
        FingerprintError: ``reuse`` is of another encoder.
        ArtifactError: It cannot be read, or does not say when it was begun.
    """
    if reuse is None:
        return {}
    folder = Path(reuse)
    stored, begun = load_embeddings(folder), read_manifest(folder, "embeddings").get("begun")
    require_made_by(
        f"{folder} was", stored.fingerprint, encoder.source, encoder.fingerprint, advice="Leave --reuse out."
    )
    if not isinstance(begun, int | float):
        raise ArtifactError(
            f"{folder} does not say when it was begun, so that nobody can tell which pictures have changed since (an "
            "older vitrieve made it). Leave --reuse out."
        )
    rows = {record.image_id: row for row, record in enumerate(stored.records)}
    known = {}
    for record in records:
        row = rows.get(record.image_id)
        if row is not None and _is_same_picture(record, stored.records[row], begun):
            known[record.image_id] = stored.vectors[row]
    return known


def _is_same_picture(record: ImageRecord, before: ImageRecord, begun: float) -> bool:
    """Tell whether a record is the region of the file that it was, and the file not written or moved since a time."""
    if (find_absolute(record.path), record.box) != (str(before.path), before.box):
        return False
    try:
        status = stat_picture(record.path)
    except OSError:
        return False  # the reason why it cannot be read is found by who reads it
    return max(status.st_mtime, status.st_ctime) < begun


def split_known(records: Sequence[ImageRecord], known: Mapping[str, np.ndarray]) -> Sequence[ImageRecord]:
    """Return the records whose vectors are not known."""
    return [record for record in records if record.image_id not in known] if known else records


def merge_known(
    records: Sequence[ImageRecord], encoded: Sequence[EncodedBatch], known: Mapping[str, np.ndarray]
) -> list[EncodedBatch]:
    """Put the vectors that are known between those that were encoded, in the order of the records."""
    if not any(record.image_id in known for record in records):
        return list(encoded)
    vectors = iter([vector for batch in encoded for vector in batch.vectors])
    reasons = iter([reason for batch in encoded for reason in batch.reasons])
    all_reasons = tuple(None if record.image_id in known else next(reasons) for record in records)
    rows = [
        known[record.image_id] if record.image_id in known else next(vectors)
        for record, reason in zip(records, all_reasons, strict=True)
        if reason is None
    ]
    return [EncodedBatch(np.stack(rows), all_reasons)]
