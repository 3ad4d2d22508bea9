"""From images to embeddings: in memory (``embed_images``) and on disk, resumable (``embed_collection``).

The folder of embeddings holds ``vectors.npy`` (``(N, E)`` float32, good images only), ``rows.parquet`` (every
image, with its status) and the manifest. Until it is finished it holds what a killed run has already done: numbered
parts, each written whole or not at all. ``plan.json`` says of which encoder and which records the parts are; part ``i``
holds the records from ``i * PART_SIZE`` on. Several processes may write the parts: ``job_array.py`` divides them among
the jobs of a scheduler.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
import zipfile
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from vitrieve.artifacts import (
    read_manifest,
    replacing_durably,
    replacing_folder,
    sync_file,
    sync_folder,
    write_bytes_durably,
    write_manifest,
    write_text_durably,
    write_vectors_durably,
)
from vitrieve.data.parts import stat_picture
from vitrieve.data.records import Dataset, ImageRecord
from vitrieve.embed.batches import EncodedBatch, choose_chunk_size, encode_batches
from vitrieve.embed.rows import GROUP_ROWS, SCHEMA, STATUS_OK, StoredRecords, build_table, read_rows, to_records
from vitrieve.errors import ArtifactError, ConfigError, DataError, FingerprintError
from vitrieve.model.artifact import find_encoder_folder, require_made_by
from vitrieve.progress import track
from vitrieve.runtime.encoder import Encoder

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
        raise ArtifactError(f"{folder / PLAN_NAME} is damaged ({error}); start again with --overwrite.") from None


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
    advice = "Give what it was started with, or start again with --overwrite."
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


VECTORS_NAME = "vectors.npy"
ROWS_NAME = "rows.parquet"
NUM_REASONS_SHOWN = 3
MAX_HELD_RECORDS = 100_000
"""Records that loaded embeddings hold in memory, which takes a kilobyte for each; of more, they are read when they are
asked for."""
MAPPED_BLOCK_SIZE = 8192
"""Vectors that are mapped at a time."""


@dataclass(frozen=True, kw_only=True)
class EmbedSettings:
    """How a collection is embedded; nothing here changes the embeddings."""

    batch_size: int | None = None
    """Images in one forward pass; None: as many as the encoder's engine is fastest with."""
    num_threads: int | None = None
    """Threads that decode images; None: one for each core, up to four for an encoder on the CPU."""
    max_bad_fraction: float = 0.05
    """Largest share of images that may be unreadable, in [0, 1]."""
    show_progress: bool = False
    """Report progress on standard error."""

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        if self.batch_size is not None and self.batch_size < 1:
            raise ConfigError(f"batch_size is {self.batch_size}; it must be 1 or more.")
        if self.num_threads is not None and self.num_threads < 1:
            raise ConfigError(f"num_threads is {self.num_threads}; it must be 1 or more.")
        if not 0 <= self.max_bad_fraction <= 1:
            raise ConfigError(f"max_bad_fraction is {self.max_bad_fraction}; it must be between 0 and 1.")


@dataclass(frozen=True, kw_only=True)
class Embeddings:
    """The embeddings of a collection.

    Attributes:
        vectors: ``(N, E)`` float32, L2-normalized; a read-only memory map when loaded from disk.
        records: The ``N`` images that have a vector, in the order of the rows: a tuple, or what reads them from disk
            when they are asked for.
        failures: ``(image_id, reason)`` of every image that has none.
        fingerprint: Fingerprint of the encoder.
        encoder_source: Origin of the encoder: a folder or a weights name.
        image_size: Side of the encoder's input in pixels.
        license: License and attribution of the images; empty when unknown.
    """

    vectors: np.ndarray
    records: Sequence[ImageRecord]
    failures: tuple[tuple[str, str], ...]
    fingerprint: str
    encoder_source: str
    image_size: int
    license: str = ""

    def __post_init__(self) -> None:
        """Check that vectors and records belong together."""
        if self.vectors.ndim != 2 or self.vectors.dtype != np.float32:
            raise DataError(f"vectors must be (N, E) float32, not {self.vectors.shape} {self.vectors.dtype}.")
        if len(self.vectors) != len(self.records):
            raise DataError(f"{len(self.vectors)} vectors do not belong to {len(self.records)} records.")


