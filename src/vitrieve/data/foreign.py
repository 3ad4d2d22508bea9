"""The index of shards that others have written, in WebDataset's layout; it is made when they are first opened.

Members that follow each other and have the same name up to the first point of its last part are one sample: a
picture (``jpg``, ``jpeg``, ``png``, ``webp``), and what is said of it. ``cls`` is its class; else ``label``, ``class``
or ``cls`` of a ``json``; else ``txt``, where there is neither. What else a ``json`` says, and a ``txt`` beside a class,
is metadata.
"""

from __future__ import annotations

import hashlib
import json
import os
import posixpath
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from vitrieve.data.blocks import note_file
from vitrieve.data.folder import find_role, has_given_splits, note_class_split
from vitrieve.data.parts import SHARD_SUFFIX
from vitrieve.data.records import hold_out_labels, printable_name
from vitrieve.data.remote import list_files
from vitrieve.data.shards import (
    INDEX_NAME,
    PROTOCOLS,
    SCHEMA,
    Shard,
    ShardSet,
    add_set,
    read_index,
)
from vitrieve.data.table import NO_LABEL, note_unlabeled
from vitrieve.data.tars import Member, walk_members
from vitrieve.errors import DataError
from vitrieve.machine import cache_folder
from vitrieve.progress import print_message, track
from vitrieve.quoting import count_nouns, quote_name
from vitrieve.writing import replacing_durably

PICTURE_KINDS = ("jpg", "jpeg", "png", "webp")
LABEL_KEYS = ("label", "class", "cls")
MAX_TEXT_BYTES = 1 << 20
"""A text or JSON member with more says nothing that belongs into an index."""

Read = Callable[[int, int], bytes]


@dataclass(kw_only=True)
class _Found:
    """Columns of the index, and what a user must be told."""

    columns: dict[str, list[Any]] = field(default_factory=lambda: {name: [] for name in SCHEMA.names})
    counts: Counter[tuple[str, str]] = field(default_factory=Counter)  # by what is said of one, and of several
    num_unlabeled: int = 0


def index_shards(folder: Path) -> tuple[pa.Table, ShardSet]:
    """Index the archives below a folder, or take the index of an earlier time where none has changed since.

    The index is kept beside them; where nothing can be written there, in the cache.

    Raises:
        DataError: There is no archive, one is damaged, or none holds a picture.
        DiskFullError: There is no room for the index.
    """
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob(f"*{SHARD_SUFFIX}") if path.is_file())
    if not names:
        raise DataError(f"{folder} holds no {SHARD_SUFFIX} file; give a folder of shards, as in shards:DIR.")
    shards = [_stat_shard(folder, name) for name in names]
    places = (folder / INDEX_NAME, _find_cached(str(folder.resolve())))
    for place in places:
        found = find_fresh(place, shards)
        if found is not None:
            return found
    print_message(f"{folder}: {len(shards):,} shards are indexed, once.")
    table, shard_set = build_index(folder.resolve().name, shards, lambda name: _open_local(folder / name))
    try:
        _write_index(places[0], table)
    except (PermissionError, OSError) as error:
        if not _is_read_only(error):
            raise
        _write_index(places[1], table)
        print_message(f"{folder} cannot be written; its index is kept in {places[1]}.")
    return table, shard_set


def index_remote_shards(address: str) -> tuple[pa.Table, ShardSet]:
    """Index the archives below an address, or take the index of an earlier time where none has changed since.

    Raises:
        DataError: There is no archive, the server cannot list (HTTP), one is damaged, or none holds a picture.
        UnreachableError: The server does not answer, or refuses access.
        DiskFullError: There is no room for the index.
    """
    if address.startswith("http"):
        raise DataError(
            f"{address} holds no {INDEX_NAME}, and HTTP lists no files; pack the images with vitrieve data pack, and "
            "serve that folder."
        )
    try:
        found = {name: info for name, info in list_files(address).items() if name.endswith(SHARD_SUFFIX)}
    except FileNotFoundError:
        found = {}
    if not found:
        raise DataError(f"{address} holds neither {INDEX_NAME} nor a {SHARD_SUFFIX} file; give an address of shards.")
    files = {name: note_file(f"{address}/{name}", info) for name, info in found.items()}
    shards = [Shard(name=name, num_bytes=info.num_bytes, modified_ns=info.modified_ns) for name, info in found.items()]
    place = _find_cached(address)
    fresh = find_fresh(place, shards)
    if fresh is not None:
        return fresh
    print_message(f"{address}: {len(shards):,} shards are indexed, once.")
    name = address.rpartition("/")[2]
    table, shard_set = build_index(name, shards, lambda name: nullcontext(files[name].read))
    _write_index(place, table)
    return table, shard_set


