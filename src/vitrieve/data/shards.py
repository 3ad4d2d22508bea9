"""Images in shards: tar archives in WebDataset's layout, with an index that says where each picture's bytes are.

``index.parquet`` has one row for each picture (``SCHEMA``), and in its schema's metadata what holds for all of them
(``ShardSet``). So any picture is read by itself, in any order. ``pack.py`` writes shards with their index; the index of
shards that others have written is made once, by ``foreign.py``. A million rows are a table of some hundred megabytes,
and become records only when somebody asks for them.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import repeat
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from vitrieve.artifacts import is_partial
from vitrieve.data.blocks import RemoteReader, find_file_anew, note_file
from vitrieve.data.decode import MAX_FILE_BYTES
from vitrieve.data.folder import describe_shared_classes
from vitrieve.data.parts import SHARD_SUFFIX, spell_part
from vitrieve.data.records import SPLITS, Dataset, GroundTruth, ImageRecord, RecordColumns, RecordTable, find_absolute
from vitrieve.data.remote import check_address, find_infos, spell_address
from vitrieve.data.tars import BLOCK_BYTES
from vitrieve.errors import DataError, InputError
from vitrieve.quoting import quote_name

INDEX_NAME = "index.parquet"
PROTOCOLS = ("as_packed",)
FORMAT_VERSION = 1
SET_KEY = b"vitrieve_shards"
_BLOCK_ROWS = 4096
"""Rows that become records together."""

_TEXT = pa.dictionary(pa.int32(), pa.string())
SCHEMA = pa.schema(
    [
        ("key", pa.string()),  # WebDataset's name of the sample
        ("image_id", pa.string()),
        ("shard", _TEXT),
        ("offset", pa.int64()),  # first byte of the picture in the shard
        ("length", pa.int64()),
        ("suffix", _TEXT),  # of the picture's member, with its point
        ("label", _TEXT),
        ("split", _TEXT),
        ("is_query", pa.bool_()),
        ("is_gallery", pa.bool_()),
        ("metadata", pa.map_(pa.string(), pa.string())),
    ]
)


@dataclass(frozen=True, kw_only=True)
class Shard:
    """One archive.

    Attributes:
        name: Below the folder of the index, with ``/``.
        num_bytes: Size of it.
        modified_ns: Time of its last change, where the index was made of shards that others keep; else None.
    """

    name: str
    num_bytes: int
    modified_ns: int | None = None


@dataclass(frozen=True, kw_only=True)
class ShardSet:
    """What an index says of all its pictures.

    Attributes:
        name: Name of the data set.
        protocol: The protocol that the roles follow.
        label_names: Names of the classes, in the order of their numbers.
        shards: The archives.
        is_packed: Whether vitrieve has written the shards; else they are looked at again when they have changed.
        ks: As ``Dataset``, and so are the following.
        junk_key: ...
        notes: ...
        license: ...
        positive_pairs: ...
        ground_truth: ...
        more_labels: ...
    """

    name: str
    protocol: str
    label_names: tuple[str, ...]
    shards: tuple[Shard, ...]
    is_packed: bool
    ks: tuple[int, ...] = (1, 2, 4, 8)
    junk_key: str | None = None
    notes: tuple[str, ...] = ()
    license: str = ""
    positive_pairs: tuple[tuple[str, str], ...] = ()
    ground_truth: Mapping[str, GroundTruth] | None = None
    more_labels: Mapping[str, tuple[int, ...]] = field(default_factory=dict)


def add_set(schema: pa.Schema, shard_set: ShardSet) -> pa.Schema:
    """Put what holds for all pictures into the metadata of a schema."""
    text = json.dumps({"format_version": FORMAT_VERSION, **asdict(shard_set)})
    return schema.with_metadata({SET_KEY: text.encode()})


def parse_set(text: bytes, where: str) -> ShardSet:
    """Read what ``add_set`` wrote.

    Raises:
        DataError: It is damaged, or of a newer version.
    """
    try:
        values = json.loads(text)
        version = int(values.pop("format_version"))
        if version <= FORMAT_VERSION:
            return _build_set(values)
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise DataError(f"{where} is damaged ({type(error).__name__}: {error}); {_MAKE_AGAIN}") from None
    raise DataError(f"{where} has format version {version}, written by a newer vitrieve; upgrade this one.")


_MAKE_AGAIN = "pack the images again (vitrieve data pack), or delete the index of shards that others made."


def _build_set(values: dict[str, Any]) -> ShardSet:
    truths = values.pop("ground_truth")
    shards = tuple(
        Shard(name=str(one["name"]), num_bytes=int(one["num_bytes"]), modified_ns=one["modified_ns"])
        for one in values.pop("shards")
    )
    texts = {name: str(values.pop(name)) for name in ("name", "protocol", "license")}
    junk_key = values.pop("junk_key")
    return ShardSet(
        **texts,
        shards=shards,
        label_names=tuple(map(str, values.pop("label_names"))),
        is_packed=bool(values.pop("is_packed")),
        ks=tuple(map(int, values.pop("ks"))),
        junk_key=None if junk_key is None else str(junk_key),
        notes=tuple(map(str, values.pop("notes"))),
        positive_pairs=tuple((str(one), str(other)) for one, other in values.pop("positive_pairs")),
        ground_truth=None
        if truths is None
        else {
            query: GroundTruth(easy=tuple(truth["easy"]), hard=tuple(truth["hard"]), junk=tuple(truth["junk"]))
            for query, truth in truths.items()
        },
        more_labels={
            image_id: tuple(map(int, labels))
            for image_id, labels in values.pop("more_labels", {}).items()  # there was none before 30 November 2026
        },
    )


class ShardRecords(RecordTable):
    """The records of an index, each made when it is asked for, and as many times."""

    def __init__(self, table: pa.Table, label_names: Sequence[str], folder: Path) -> None:
        """Take over a table of ``SCHEMA`` that ``_check_table`` has accepted."""
        self._folder = find_absolute(folder)
        # large_string: a plain column holds two gigabytes of text at most.
        self._image_ids = table["image_id"].cast(pa.large_string()).combine_chunks()
        self._shards, self._shard_names = _number_texts(table["shard"])
        self._suffixes, self._suffix_names = _number_texts(table["suffix"])
        self._splits, self._split_names = _number_texts(table["split"])
        codes, names = _number_texts(table["label"])
        numbers = {name: number for number, name in enumerate(label_names)}
        self._labels = np.array([numbers[name] for name in names], np.int32)[codes]
        self._offsets, self._lengths = (table[name].to_numpy() for name in ("offset", "length"))
        self._is_query, self._is_gallery = (table[name].to_numpy() for name in ("is_query", "is_gallery"))
        has_metadata = any(len(chunk.keys) for chunk in table["metadata"].chunks)
        self._metadata = table["metadata"] if has_metadata else None

    def __len__(self) -> int:
        """Count the records."""
        return len(self._offsets)

    def _make(self, row: int) -> ImageRecord:
        return next(self._build(row, row + 1))

    def _make_several(self, rows: range) -> Iterator[ImageRecord]:
        return self._build(rows.start, max(rows.start, rows.stop)) if rows.step == 1 else super()._make_several(rows)

    def __iter__(self) -> Iterator[ImageRecord]:
        """Make the records one after the other."""
        for start in range(0, len(self), _BLOCK_ROWS):
            yield from self._build(start, min(start + _BLOCK_ROWS, len(self)))

    def read_columns(self) -> RecordColumns:
        """Return the columns of all records."""
        numbers = np.array([SPLITS.index(name) for name in self._split_names], np.int8)
        return RecordColumns(
            labels=self._labels.astype(np.int64),
            splits=numbers[self._splits],
            is_query=np.asarray(self._is_query, dtype=np.bool_),
            is_gallery=np.asarray(self._is_gallery, dtype=np.bool_),
        )

    def read_ids(self) -> Iterator[str]:
        """Yield the name of every record."""
        for start in range(0, len(self), _BLOCK_ROWS):
            yield from self._image_ids.slice(start, _BLOCK_ROWS).to_pylist()

    def read_boxes(self) -> Iterator[None]:
        """Yield None for each record: a packed picture is already what was in the box."""
        return repeat(None, len(self))

    @property
    def shared_labels(self) -> tuple[int, int]:
        """Number of test classes that are also trained on, and of all test classes."""
        trained, tested = (
            set(np.unique(self._labels[self._is_of_split(split)]).tolist()) for split in ("train", "test")
        )
        return len(trained & tested), len(tested)

    def _is_of_split(self, split: str) -> np.ndarray:
        return np.isin(self._splits, [code for code, name in enumerate(self._split_names) if name == split])

    def _build(self, start: int, stop: int) -> Iterator[ImageRecord]:
        """Make the records of the rows from ``start`` to ``stop``."""
        rows = slice(start, stop)
        metadata: Sequence[Any] = [()] * (stop - start)
        if self._metadata is not None:
            metadata = self._metadata.slice(start, stop - start).to_pylist()
        columns = (
            self._image_ids.slice(start, stop - start).to_pylist(),
            self._shards[rows].tolist(),
            self._offsets[rows].tolist(),
            self._lengths[rows].tolist(),
            self._suffixes[rows].tolist(),
            self._labels[rows].tolist(),
            self._splits[rows].tolist(),
            self._is_query[rows].tolist(),
            self._is_gallery[rows].tolist(),
            metadata,
        )
        for image_id, shard, offset, length, suffix, label, split, is_query, is_gallery, pairs in zip(
            *columns, strict=True
        ):
            place = f"{self._folder}/{self._shard_names[shard]}"
            yield ImageRecord(
                image_id=image_id,
                path=spell_part(place, offset, length, self._suffix_names[suffix]),
                label=label,
                split=self._split_names[split],
                is_query=is_query,
                is_gallery=is_gallery,
                metadata=dict(pairs),
            )


def _number_texts(column: pa.ChunkedArray) -> tuple[np.ndarray, list[Any]]:
    """Return the numbers of the texts of a dictionary column, and the texts by number."""
    combined = column.unify_dictionaries().combine_chunks()
    if isinstance(combined, pa.ChunkedArray):  # of no chunk
        combined = pa.array([], _TEXT)
    return combined.indices.to_numpy(), combined.dictionary.to_pylist()


FindSize = Callable[[str], int]
"""Function from a shard's name to its size; raises ``FileNotFoundError``."""