def embed_images(
    encoder: Encoder,
    records: Sequence[ImageRecord],
    *,
    batch_size: int | None = None,
    num_threads: int | None = None,
    max_bad_fraction: float = 0.05,
    show_progress: bool = False,
) -> Embeddings:
    """Embed images in memory.

    Args:
        encoder: Turns pictures into embeddings.
        records: The images; the order of the result follows it.
        batch_size: Images in one forward pass; None: as many as the encoder's engine is fastest with.
        num_threads: Threads that decode images; None: one for each core, up to four for an encoder on the CPU.
        max_bad_fraction: Largest share of images that may be unreadable, in [0, 1].
        show_progress: Report progress on standard error.

    Returns:
        Vectors of the readable images, and the reasons of the others.

    Raises:
        DataError: No image, no readable image, or more unreadable ones than allowed.
    """
    settings = EmbedSettings(
        batch_size=batch_size, num_threads=num_threads, max_bad_fraction=max_bad_fraction, show_progress=show_progress
    )
    check_any(records)
    batches = _slices(records, choose_chunk_size(encoder, batch_size))
    encoded = list(_track_batches(encoder, batches, len(records), settings))
    reasons = [reason for batch in encoded for reason in batch.reasons]
    failures = _collect_failures(records, reasons)
    _check_failures(failures, len(records), max_bad_fraction, advice="")
    return Embeddings(
        vectors=np.concatenate([batch.vectors for batch in encoded]),
        records=tuple(record for record, reason in zip(records, reasons, strict=True) if reason is None),
        failures=tuple(failures),
        fingerprint=encoder.fingerprint,
        encoder_source=describe_source(encoder),
        image_size=encoder.preprocessing.image_size,
    )


def embed_collection(
    encoder: Encoder,
    dataset: Dataset,
    out: Path,
    *,
    settings: EmbedSettings | None = None,
    reuse: Path | str | None = None,
    is_resume: bool = False,
    is_overwrite: bool = False,
) -> Embeddings:
    """Embed a collection into a folder, so that a killed run can go on.

    Work is written in parts; a kill at any moment costs the part at hand. Memory holds the records
    and one part, whatever the size of the collection. A resumed run gives the same vectors as an uninterrupted one.

    Args:
        encoder: Turns pictures into embeddings.
        dataset: The collection; every record is embedded, in order.
        out: Folder to write.
        settings: Batch size, threads, share of unreadable images; None: the defaults.
        reuse: Embeddings of the same encoder; pictures that have a vector in there and have not changed since are not
            encoded again. None: all are encoded.
        is_resume: Go on with an unfinished folder.
        is_overwrite: Replace what is there.

    Returns:
        The embeddings, read back from the folder.

    Raises:
        DataError: No image, no readable image, or more unreadable ones than allowed; what is done is kept.
        ArtifactError: The folder is finished or of another collection.
        FingerprintError: The folder was begun with another encoder, or ``reuse`` is of another one.
    """
    settings = settings or EmbedSettings()
    records = name_labels(dataset)
    check_any(records)
    known = find_known(reuse, encoder, records)
    with replacing_folder(out, kind="embeddings", is_overwrite=is_overwrite, is_resume=is_resume) as folder:
        parts = open_parts(folder, encoder.fingerprint, records)
        write_missing_parts(encoder, records, parts, settings, known)
        finish_parts(folder, dataset, records, describe_encoder(encoder))
    return load_embeddings(out)


def describe_encoder(encoder: Encoder) -> dict[str, Any]:
    """Return what the manifest says about the encoder."""
    return {
        "fingerprint": encoder.fingerprint,
        "encoder_source": describe_source(encoder),
        "engine": encoder.engine,
        "precision": encoder.precision,
        "image_size": encoder.preprocessing.image_size,
        "embedding_dim": encoder.embedding_dim,
        "dtype": "float32",
    }


