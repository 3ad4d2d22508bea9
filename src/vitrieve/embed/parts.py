"""What a killed run has already done: numbered parts, each written whole or not at all.

``plan.json`` says of which encoder and which records the parts are; part ``i`` holds the records from
``i * PART_SIZE`` on. A part appears under its name only when it is complete and on the disk.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vitrieve.artifacts import replacing_durably, write_text_durably
from vitrieve.data.records import ImageRecord
from vitrieve.embed.batches import EncodedBatch
from vitrieve.errors import ArtifactError, FingerprintError

PART_SIZE = 256
"""Records in a part: what a kill can cost (seconds of work on a fast machine), and the size of one durable write."""


def open_parts(folder: Path, fingerprint: str, records: Sequence[ImageRecord]) -> Path:
    """Make the folder of parts, or check that the one of an earlier run is of the same work.

    Args:
        folder: The unfinished artifact.
        fingerprint: The encoder's.
        records: All records of the collection, in order.

    Returns:
        The folder of the parts.

    Raises:
        FingerprintError: The earlier run had another encoder.
        ArtifactError: The earlier run had another collection, or was none of embed.
    """
    plan = {"fingerprint": fingerprint, "num_records": len(records), "records_sha256": _digest(records)}
    path = folder / "plan.json"
    if path.is_file():
        _check_plan(folder, json.loads(path.read_text(encoding="utf-8")), plan)
    else:
        _check_nothing_else(folder)
        write_text_durably(path, json.dumps(plan, indent=2) + "\n")
    parts = folder / "parts"
    parts.mkdir(exist_ok=True)
    return parts


def _check_plan(folder: Path, found: dict[str, Any], plan: dict[str, Any]) -> None:
    advice = "Give what it was started with, or start again with --overwrite."
    if found.get("fingerprint") != plan["fingerprint"]:
        raise FingerprintError(
            f"{folder} was begun with another encoder (fingerprint {str(found.get('fingerprint'))[:12]}…, now "
            f"{plan['fingerprint'][:12]}…): the embeddings would not be comparable. {advice}"
        )
    if found != plan:
        raise ArtifactError(
            f"{folder} was begun on another collection ({found.get('num_records')} images, now "
            f"{plan['num_records']}, or other names). {advice}"
        )


def _check_nothing_else(folder: Path) -> None:
    """Refuse to resume, as embeddings, what another command has begun (a run, say)."""
    others = [path.name for path in folder.iterdir() if not path.name.startswith((".", "plan.json"))]
    if others:
        raise ArtifactError(f"{folder} was not begun by embed: it holds {others[0]}. Give another --out.")


def _digest(records: Sequence[ImageRecord]) -> str:
    """Hash what tells the records apart: names, regions and their order."""
    digest = hashlib.sha256()
    for record in records:
        digest.update(json.dumps([record.image_id, record.box]).encode())
    return digest.hexdigest()


def num_parts(num_records: int) -> int:
    """Count the parts of so many records.

    >>> num_parts(0), num_parts(PART_SIZE), num_parts(PART_SIZE + 1)
    (0, 1, 2)
    """
    return -(-num_records // PART_SIZE)


def records_of_part(records: Sequence[ImageRecord], number: int) -> Sequence[ImageRecord]:
    """Select the records of a part, in order."""
    return records[number * PART_SIZE : (number + 1) * PART_SIZE]


def part_path(parts: Path, number: int) -> Path:
    """Name the file of a part."""
    return parts / f"{number:06}.npz"


def write_part(path: Path, batches: Sequence[EncodedBatch]) -> EncodedBatch:
    """Write the batches of one part so that a kill leaves either all of it or nothing.

    Returns:
        The part as one batch.
    """
    vectors = np.concatenate([batch.vectors for batch in batches])
    part = EncodedBatch(vectors, tuple(reason for batch in batches for reason in batch.reasons))
    # Reasons as JSON bytes: an array of Python strings would have to be pickled.
    reasons = np.frombuffer(json.dumps(part.reasons).encode(), dtype=np.uint8)
    advice = "What is done is kept: make room and repeat the command with --resume."
    num_bytes = vectors.nbytes + reasons.nbytes
    with replacing_durably(path, num_bytes=num_bytes, advice=advice) as temporary, temporary.open("wb") as file:
        np.savez(file, vectors=vectors, reasons=reasons)
    return part


def read_vectors(path: Path) -> np.ndarray:
    """Read the ``(G, E)`` float32 vectors of a part's good records."""
    with np.load(path, allow_pickle=False) as arrays:
        return np.asarray(arrays["vectors"])


def read_reasons(path: Path) -> tuple[str | None, ...]:
    """Read for each record of a part why it has no vector; None where it has one."""
    with np.load(path, allow_pickle=False) as arrays:
        return tuple(json.loads(arrays["reasons"].tobytes()))


def remove_parts(folder: Path) -> None:
    """Remove parts and plan of an artifact that is finished."""
    shutil.rmtree(folder / "parts", ignore_errors=True)
    (folder / "plan.json").unlink(missing_ok=True)