def _is_read_only(error: OSError) -> bool:
    return isinstance(error, PermissionError) or error.errno == 30  # EROFS


def _stat_shard(folder: Path, name: str) -> Shard:
    status = (folder / name).stat()
    return Shard(name=name, num_bytes=status.st_size, modified_ns=status.st_mtime_ns)


def _find_cached(place: str) -> Path:
    """Name the index in the cache of shards that are somewhere else."""
    return cache_folder() / "shard-indexes" / hashlib.sha256(os.fsencode(place)).hexdigest()[:32] / INDEX_NAME


def find_fresh(place: Path, shards: Sequence[Shard]) -> tuple[pa.Table, ShardSet] | None:
    """Read an index of exactly these shards; None where it is of others, damaged, or not there."""
    if not place.is_file():
        return None
    try:
        table, shard_set = read_index(place, str(place))
    except DataError as error:
        print_message(f"{error} It is made anew.")
        return None
    return (table, shard_set) if shard_set.shards == tuple(shards) else None


def _write_index(place: Path, table: pa.Table) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    with replacing_durably(place, num_bytes=table.nbytes) as temporary:
        pq.write_table(table, temporary)


@contextmanager
def _open_local(path: Path) -> Iterator[Read]:
    with path.open("rb") as file:

        def read(offset: int, length: int) -> bytes:
            file.seek(offset)
            return file.read(length)

        yield read


def build_index(
    name: str, shards: Sequence[Shard], open_shard: Callable[[str], AbstractContextManager[Read]]
) -> tuple[pa.Table, ShardSet]:
    """Build the index of archives.

    Args:
        name: Name of the data set.
        shards: The archives, in order.
        open_shard: Opens one by its name: gives a function that reads it at any place.

    Raises:
        DataError: One is damaged, or none holds a picture.
    """
    found = _Found()
    for shard in track(shards, "index shards", total=len(shards)):
        try:
            with open_shard(shard.name) as read:
                _index_one(read, shard, found)
        except OSError as error:
            raise DataError(f"the shard {shard.name} cannot be read: {error.strerror or error}.") from None
    columns = found.columns
    if not columns["image_id"]:
        raise DataError(
            f"{name}: no picture is in {len(shards)} shards; expected members that end in {', '.join(PICTURE_KINDS)}."
        )
    _refuse_twice(columns["image_id"])
    label_names = tuple(sorted(set(columns["label"])))
    notes = (
        *_complete_splits(columns, label_names),
        *(f"{count_nouns(count, one, many)}." for (one, many), count in found.counts.items()),
        *note_unlabeled(found.num_unlabeled, len(label_names)),
    )
    shard_set = ShardSet(
        name=printable_name(name) or "shards",
        protocol=PROTOCOLS[0],
        label_names=label_names,
        shards=tuple(shards),
        is_packed=False,
        notes=notes,
    )
    return pa.table(columns, schema=SCHEMA).replace_schema_metadata(add_set(SCHEMA, shard_set).metadata), shard_set


def _refuse_twice(image_ids: Sequence[str]) -> None:
    if len(set(image_ids)) < len(image_ids):
        twice = next(image_id for image_id, count in Counter(image_ids).items() if count > 1)
        raise DataError(f"two samples are called {quote_name(twice)}; a key is that of one sample in its shard.")


def _index_one(read: Read, shard: Shard, found: _Found) -> None:
    members = walk_members(read, shard.num_bytes, f"the shard {quote_name(shard.name)}")
    for key, sample in _group(members, found):
        pictures = [kind for kind in sample if kind.rpartition(".")[2].lower() in PICTURE_KINDS]
        if not pictures:
            found.counts["sample without a picture is left out", "samples without a picture are left out"] += 1
        said = _read_texts(read, sample, found) if pictures else None
        for kind in pictures:
            assert said is not None
            _add_row(found, shard, key, kind, sample[kind], said)