def read_shards(folder: Path, protocol: str = PROTOCOLS[0]) -> Dataset:
    """Open a folder of shards.

    Args:
        folder: Holds shards that ``vitrieve data pack`` wrote, or archives of WebDataset, which are indexed when they
            are first opened, and again when they have changed.
        protocol: Only ``as_packed``: the protocol of the data set that was packed.

    Returns:
        Records in the order of the index, made when they are asked for.

    Raises:
        DataError: There is no shard, one is missing or has changed, or the index is damaged.
    """
    from vitrieve.data.foreign import index_shards

    if not folder.is_dir():
        kind = "is not a folder" if folder.exists() else "does not exist"
        raise DataError(f"{folder} {kind}; give a folder of shards, as in shards:DIR.")
    if is_partial(folder):
        raise DataError(f"{folder} holds unfinished shards; run vitrieve data pack again with --resume.")
    find_size = _find_size_below(folder)
    if (folder / INDEX_NAME).is_file():
        table, shard_set = read_index(folder / INDEX_NAME, str(folder / INDEX_NAME))
        if shard_set.is_packed:
            check_shards(shard_set, find_size, str(folder))
            return build_dataset(table, shard_set, folder)
    table, shard_set = index_shards(folder)
    return build_dataset(table, shard_set, folder)


