"""``vitrieve data pack``: the images of a source in shards, small enough to read quickly, with an index.

A picture that is larger than asked for, has a box, or is no JPEG, PNG or WebP is decoded by the rule of ``decode.py``
and becomes a JPEG; any other keeps its bytes. Processes prepare the pictures, and this one writes them in the order of
the source. A shard ends before the picture that would make it too large. So what is written follows from the source and
the settings alone, however many processes work and however often they are stopped.

Until the folder is finished, ``parts/`` says of each finished shard which rows it holds and where the next one goes on.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import threading
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from dataclasses import asdict, dataclass
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from vitrieve.artifacts import replacing_folder, write_manifest
from vitrieve.data.decode import describe_failure, encode_jpeg, open_picture, read_header, read_image_bytes
from vitrieve.data.records import Dataset, ImageRecord
from vitrieve.data.remote import shorten_addresses
from vitrieve.data.shards import INDEX_NAME, SCHEMA, Shard, add_set, add_shards, describe_set
from vitrieve.data.tars import BLOCK_BYTES, END_OF_ARCHIVE, build_member
from vitrieve.errors import ArtifactError, ConfigError, DataError, DecodeError, VitrieveError
from vitrieve.machine import count_cores
from vitrieve.progress import track
from vitrieve.quoting import spell_reasons
from vitrieve.writing import replacing_durably, write_text_durably

JPEG_QUALITY = 92
"""A picture that is made smaller shows nothing of it at this quality, and takes a quarter of a lossless file."""
SUFFIXES = {"JPEG": ".jpg", "PNG": ".png", "WEBP": ".webp"}
"""Formats whose files are kept as they are, as WebDataset's readers know them."""
CHUNK_SIZE = 32
"""Records that a process is given at a time."""
UNREADABLE_NAME = "unreadable.parquet"
_PLAN_NAME = "plan.json"
_STATE_KEY = b"vitrieve_part"
_ADVICE = "What is done is kept: make room and repeat the command with --resume."


@dataclass(frozen=True, kw_only=True)
class PackSettings:
    """How images are packed."""

    max_side_px: int | None = 512
    """Longest side that a picture keeps; larger ones are made smaller. None: all keep their size."""
    shard_mib: int = 256
    """Largest size of a shard in MiB; a single picture may exceed it."""
    num_processes: int | None = None
    """Processes that decode; None: one for each core."""
    max_bad_fraction: float = 0.05
    """Largest share of images that may be unreadable, in [0, 1]."""
    show_progress: bool = False
    """Report progress on standard error."""

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        for name in ("max_side_px", "shard_mib", "num_processes"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name} is {value}; it must be 1 or more.")
        if not 0 <= self.max_bad_fraction <= 1:
            raise ConfigError(f"max_bad_fraction is {self.max_bad_fraction}; it must be between 0 and 1.")


@dataclass(frozen=True, kw_only=True)
class PackReport:
    """What was packed.

    Attributes:
        folder: Folder of the shards.
        num_images: Images in them.
        num_shards: Archives.
        num_bytes: Size of all archives.
        failures: ``(image_id, reason)`` of every image that could not be read, and is not in them.
    """

    folder: Path
    num_images: int
    num_shards: int
    num_bytes: int
    failures: tuple[tuple[str, str], ...]


class _Picture(NamedTuple):
    """A picture as it is packed."""

    suffix: str
    data: bytes