def finish_parts(
    folder: Path, dataset: Dataset, records: Sequence[ImageRecord], encoder_fields: Mapping[str, Any]
) -> None:
    """Join the parts, all of which are there, to the artifact.

    Args:
        folder: The unfinished artifact.
        dataset: The collection.
        records: Its records as ``open_parts`` was given them.
        encoder_fields: What ``describe_encoder`` returns.
    """
    begun = (folder / PLAN_NAME).stat().st_mtime
    num_good = _merge_parts(records, folder / "parts", folder, encoder_fields["embedding_dim"])
    manifest = {
        **encoder_fields,
        "num_images": len(records),
        "num_embedded": num_good,
        "begun": begun,
        "collection": dataset.name,
        "license": dataset.license,
    }
    write_manifest(folder, "embeddings", manifest)
    remove_parts(folder)


def write_mapped_embeddings(
    source: Path,
    out: Path,
    map_block: Callable[[np.ndarray], np.ndarray],
    *,
    manifest: Mapping[str, Any],
    is_overwrite: bool = False,
) -> Embeddings:
    """Write embeddings that are made of stored ones, a block at a time; the pictures are not read.

    Args:
        source: Folder of the stored embeddings.
        out: Folder to write.
        map_block: Function from ``(n, D)`` to ``(n, E)`` float32, rows of unit length.
        manifest: ``fingerprint``, ``encoder_source`` and ``embedding_dim`` of the encoder that the new ones are of.
        is_overwrite: Replace what ``out`` holds.

    Returns:
        The new embeddings, read back from the folder.

    Raises:
        ArtifactError: ``source`` cannot be read, or ``out`` is not free.
    """
    vectors = load_embeddings(source).vectors
    blocks = (
        map_block(vectors[start : start + MAPPED_BLOCK_SIZE]) for start in range(0, len(vectors), MAPPED_BLOCK_SIZE)
    )
    with replacing_folder(out, kind="embeddings", is_overwrite=is_overwrite, is_resumable=False) as folder:
        write_vectors_durably(folder / VECTORS_NAME, (len(vectors), manifest["embedding_dim"]), blocks)
        rows = (source / ROWS_NAME).read_bytes()
        write_bytes_durably(folder / ROWS_NAME, rows)
        write_manifest(folder, "embeddings", {**read_manifest(source, "embeddings"), **manifest})
    return load_embeddings(out)


def load_embeddings(folder: Path | str) -> Embeddings:
    """Load embeddings from a folder; the vectors stay on disk, as a memory map, and so do the records of many.

    Raises:
        ArtifactError: The folder is missing, unfinished, damaged or of another kind.
    """
    folder = Path(folder)
    manifest = read_manifest(folder, "embeddings")
    try:
        return _build_embeddings(folder, manifest, *_load_records(folder / ROWS_NAME))
    except ArtifactError:
        raise
    except (KeyError, TypeError, ValueError, OverflowError, pa.ArrowException) as error:
        raise ArtifactError(
            f"{folder} is damaged ({type(error).__name__}: {error}); make the embeddings again."
        ) from None


def _load_records(path: Path) -> tuple[Sequence[ImageRecord], tuple[tuple[str, str], ...]]:
    """Return the records of the good rows, and ``(image_id, reason)`` of the bad ones."""
    try:
        num_rows = pq.read_metadata(path).num_rows
    except (OSError, pa.ArrowException) as error:
        raise ArtifactError(f"{path} cannot be read ({error}); make the artifact again.") from None
    if num_rows > MAX_HELD_RECORDS:
        records = StoredRecords(path)
        return records, records.read_failures()
    table = read_rows(path)
    good = table.filter(pc.equal(table["status"], STATUS_OK))
    bad = table.filter(pc.not_equal(table["status"], STATUS_OK)).select(["image_id", "reason"]).to_pylist()
    return to_records(good), tuple((failure["image_id"], failure["reason"]) for failure in bad)