def read_remote_shards(address: str, protocol: str = PROTOCOLS[0]) -> Dataset:
    """Open shards on a server; what holds for ``read_shards`` holds here.

    Args:
        address: ``s3://BUCKET/PATH``, ``gs://BUCKET/PATH`` or ``https://HOST/PATH`` of a packed folder. Where the
            server can list (not over HTTP), archives of WebDataset without an index are read too.
        protocol: Only ``as_packed``.

    Raises:
        ConfigError: An address that is not read, or the package for it is missing.
        UnreachableError: The server does not answer, or refuses access.
        DataError: As ``read_shards``.
    """
    from vitrieve.data.foreign import index_remote_shards

    address = check_address(address)
    index = f"{address}/{INDEX_NAME}"
    try:
        reader = RemoteReader(find_file_anew(index))
    except FileNotFoundError:
        table, shard_set = index_remote_shards(address)
    else:
        table, shard_set = read_index(reader, index)
        if shard_set.is_packed:
            _check_remote_shards(shard_set, address)
        else:  # it names the files that it was made of by their times, which no copy has
            table, shard_set = index_remote_shards(address)
    return build_dataset(table, shard_set, spell_address(address))


def _check_remote_shards(shard_set: ShardSet, address: str) -> None:
    """Compare the shards with what the server says of them, and note it."""
    names = [shard.name for shard in shard_set.shards]
    try:
        infos = dict(zip(names, find_infos([f"{address}/{name}" for name in names]), strict=True))
    except FileNotFoundError as error:
        raise _build_missing(address, str(error.filename).removeprefix(f"{address}/"), error) from None
    check_shards(shard_set, lambda name: infos[name].num_bytes, address)
    for name, info in infos.items():
        note_file(f"{address}/{name}", info)


