"""From images to embeddings: in memory (``embed_images``) and on disk, resumable (``embed_collection``).

The folder that is written holds parts (``unfinished.py``) until all are there, and then embeddings (``embeddings.py``).
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from vitrieve.artifacts import replacing_folder, write_manifest
from vitrieve.data.records import Dataset, ImageRecord, find_absolute
from vitrieve.embed.batches import EncodedBatch, choose_chunk_size, encode_batches
from vitrieve.embed.embeddings import Embeddings, load_embeddings
from vitrieve.embed.reuse import find_known, merge_known, split_known
from vitrieve.embed.unfinished import (
    PLAN_NAME,
    collect_failures,
    count_records,
    find_failures,
    find_missing,
    merge_parts,
    num_parts,
    open_parts,
    part_path,
    read_stamp,
    records_of_part,
    remove_parts,
    write_part,
)
from vitrieve.errors import ConfigError, DataError
from vitrieve.model.artifact import find_encoder_folder
from vitrieve.progress import track
from vitrieve.quoting import spell_reasons
from vitrieve.runtime.encoder import Encoder


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
    failures = collect_failures(records, reasons)
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
    num_good = merge_parts(records, folder / "parts", folder, encoder_fields["embedding_dim"])
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
    some = (split_known(records_of_part(records, number), known) for number in missing)
    num_left = count_records(records, missing)
    if known:
        num_left = sum(len(split_known(records_of_part(records, number), known)) for number in missing)
    batches = (batch for unknown in some for batch in _slices(unknown, size))
    with closing(_track_batches(encoder, batches, num_left, settings)) as encoded:
        for number in missing:
            part_records = records_of_part(records, number)
            encoded_here = [next(encoded) for _ in _slices(split_known(part_records, known), size)]
            part = write_part(part_path(parts, number), merge_known(part_records, encoded_here, known), stamp)
            failures += collect_failures(part_records, part.reasons)
            check_failures(failures, len(records), settings.max_bad_fraction)
        next(encoded, None)  # there is none left: this lets the progress say that it is done
    check_failures(failures, len(records), settings.max_bad_fraction)
    return failures


def _track_batches(
    encoder: Encoder, batches: Iterable[Sequence[ImageRecord]], num_records: int, settings: EmbedSettings
) -> Generator[EncodedBatch, None, None]:
    encoded = encode_batches(encoder, batches, num_threads=settings.num_threads, batch_size=settings.batch_size)
    size = choose_chunk_size(encoder, settings.batch_size)
    return track(encoded, "embed", total=num_records, weight=size, is_shown=settings.show_progress)


def _slices(records: Sequence[ImageRecord], size: int) -> list[Sequence[ImageRecord]]:
    return [records[start : start + size] for start in range(0, len(records), size)]


_ADVICE_ON_DISK = (
    " What is done is kept: repeat the command with --resume and a larger --max-bad-fraction; "
    "or repair the files and give another --out."
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
    shown = spell_reasons(failures)
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
    return find_absolute(encoder.source) if is_folder else encoder.source