def pack_dataset(
    dataset: Dataset,
    out: Path | str,
    *,
    settings: PackSettings | None = None,
    overwrite: bool = False,
    resume: bool = False,
) -> PackReport:
    """Pack the images of a data set into shards, so that a killed run can go on.

    Args:
        dataset: Its records are packed in order; a record with a box becomes the picture in the box.
        out: Folder to write; ``shards:OUT`` reads it.
        settings: Sizes and processes; None: the defaults.
        overwrite: Replace what is there.
        resume: Go on with an unfinished folder. The result is the same, byte for byte, as without the stop.

    Raises:
        DataError: No image, or more unreadable ones than allowed.
        ConfigError: ``out`` is an address.
        ArtifactError: The folder is finished, or was begun with another source or other settings.
        DiskFullError: There is no room; what is done is kept.
    """
    settings = settings or PackSettings()
    if not dataset.records:
        raise DataError(f"{dataset.name} has no image to pack.")
    if re.match(r"[a-z0-9]+:/", os.fspath(out)):  # a Path holds one slash of an address
        raise ConfigError(
            f"--out {shorten_addresses(os.fspath(out))} is an address, and shards are written to a folder. Pack there, "
            "and copy it when it is finished: aws s3 cp --recursive SHARDS s3://BUCKET/SHARDS, for example; "
            "shards:s3://BUCKET/SHARDS then reads it."
        )
    out = Path(out)
    with replacing_folder(out, kind="shards", is_overwrite=overwrite, is_resume=resume) as folder:
        _check_plan(folder, dataset, settings)
        parts = folder / "parts"
        parts.mkdir(exist_ok=True)
        packer = _Packer(folder, dataset, settings)
        packer.write_missing_shards()
        report = packer.write_index(out)
        write_manifest(
            folder,
            "shards",
            {
                "num_images": report.num_images,
                "num_shards": report.num_shards,
                "num_bytes": report.num_bytes,
                "num_unreadable": len(report.failures),
                "max_side_px": settings.max_side_px,
                "collection": dataset.name,
                "license": dataset.license,
            },
        )
        shutil.rmtree(parts, ignore_errors=True)
        (folder / _PLAN_NAME).unlink(missing_ok=True)
    return report


def _check_plan(folder: Path, dataset: Dataset, settings: PackSettings) -> None:
    """Write what is packed, or refuse to go on with something else."""
    digest = hashlib.sha256(json.dumps(asdict(describe_set(dataset))).encode())
    for record in dataset.records:
        said = [record.image_id, record.label, record.split, record.is_query, record.is_gallery, record.box]
        digest.update(json.dumps([*said, dict(record.metadata)]).encode())
    plan = {
        "num_records": len(dataset.records),
        "sha256": digest.hexdigest(),
        "max_side_px": settings.max_side_px,
        "shard_mib": settings.shard_mib,
    }
    path = folder / _PLAN_NAME
    if not path.is_file():
        others = [one.name for one in folder.iterdir() if not one.name.startswith((".", _PLAN_NAME))]
        if others:
            raise ArtifactError(f"{folder} was not begun by data pack: it holds {others[0]}. Give another --out.")
        write_text_durably(path, json.dumps(plan, indent=2) + "\n")
        return
    found = json.loads(path.read_text(encoding="utf-8"))
    different = [name for name, value in plan.items() if found.get(name) != value]
    if different:
        raise ArtifactError(
            f"{folder} was begun with other images or settings ({different[0]} was {found.get(different[0])}, and is "
            f"{plan[different[0]]}). Give what it was begun with, or start again with --overwrite "
            "and without --resume."
        )


@dataclass(frozen=True)
class _Part:
    """What is known of a finished shard.

    Attributes:
        shard: The archive.
        next_row: Position of the first record that is not in it, nor unreadable before it.
        failures: ``(image_id, reason)`` of unreadable images up to there.
        num_images: Pictures in it.
    """

    shard: Shard
    next_row: int
    failures: tuple[tuple[str, str], ...]
    num_images: int