def _build_embeddings(
    folder: Path,
    manifest: Mapping[str, Any],
    records: Sequence[ImageRecord],
    failures: tuple[tuple[str, str], ...],
) -> Embeddings:
    vectors = read_vectors_file(folder / VECTORS_NAME, (len(records), manifest["embedding_dim"]))
    return Embeddings(
        vectors=vectors,
        records=records,
        failures=failures,
        fingerprint=manifest["fingerprint"],
        encoder_source=manifest["encoder_source"],
        image_size=manifest["image_size"],
        license=manifest["license"],
    )


def read_vectors_file(path: Path, shape: tuple[int, int]) -> np.ndarray:
    """Map the vectors of an artifact into memory, read-only.

    Raises:
        ArtifactError: The file is missing, damaged, or not float32 of ``shape``.
    """
    try:
        vectors: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # numpy reads the header as Python: a damaged one raises anything
        raise ArtifactError(f"{path} cannot be read ({error}); make the artifact again.") from None
    if vectors.shape != shape or vectors.dtype != np.float32:
        raise ArtifactError(
            f"{path} holds {vectors.shape} {vectors.dtype}, but its manifest and rows promise {shape} float32; "
            "make the artifact again."
        )
    return vectors


def write_missing_parts(
    encoder: Encoder,
    records: Sequence[ImageRecord],
    parts: Path,
    settings: EmbedSettings,
    known: Mapping[str, np.ndarray],
    *,
    numbers: range | None = None,
) -> list[tuple[str, str]]:
    """Encode the pictures of the parts that are not there, and write each part when it is done.

    Args:
        encoder: Turns pictures into embeddings.
        records: All records of the collection, in order.
        parts: Folder of the parts.
        settings: As ``embed_collection`` takes them.
        known: Vectors that are taken as they are, by ``image_id``.
        numbers: Parts to write; None: all.

    Returns:
        ``(image_id, reason)`` of each picture of these parts that has no vector.

    Raises:
        DataError: No readable image, or more unreadable ones than allowed of all records.
        FingerprintError: A part is of other work than the plan.
    """
    numbers = range(num_parts(len(records))) if numbers is None else numbers
    missing = find_missing(parts, numbers)
    failures = find_failures(records, parts, sorted(set(numbers) - set(missing)))
    size = choose_chunk_size(encoder, settings.batch_size)
    stamp = read_stamp(parts)
    some = (_split_known(records_of_part(records, number), known) for number in missing)
    num_left = count_records(records, missing)
    if known:
        num_left = sum(len(_split_known(records_of_part(records, number), known)) for number in missing)
    batches = (batch for unknown in some for batch in _slices(unknown, size))
    with closing(_track_batches(encoder, batches, num_left, settings)) as encoded:
        for number in missing:
            part_records = records_of_part(records, number)
            encoded_here = [next(encoded) for _ in _slices(_split_known(part_records, known), size)]
            part = write_part(part_path(parts, number), _merge_known(part_records, encoded_here, known), stamp)
            failures += _collect_failures(part_records, part.reasons)
            check_failures(failures, len(records), settings.max_bad_fraction)
        next(encoded, None)  # there is none left: this lets the progress say that it is done
    check_failures(failures, len(records), settings.max_bad_fraction)
    return failures


def count_records(records: Sequence[ImageRecord], numbers: Iterable[int]) -> int:
    """Count the records of some parts, without making them."""
    return sum(min(PART_SIZE, len(records) - number * PART_SIZE) for number in numbers)


def find_failures(records: Sequence[ImageRecord], parts: Path, numbers: Iterable[int]) -> list[tuple[str, str]]:
    """Read ``(image_id, reason)`` of the pictures without a vector in parts that are there."""
    failures: list[tuple[str, str]] = []
    for number in numbers:
        reasons = read_reasons(part_path(parts, number))
        if any(reason is not None for reason in reasons):
            failures += _collect_failures(records_of_part(records, number), reasons)
    return failures


def _split_known(records: Sequence[ImageRecord], known: Mapping[str, np.ndarray]) -> Sequence[ImageRecord]:
    """Return the records whose vectors are not known."""
    return [record for record in records if record.image_id not in known] if known else records


