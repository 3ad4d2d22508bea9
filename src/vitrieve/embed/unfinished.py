"""A folder of embeddings until it is finished: what a killed run has already done.

It holds numbered parts, each written whole or not at all. ``plan.json`` says of which encoder and which records the
parts are; part ``i`` holds the records from ``i * PART_SIZE`` on. Several processes may write the parts:
``job_array.py`` divides them among the jobs of a scheduler.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from vitrieve.data.records import ImageRecord
from vitrieve.embed.batches import EncodedBatch
from vitrieve.embed.embeddings import ROWS_NAME, VECTORS_NAME
from vitrieve.embed.rows import GROUP_ROWS, SCHEMA, build_table
from vitrieve.errors import ArtifactError, FingerprintError
from vitrieve.writing import replacing_durably, sync_file, sync_folder, write_text_durably, write_vectors_durably

PLAN_NAME = "plan.json"
PART_SIZE = 256
"""Records in a part: what a kill can cost (seconds of work on a fast machine), and the size of one durable write."""


def open_parts(
    folder: Path, fingerprint: str, records: Sequence[ImageRecord], shared: Mapping[str, Any] | None = None
) -> Path:
    """Make the folder of parts, or check that the one of an earlier run is of the same work.

    Args:
        folder: The unfinished artifact.
        fingerprint: The encoder's.
        records: All records of the collection, in order.
        shared: What processes that write parts of the same work must agree on, JSON values; None: one process writes.

    Returns:
        The folder of the parts.

    Raises:
        FingerprintError: The earlier run had another encoder.
        ArtifactError: The earlier run had another collection, or was none of embed; or another process disagrees.
    """
    plan = {"fingerprint": fingerprint, "num_records": len(records), "records_sha256": _digest(records)}
    plan |= shared or {}
    path = folder / PLAN_NAME
    others = list(folder.iterdir())  # looked at before the plan: another process may begin just now
    if not path.is_file():
        _check_nothing_else(folder, others)
        write_plan = _write_first if shared else write_text_durably
        write_plan(path, json.dumps(plan, indent=2) + "\n")
    _check_plan(folder, read_plan(folder), plan)
    parts = folder / "parts"
    parts.mkdir(exist_ok=True)
    return parts


def read_plan(folder: Path) -> dict[str, Any]:
    """Read of which work the parts of an unfinished artifact are.

    Raises:
        ArtifactError: The plan is damaged: a process was killed while it wrote it.
    """
    try:
        return dict(json.loads((folder / PLAN_NAME).read_text(encoding="utf-8")))
    except ValueError as error:
        raise ArtifactError(f"{folder / PLAN_NAME} is damaged ({error}); remove {folder} and start again.") from None


def _write_first(path: Path, text: str) -> None:
    """Write a file unless another process has: of those that try at once, one does."""
    temporary = path.with_name(path.name + _own_suffix())
    try:
        temporary.write_text(text, encoding="utf-8")
        sync_file(temporary)
        with suppress(FileExistsError):
            _link_or_write(temporary, path, text)
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)


def _link_or_write(temporary: Path, path: Path, text: str) -> None:
    """Give a file its name, which a rename would take from another process's; write it where a disk has no links."""
    try:
        os.link(temporary, path)
    except FileExistsError:
        raise
    except OSError:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
        sync_file(path)


def _own_suffix() -> str:
    return f".{socket.gethostname()}-{os.getpid()}.tmp"


def _check_plan(folder: Path, found: dict[str, Any], plan: dict[str, Any]) -> None:
    advice = "Give what it was started with, or another --out."  # shards take no --overwrite
    if found.get("fingerprint") != plan["fingerprint"]:
        raise FingerprintError(
            f"{folder} was begun with another encoder (fingerprint {str(found.get('fingerprint'))[:12]}…, now "
            f"{plan['fingerprint'][:12]}…): the embeddings would not be comparable. {advice}"
        )
    if any(found.get(name) != plan[name] for name in ("num_records", "records_sha256")):
        raise ArtifactError(
            f"{folder} was begun on another collection ({found.get('num_records')} images, now "
            f"{plan['num_records']}, or other names). {advice}"
        )
    for name, value in plan.items():
        if found.get(name) != value:
            raise ArtifactError(
                f"{folder} was begun with {name} {found.get(name)}, now {value}: whoever writes parts of the same "
                "embeddings must give the same."
            )


def _check_nothing_else(folder: Path, found: Sequence[Path]) -> None:
    """Refuse to resume, as embeddings, what another command has begun (a run, say)."""
    others = [path.name for path in found if not path.name.startswith((".", PLAN_NAME))]
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