class _Packer:
    """Writes the shards one after the other."""

    def __init__(self, folder: Path, dataset: Dataset, settings: PackSettings) -> None:
        self._folder, self._dataset, self._settings = folder, dataset, settings
        self._parts: list[_Part] = []
        while (path := self._part_path(len(self._parts))).is_file():
            self._parts.append(_read_part(path))
        self._failures = [failure for part in self._parts for failure in part.failures]
        """Those of finished shards, and of the one in work."""

    def write_missing_shards(self) -> None:
        """Write the shards that are not there yet."""
        records = self._dataset.records
        start = self._parts[-1].next_row if self._parts else 0
        if start == len(records):
            return
        prepared = prepare_pictures(records[start:], self._settings)
        tracked = track(prepared, "pack", total=len(records) - start, is_shown=self._settings.show_progress)
        with closing(tracked), closing(prepared):
            pictures = self._pass_over_failures(enumerate(tracked, start))
            ahead = next(pictures, None)
            while ahead is not None:
                ahead = self._write_shard(ahead, pictures)

    def _pass_over_failures(self, outcomes: Iterator[tuple[int, _Picture | str]]) -> Iterator[tuple[int, _Picture]]:
        """Yield the pictures with their positions, and note the images that have none."""
        for row, outcome in outcomes:
            if isinstance(outcome, str):
                self._failures.append((self._dataset.records[row].image_id, outcome))
                self._check_failures()
            else:
                yield row, outcome

    def _check_failures(self) -> None:
        total, bad = len(self._dataset.records), len(self._failures)
        if bad > self._settings.max_bad_fraction * total:
            raise DataError(
                f"{bad} of {total} images cannot be read, more than the share of {self._settings.max_bad_fraction:g} "
                f"that is allowed (max_bad_fraction). {spell_reasons(self._failures)}. What is done is kept: "
                "repeat the command with --resume and a larger --max-bad-fraction; or repair the files and start again "
                "with --overwrite."
            )

    def _write_shard(
        self, first: tuple[int, _Picture], pictures: Iterator[tuple[int, _Picture]]
    ) -> tuple[int, _Picture] | None:
        """Write one shard, and return the picture that goes into the next; None after the last."""
        name, num_earlier = f"{len(self._parts):06}.tar", sum(len(part.failures) for part in self._parts)
        columns: dict[str, list[Any]] = {column: [] for column in SCHEMA.names}
        ahead: tuple[int, _Picture] | None = first
        max_bytes = (self._settings.shard_mib << 20) - len(END_OF_ARCHIVE)
        with (
            replacing_durably(self._folder / name, advice=_ADVICE) as temporary,
            temporary.open("wb") as file,
        ):
            while ahead is not None:
                row, picture = ahead
                record = self._dataset.records[row]
                sample = _build_sample(record, self._dataset.label_names[record.label], row, picture)
                if file.tell() and file.tell() + len(sample) > max_bytes:
                    break
                self._add_row(columns, name, file.tell() + BLOCK_BYTES, ahead)
                file.write(sample)
                ahead = next(pictures, None)
            file.write(END_OF_ARCHIVE)
            num_bytes = file.tell()
        part = _Part(
            shard=Shard(name=name, num_bytes=num_bytes),
            next_row=len(self._dataset.records) if ahead is None else ahead[0],
            failures=tuple(self._failures[num_earlier:]),
            num_images=len(columns["key"]),
        )
        _write_part(self._part_path(len(self._parts)), part, columns)
        self._parts.append(part)
        return ahead

    def _add_row(self, columns: dict[str, list[Any]], shard: str, offset: int, ahead: tuple[int, _Picture]) -> None:
        row, picture = ahead
        record = self._dataset.records[row]
        values = {
            "key": _spell_key(row),
            "image_id": record.image_id,
            "shard": shard,
            "offset": offset,
            "length": len(picture.data),
            "suffix": picture.suffix,
            "label": self._dataset.label_names[record.label],
            "split": record.split,
            "is_query": record.is_query,
            "is_gallery": record.is_gallery,
            "metadata": sorted(record.metadata.items()),
        }
        for name, value in values.items():
            columns[name].append(value)

    def write_index(self, out: Path) -> PackReport:
        """Join what is known of the shards into the index, and list the unreadable images."""
        if not self._parts:
            raise DataError(f"none of the {len(self._dataset.records)} images can be read. {self._failures[0][1]}")
        shard_set = add_shards(describe_set(self._dataset), [part.shard for part in self._parts])
        schema = add_set(SCHEMA, shard_set)
        with (
            replacing_durably(self._folder / INDEX_NAME, advice=_ADVICE) as temporary,
            pq.ParquetWriter(temporary, schema) as writer,
        ):
            for number in range(len(self._parts)):
                table = pq.read_table(self._part_path(number)).cast(SCHEMA)
                writer.write_table(table.replace_schema_metadata(schema.metadata))
            writer.close()  # before the file is made durable
        bad = {"image_id": [name for name, _ in self._failures], "reason": [reason for _, reason in self._failures]}
        with replacing_durably(self._folder / UNREADABLE_NAME, advice=_ADVICE) as temporary:
            pq.write_table(
                pa.table(bad, schema=pa.schema([("image_id", pa.string()), ("reason", pa.string())])), temporary
            )
        return PackReport(
            folder=out,
            num_images=sum(part.num_images for part in self._parts),
            num_shards=len(self._parts),
            num_bytes=sum(part.shard.num_bytes for part in self._parts),
            failures=tuple(self._failures),
        )

    def _part_path(self, number: int) -> Path:
        return self._folder / "parts" / f"{number:06}.parquet"