def _group(members: Iterator[Member], found: _Found) -> Iterator[tuple[str, dict[str, Member]]]:
    """Yield key and members, by what stands after the first point, of each sample."""
    key, sample = None, dict[str, Member]()
    for member in members:
        folder, base = posixpath.split(member.name)
        stem, point, kind = base.partition(".")
        # macOS puts a hidden file ._KEY.jpg before each KEY.jpg; as WebDataset's readers do, it ends no sample.
        if not member.is_file or not point or not stem:
            why = "of a sample (folders, links, hidden, no suffix) and left out"
            found.counts[f"member is no file {why}", f"members are no files {why}"] += 1
            continue
        this = posixpath.join(folder, stem)
        if this != key and key is not None:
            yield key, sample
            sample = {}
        key = this
        sample[kind] = member
    if key is not None:
        yield key, sample


@dataclass(frozen=True)
class _Said:
    """What a sample says of its picture; an empty label is none."""

    label: str
    split: str | None
    metadata: dict[str, str]


def _read_texts(read: Read, sample: dict[str, Member], found: _Found) -> _Said:
    texts = {kind: _read_text(read, sample[kind], found) for kind in ("cls", "txt", "json") if kind in sample}
    values = _parse_json(texts.get("json"), found, has_label=bool(texts.get("cls")))
    named = next((_spell(values[key]) for key in LABEL_KEYS if values.get(key) is not None), None)
    label, text = texts.get("cls") or named, texts.get("txt")
    metadata = {str(key): _spell(value) for key, value in values.items() if key not in (*LABEL_KEYS, "split")}
    if label is not None and text is not None:
        metadata["text"] = text
    role = find_role(_spell(values.get("split", "")))
    return _Said(label or text or "", role.split if role else None, _print(metadata))


def _print(metadata: dict[str, str]) -> dict[str, str]:
    return {printable_name(key): printable_name(value) for key, value in metadata.items()}


def _read_text(read: Read, member: Member, found: _Found) -> str | None:
    if member.length > MAX_TEXT_BYTES:
        found.counts["text of more than a mebibyte is left out", "texts of more than a mebibyte are left out"] += 1
        return None
    return (
        read(member.offset, member.length).decode("utf-8", "replace").replace("\0", "\N{REPLACEMENT CHARACTER}").strip()
    )


def _parse_json(text: str | None, found: _Found, *, has_label: bool) -> dict[str, Any]:
    """Read the scalar values of a JSON object; what was packed with metadata of its own is laid beside them.

    Args:
        text: What the member holds.
        found: Told of what is passed over.
        has_label: Flag that the label is read from elsewhere, so that here none is looked for.
    """
    if not text:
        return {}
    try:
        values = json.loads(text)
    except (ValueError, RecursionError):
        values = None
    if not isinstance(values, dict):
        found.counts["JSON member is no object and left out", "JSON members are no object and left out"] += 1
        return {}
    inner = values.pop("metadata", None)
    values = {**(inner if isinstance(inner, dict) else {}), **values}
    scalars = {key: value for key, value in values.items() if isinstance(value, str | int | float | bool)}
    for name, keys in {"label": () if has_label else LABEL_KEYS, "split": ("split",)}.items():
        if any(isinstance(values.get(key), list | dict) for key in keys) and scalars.keys().isdisjoint(keys):
            what = f"a list or an object as {name}, which names no {name} and is passed over"
            found.counts[f"sample has {what}", f"samples have {what}"] += 1
    return scalars


def _spell(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _add_row(found: _Found, shard: Shard, key: str, kind: str, member: Member, said: _Said) -> None:
    role = find_role(shard.name)
    found.num_unlabeled += not said.label
    row = {
        "key": printable_name(key),
        "image_id": printable_name(f"{shard.name.removesuffix(SHARD_SUFFIX)}/{key}.{kind}"),
        "shard": shard.name,
        "offset": member.offset,
        "length": member.length,
        "suffix": f".{kind.rpartition('.')[2].lower()}",
        "label": printable_name(said.label) or NO_LABEL,
        "split": said.split or (role.split if role else None),
        "is_query": role is None or role.is_query,
        "is_gallery": role is None or role.is_gallery,
        "metadata": list(said.metadata.items()),
    }
    for name, value in row.items():
        found.columns[name].append(value)


def _complete_splits(columns: dict[str, list[Any]], label_names: Sequence[str]) -> tuple[str, ...]:
    """Hold classes out where no picture has a split; return the note on it."""
    if has_given_splits(columns["split"], columns["image_id"]):
        return ()
    counts = Counter(columns["label"])
    numbers = {name: number for number, name in enumerate(label_names)}
    held_out = hold_out_labels(numbers.values(), {numbers[name] for name, count in counts.items() if count > 1})
    columns["split"] = ["test" if numbers[label] in held_out else "train" for label in columns["label"]]
    return note_class_split(len(label_names), len(held_out))