def find_known(reuse: Path | str | None, encoder: Encoder, records: Sequence[ImageRecord]) -> dict[str, np.ndarray]:
    """Find the vectors that ``embed_collection(…, reuse=…)`` takes as they are, by ``image_id``.

    Raises:
        FingerprintError: ``reuse`` is of another encoder.
        ArtifactError: It cannot be read, or does not say when it was begun.
    """
    return {} if reuse is None else _find_known(Path(reuse), encoder, records)


def _find_known(folder: Path, encoder: Encoder, records: Sequence[ImageRecord]) -> dict[str, np.ndarray]:
    """Find the vectors of pictures that were embedded before, and are the same now, by their ``image_id``."""
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
    if (os.path.abspath(record.path), record.box) != (str(before.path), before.box):
        return False
    try:
        status = stat_picture(record.path)
    except OSError:
        return False  # the reason why it cannot be read is found by who reads it
    return max(status.st_mtime, status.st_ctime) < begun


def _merge_known(
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


def _merge_parts(records: Sequence[ImageRecord], parts: Path, out: Path, embedding_dim: int) -> int:
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


def _track_batches(
    encoder: Encoder, batches: Iterable[Sequence[ImageRecord]], num_records: int, settings: EmbedSettings
) -> Generator[EncodedBatch, None, None]:
    encoded = encode_batches(encoder, batches, num_threads=settings.num_threads, batch_size=settings.batch_size)
    size = choose_chunk_size(encoder, settings.batch_size)
    return track(encoded, "embed", total=num_records, weight=size, is_shown=settings.show_progress)


def _slices(records: Sequence[ImageRecord], size: int) -> list[Sequence[ImageRecord]]:
    return [records[start : start + size] for start in range(0, len(records), size)]


def _collect_failures(records: Sequence[ImageRecord], reasons: Sequence[str | None]) -> list[tuple[str, str]]:
    pairs = zip(records, reasons, strict=True)
    return [(record.image_id, reason) for record, reason in pairs if reason is not None]


_ADVICE_ON_FULL_DISK = "What is done is kept: make room and repeat the command with --resume."
_ADVICE_ON_DISK = (
    " What is done is kept: repeat the command with --resume and a larger --max-bad-fraction; "
    "or repair the files and start again with --overwrite."
)


def check_failures(failures: Sequence[tuple[str, str]], num_records: int, max_bad_fraction: float) -> None:
    """Refuse a collection of which too many pictures have no vector; what is done stays on disk.

    Raises:
        DataError: As it says.
    """
    _check_failures(failures, num_records, max_bad_fraction, advice=_ADVICE_ON_DISK)


def _check_failures(
    failures: Sequence[tuple[str, str]], num_records: int, max_bad_fraction: float, *, advice: str
) -> None:
    shown = "; ".join(f"{image_id}: {reason}" for image_id, reason in failures[:NUM_REASONS_SHOWN])
    if len(failures) == num_records:
        raise DataError(f"none of the {num_records} images can be read. {shown}")
    if len(failures) > max_bad_fraction * num_records:
        raise DataError(
            f"{len(failures)} of {num_records} images cannot be read, more than the share of {max_bad_fraction:g} "
            f"that is allowed (max_bad_fraction). {shown}.{advice}"
        )


def check_any(records: Sequence[ImageRecord]) -> None:
    """Refuse a collection without pictures.

    Raises:
        DataError: There is none.
    """
    if not records:
        raise DataError("there is no image to embed.")


def name_labels(dataset: Dataset) -> tuple[ImageRecord, ...]:
    """Add the name of each record's class to its metadata, where there are classes."""
    if len(dataset.label_names) < 2:
        return tuple(dataset.records)
    names = dataset.label_names
    return tuple(
        replace(record, metadata={"label": names[record.label], **record.metadata}) for record in dataset.records
    )


def describe_source(encoder: Encoder) -> str:
    """Return the weights name, or the absolute path of the encoder's folder: it must be found from anywhere."""
    is_folder = find_encoder_folder(Path(encoder.source)) is not None
    return os.path.abspath(encoder.source) if is_folder else encoder.source