def _write_part(path: Path, part: _Part, columns: dict[str, list[Any]]) -> None:
    state = {"num_bytes": part.shard.num_bytes, "next_row": part.next_row, "failures": part.failures}
    schema = SCHEMA.with_metadata({_STATE_KEY: json.dumps(state).encode()})
    with replacing_durably(path, advice=_ADVICE) as temporary:
        pq.write_table(pa.table(columns, schema=schema), temporary)


def _read_part(path: Path) -> _Part:
    with pq.ParquetFile(path) as parquet:
        state = json.loads(parquet.schema_arrow.metadata[_STATE_KEY])
        num_images = parquet.metadata.num_rows
    return _Part(
        shard=Shard(name=f"{path.stem}.tar", num_bytes=state["num_bytes"]),
        next_row=state["next_row"],
        failures=tuple((image_id, reason) for image_id, reason in state["failures"]),
        num_images=num_images,
    )


def _spell_key(row: int) -> str:
    return f"{row:09}"


def _build_sample(record: ImageRecord, label_name: str, row: int, picture: _Picture) -> bytes:
    """Build the members of one sample: the picture first, then its class, then what else is said of it."""
    key = _spell_key(row)
    said = {
        "image_id": record.image_id,
        "label": label_name,
        "split": record.split,
        "is_query": record.is_query,
        "is_gallery": record.is_gallery,
        "metadata": dict(sorted(record.metadata.items())),
    }
    return (
        build_member(f"{key}{picture.suffix}", picture.data)
        + build_member(f"{key}.cls", str(record.label).encode())
        + build_member(f"{key}.json", json.dumps(said, ensure_ascii=False).encode())
    )


def prepare_pictures(records: Sequence[ImageRecord], settings: PackSettings) -> Generator[_Picture | str, None, None]:
    """Prepare pictures in processes, in order; of one that cannot be read, yield the reason.

    Raises:
        VitrieveError: The system has ended one of the processes.
    """
    chunks = [records[start : start + CHUNK_SIZE] for start in range(0, len(records), CHUNK_SIZE)]
    num_processes = min(settings.num_processes or count_cores(), len(chunks))
    if num_processes == 1:
        for chunk in chunks:
            yield from (prepare_picture(record, settings.max_side_px) for record in chunk)
        return
    waiting: deque[Future[list[_Picture | str]]] = deque()
    # "spawn": a fork of a process that has threads may hang.
    pool = ProcessPoolExecutor(num_processes, get_context("spawn"), initializer=_end_with_parent)
    try:
        for chunk in chunks:
            waiting.append(pool.submit(_prepare_chunk, list(chunk), settings.max_side_px))
            if len(waiting) > 2 * num_processes:
                yield from waiting.popleft().result()
        while waiting:
            yield from waiting.popleft().result()
    except BrokenProcessPool:
        raise VitrieveError(
            "a process that prepares pictures was ended by the system, mostly for lack of memory. What is done is "
            f"kept: repeat the command with --resume and fewer than {num_processes} --num-processes."
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


def _end_with_parent() -> None:
    """End this process when the one that started it is killed, which leaves nobody to tell it."""
    parent = parent_process()
    assert parent is not None

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def _prepare_chunk(records: Sequence[ImageRecord], max_side_px: int | None) -> list[_Picture | str]:
    return [prepare_picture(record, max_side_px) for record in records]


def prepare_picture(record: ImageRecord, max_side_px: int | None) -> _Picture | str:
    """Read, check and shrink one picture; return the reason where it cannot be read.

    Args:
        record: The image.
        max_side_px: Longest side that it keeps; None: any.
    """
    try:
        data = read_image_bytes(record.path)
        suffix = SUFFIXES.get(read_header(data).format)
        with open_picture(data, box=record.box) as picture:
            side_px = max_side_px or max(picture.size)
            if suffix and record.box is None and max(picture.size) <= side_px:
                return _Picture(suffix, data)
            picture.thumbnail((side_px, side_px), Image.Resampling.LANCZOS, reducing_gap=3.0)
            return _Picture(".jpg", encode_jpeg(picture, JPEG_QUALITY))
    except (DecodeError, MemoryError) as error:
        return describe_failure(error)