def write_part(path: Path, batches: Sequence[EncodedBatch], stamp: str = "") -> EncodedBatch:
    """Write the batches of one part so that a kill leaves either all of it or nothing.

    Args:
        path: The file.
        batches: Batches of the part, in order.
        stamp: What ``read_stamp`` says of the work; empty in a part that nobody will compare.

    Returns:
        The part as one batch.
    """
    vectors = np.concatenate([batch.vectors for batch in batches])
    part = EncodedBatch(vectors, tuple(reason for batch in batches for reason in batch.reasons))
    # Reasons as JSON bytes: an array of Python strings would have to be pickled.
    reasons = np.frombuffer(json.dumps(part.reasons).encode(), dtype=np.uint8)
    advice = "What is done is kept: make room and repeat the command with --resume."
    num_bytes = vectors.nbytes + reasons.nbytes
    arrays = {"vectors": vectors, "reasons": reasons, "stamp": np.frombuffer(stamp.encode(), dtype=np.uint8)}
    writing = replacing_durably(path, num_bytes=num_bytes, advice=advice, suffix=_own_suffix())
    with writing as temporary, temporary.open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]  # its stub takes the names for those of switches
    return part


def read_stamp(parts: Path) -> str:
    """Read what every part of the work carries: a checksum of the plan.

    It tells parts of another encoder or collection, which only somebody who copies files can bring together.
    """
    return hashlib.sha256((parts.parent / PLAN_NAME).read_bytes()).hexdigest()


def find_missing(parts: Path, numbers: Iterable[int]) -> list[int]:
    """Find the parts that are not there, or not whole because a copy of them was cut short.

    Raises:
        FingerprintError: A part is of other work than the plan.
    """
    stamp = read_stamp(parts)
    return [number for number in numbers if not _is_whole(part_path(parts, number), stamp)]


def _is_whole(path: Path, stamp: str) -> bool:
    try:
        # The directory of a zip file stands at its end.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            found = arrays["stamp"].tobytes().decode() if "stamp" in arrays.files else stamp  # of an older vitrieve
            json.loads(arrays["reasons"].tobytes())
    except (FileNotFoundError, EOFError, KeyError, ValueError, zipfile.BadZipFile):
        return False
    if found != stamp:
        raise FingerprintError(
            f"{path} was made with another encoder, engine or collection than {path.parent.parent / PLAN_NAME} says: "
            "remove it, and make it again with what the other parts were made with."
        )
    return True


def read_vectors(path: Path) -> np.ndarray:
    """Read the ``(G, E)`` float32 vectors of a part's good records.

    Raises:
        ArtifactError: The file is damaged.
    """
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            return np.asarray(arrays["vectors"])
    except (EOFError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise ArtifactError(f"{path} is damaged ({error}): remove it, and embed again with --resume.") from None


def read_reasons(path: Path) -> tuple[str | None, ...]:
    """Read for each record of a part why it has no vector; None where it has one."""
    with np.load(path, allow_pickle=False) as arrays:
        return tuple(json.loads(arrays["reasons"].tobytes()))


def remove_parts(folder: Path) -> None:
    """Remove parts and plan of an artifact that is finished."""
    shutil.rmtree(folder / "parts", ignore_errors=True)
    for path in folder.glob(f"{PLAN_NAME}*"):  # also the temporary ones of processes that were killed
        path.unlink(missing_ok=True)


def count_records(records: Sequence[ImageRecord], numbers: Iterable[int]) -> int:
    """Count the records of some parts, without making them."""
    return sum(min(PART_SIZE, len(records) - number * PART_SIZE) for number in numbers)


def find_failures(records: Sequence[ImageRecord], parts: Path, numbers: Iterable[int]) -> list[tuple[str, str]]:
    """Read ``(image_id, reason)`` of the pictures without a vector in parts that are there."""
    failures: list[tuple[str, str]] = []
    for number in numbers:
        reasons = read_reasons(part_path(parts, number))
        if any(reason is not None for reason in reasons):
            failures += collect_failures(records_of_part(records, number), reasons)
    return failures


def merge_parts(records: Sequence[ImageRecord], parts: Path, out: Path, embedding_dim: int) -> int:
    """Join the parts into ``vectors.npy`` and ``rows.parquet``; return the number of good images."""
    paths = [part_path(parts, number) for number in range(num_parts(len(records)))]
    num_good = sum(reason is None for path in paths for reason in read_reasons(path))
    write_vectors_durably(out / VECTORS_NAME, (num_good, embedding_dim), map(read_vectors, paths))
    row = 0
    with (
        replacing_durably(out / ROWS_NAME, advice=_ADVICE_ON_FULL_DISK) as temporary,
        pq.ParquetWriter(temporary, SCHEMA) as writer,
    ):
        for start in range(0, len(paths), GROUP_ROWS // PART_SIZE):
            group = range(start, min(start + GROUP_ROWS // PART_SIZE, len(paths)))
            some = [record for number in group for record in records_of_part(records, number)]
            reasons = [reason for number in group for reason in read_reasons(paths[number])]
            writer.write_table(build_table(some, reasons, row))
            row += sum(reason is None for reason in reasons)
        writer.close()  # before the file is made durable
    return num_good


def collect_failures(records: Sequence[ImageRecord], reasons: Sequence[str | None]) -> list[tuple[str, str]]:
    """List ``(image_id, reason)`` of the records that have no vector."""
    pairs = zip(records, reasons, strict=True)
    return [(record.image_id, reason) for record, reason in pairs if reason is not None]


_ADVICE_ON_FULL_DISK = "What is done is kept: make room and repeat the command with --resume."