def build_dataset(table: pa.Table, shard_set: ShardSet, folder: Path) -> Dataset:
    """Build the data set of a checked index whose shards are in a folder."""
    records = ShardRecords(table, shard_set.label_names, folder)
    notes = shard_set.notes
    if shard_set.ground_truth is None:
        notes += tuple(note for note in describe_shared_classes(*records.shared_labels) if note not in notes)
    return Dataset(
        name=shard_set.name,
        protocol=shard_set.protocol,
        records=records,
        label_names=shard_set.label_names,
        ks=shard_set.ks,
        junk_key=shard_set.junk_key,
        notes=notes,
        license=shard_set.license,
        positive_pairs=shard_set.positive_pairs,
        ground_truth=shard_set.ground_truth,
        more_labels=shard_set.more_labels,
    )


def read_index(file: Path | io.RawIOBase, where: str) -> tuple[pa.Table, ShardSet]:
    """Read and check an index; the shards themselves are not looked at.

    Args:
        file: The index.
        where: How a message names it.

    Raises:
        DataError: It is missing, damaged, or not made by vitrieve.
    """
    names = [name for name in SCHEMA.names if name != "key"]
    try:
        text = (pq.read_schema(file).metadata or {}).get(SET_KEY)
        if text is None:
            raise DataError(f"{where} is no index of shards that vitrieve made; {_MAKE_AGAIN}")
        # Without pre_buffer: gathering the groups of rows, one for each shard, takes as long as reading them.
        texts = ["shard", "suffix", "label", "split"]
        with pq.ParquetFile(file, read_dictionary=texts, pre_buffer=False) as parquet:
            table = parquet.read(columns=names)
        table = table.cast(pa.schema([SCHEMA.field(name) for name in names]))
        table.validate(full=True)
    except InputError:
        raise
    except (pa.ArrowException, OSError, ValueError, KeyError, OverflowError) as error:
        raise DataError(f"{where} cannot be read ({error}); {_MAKE_AGAIN}") from None
    shard_set = parse_set(text, where)
    problem = _find_problem(table, shard_set)
    if problem:
        raise DataError(f"{where} is damaged: {problem}; {_MAKE_AGAIN}")
    return table, shard_set


def _find_problem(table: pa.Table, shard_set: ShardSet) -> str | None:
    """Say what is wrong with an index; None where nothing is."""
    empty = next((name for name in table.column_names if table[name].null_count), None)
    if empty:
        return f"the column {empty!r} has gaps"
    bad_shard = next((shard.name for shard in shard_set.shards if not _is_plain(shard.name)), None)
    if bad_shard is not None:
        return f"it names a shard {quote_name(bad_shard)}, which is no .tar below its folder"
    for column, accepted in (
        ("split", SPLITS),
        ("label", shard_set.label_names),
        ("shard", [shard.name for shard in shard_set.shards]),
    ):
        strange = set(pc.unique(table[column]).dictionary_decode().to_pylist()) - set(accepted)
        if strange:
            return f"the {column} {quote_name(sorted(strange)[0])} is unknown"
    if not _is_rising(table["image_id"]) and pc.count_distinct(table["image_id"]).as_py() != table.num_rows:
        return "two pictures have the same image_id"
    return _find_bad_place(table, shard_set)


def _is_rising(texts: pa.ChunkedArray) -> bool:
    """Say whether texts are in order and all different: most sources sort, and counting takes 200 MB for a million."""
    combined = texts.combine_chunks()
    return bool(pc.all(pc.less(combined[:-1], combined[1:]), min_count=0).as_py())


def _find_bad_place(table: pa.Table, shard_set: ShardSet) -> str | None:
    codes, names = _number_texts(table["shard"])
    sizes = {shard.name: shard.num_bytes for shard in shard_set.shards}
    if any(size < 0 or size >= 1 << 62 for size in sizes.values()):
        return "a shard has an impossible size"
    offsets, lengths = (table[name].to_numpy() for name in ("offset", "length"))
    sizes_of_rows = np.array([sizes[name] for name in names], np.int64)[codes]
    is_bad = (offsets < BLOCK_BYTES) | (lengths < 0) | (lengths > MAX_FILE_BYTES) | (offsets > sizes_of_rows - lengths)
    if is_bad.any():
        row = int(np.flatnonzero(is_bad)[0])
        return f"the picture of row {row + 1} lies outside of its shard, or has more than {MAX_FILE_BYTES:,} bytes"
    return None


def _is_plain(name: str) -> bool:
    """Say whether a shard's name stays below its folder, whatever reads it."""
    path = PurePosixPath(name)
    is_below = not path.is_absolute() and ".." not in path.parts and str(path) == name
    return is_below and path.suffix == SHARD_SUFFIX and not set(name) & set("\\\0?#")


def _find_size_below(folder: Path) -> FindSize:
    return lambda name: os.stat(folder / name).st_size


def check_shards(shard_set: ShardSet, find_size: FindSize, where: str) -> None:
    """Compare the shards with what the index says of them.

    Raises:
        DataError: One is missing or has another size.
    """
    for shard in shard_set.shards:
        try:
            num_bytes = find_size(shard.name)
        except OSError as error:
            raise _build_missing(where, shard.name, error) from None
        if num_bytes != shard.num_bytes:
            raise DataError(
                f"{where}: the shard {quote_name(shard.name)} has {num_bytes:,} bytes and should have "
                f"{shard.num_bytes:,}: it has changed since it was packed. Copy it here again, or pack the images "
                "again."
            )


def _build_missing(where: str, name: str, error: OSError) -> DataError:
    return DataError(
        f"{where} lacks the shard {quote_name(name)} that its index names ({error.strerror or error}); copy it here "
        "again, or pack the images again."
    )


def describe_set(dataset: Dataset) -> ShardSet:
    """Describe a data set whose images are to be packed; the shards come later (``add_shards``)."""
    return ShardSet(
        name=dataset.name,
        protocol=dataset.protocol,
        label_names=dataset.label_names,
        shards=(),
        is_packed=True,
        ks=dataset.ks,
        junk_key=dataset.junk_key,
        notes=dataset.notes,
        license=dataset.license,
        positive_pairs=dataset.positive_pairs,
        ground_truth=dataset.ground_truth,
        more_labels=dataset.more_labels,
    )


def add_shards(shard_set: ShardSet, shards: Sequence[Shard]) -> ShardSet:
    """Name the shards of a set."""
    return replace(shard_set, shards=tuple(shards))
