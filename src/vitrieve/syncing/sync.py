"""``sync``: make an index hold a collection as it is now. ``vitrieve sync`` calls it.

``sync`` opens the index, or makes one, and ``sync_collection`` is one sync from what differs to an index that is true
again. What is new goes through ``Ingestion``: from files to vectors in the store, a durable batch at a time.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from vitrieve.artifacts import MANIFEST_NAME
from vitrieve.choices import Device
from vitrieve.data.ocr import PictureReader
from vitrieve.data.records import ImageRecord
from vitrieve.data.sources import find_source_path
from vitrieve.embed.batches import choose_chunk_size, encode_in_parallel, prepare_ahead
from vitrieve.embed.collection import EmbedSettings, describe_source
from vitrieve.errors import ArtifactError, ConfigError
from vitrieve.index.open import (
    create_index_whole,
    load_index_encoder,
    open_index,
    release_abandoned,
    require_encoder,
    require_store,
)
from vitrieve.index.store import SERVERS, IndexSettings, StoreInfo, StoreKind, VectorStore, read_info
from vitrieve.machine import cache_folder
from vitrieve.model.default import choose_default_encoder
from vitrieve.progress import print_message, track
from vitrieve.quoting import quote_name
from vitrieve.runtime.encoder import Encoder, load_encoder
from vitrieve.syncing.read import ReadFile, complete_record, hash_record, read_file
from vitrieve.syncing.scan import (
    Collection,
    MassRemoval,
    find_differences,
    find_mass_removal,
    find_unreachable,
    is_left_out,
    scan_collection,
)
from vitrieve.syncing.state import STATE_NAME, Change, FileState, StateFile, SyncedIndex

COMMIT_SIZE = 256
"""Images in one durable change of the store: what a kill can cost, seconds of work on a fast machine."""
AWAY_REASON = "No such file: the link leads nowhere now"
NUM_FAILURES_SHOWN = 10
EMBEDDED_ANEW = "The index has no record of an earlier sync, so --adopt embeds every picture anew."
_COLLECTION_FACT = "collection"


@dataclass(frozen=True, kw_only=True)
class NewIndex:
    """What an index becomes that is not there yet."""

    kind: StoreKind = "lance"
    """Its store."""
    uri: str | None = None
    """Address of the server of milvus or pgvector, as ``IndexSettings`` takes it; None for the others."""


LOCAL = NewIndex()


@dataclass(frozen=True, kw_only=True)
class SyncSettings(EmbedSettings):
    """How a collection is compared with its index and embedded.

    While more than ``max_bad_fraction`` of the collection's images are unreadable, nothing is removed.
    """

    is_checksum: bool = False
    """Read every file and compare its content, whatever its size and times say."""
    is_bad_retried: bool = True
    """Read also the bad files that have not changed."""
    is_removal_allowed: bool = False
    """Remove what has vanished, however much it is; else a mass removal (``find_mass_removal``) is held."""
    is_text_read: bool | None = None
    """Read the text in pictures, too, into the column ``text_in_picture``; None: as the index's last sync was told."""
    confirm: Callable[[str], bool] | None = None
    """Asks a person, with a sentence, whether a mass removal shall be made; None: it is held without asking."""


@dataclass(frozen=True, kw_only=True)
class SyncReport:
    """What a sync did; printed, it is a line.

    Attributes:
        num_images: Images of the collection, bad ones included.
        num_embedded: Contents that were embedded: new and changed ones, each once.
        num_reused: Images that took the vector of the same content: moved, copied, or listed twice.
        num_described: Images that kept their vector under other metadata.
        num_removed: Images that were taken out of the index.
        num_kept: Images that would have been taken out, were not too many images bad, too many gone, or their folder
            out of reach.
        failures: ``(image_id, reason)`` of every bad image, sorted.
        is_too_bad: More images are bad than ``max_bad_fraction`` allows.
        held: The removal that somebody has to allow before it is made; None when there is none.
        unreachable: Folders that cannot be looked into now, sorted: what the index holds of them is kept.
        num_indexed: Images that the index holds afterwards.
    """

    num_images: int
    num_embedded: int
    num_reused: int
    num_described: int
    num_removed: int
    num_kept: int
    failures: tuple[tuple[str, str], ...]
    is_too_bad: bool
    held: MassRemoval | None = None
    unreachable: tuple[str, ...] = ()
    num_indexed: int = 0

    @property
    def is_changed(self) -> bool:
        """Whether the index is another than before."""
        return bool(self.num_embedded or self.num_reused or self.num_described or self.num_removed)

    def __str__(self) -> str:
        done = (
            (self.num_embedded, "embedded"),
            (self.num_reused, "moved or copied"),
            (self.num_described, "with new metadata"),
            (self.num_removed, "removed"),
            (self.num_kept, "vanished but kept"),
            (len(self.failures), "unreadable"),
        )
        parts = ", ".join(f"{count} {what}" for count, what in done if count)
        return f"{self.num_indexed} images indexed; {parts or 'nothing to do'}"

    def list_notes(self) -> Iterator[str]:
        """Say which images are bad, and which folders are out of reach."""
        for image_id, reason in self.failures[:NUM_FAILURES_SHOWN]:
            yield f"not indexed: {image_id}: {reason}"
        if len(self.failures) > NUM_FAILURES_SHOWN:
            yield f"and {len(self.failures) - NUM_FAILURES_SHOWN} more; --json lists them all"
        if self.unreachable:
            folders = ", ".join(map(quote_name, self.unreachable[:NUM_FAILURES_SHOWN]))
            yield f"kept: what the index holds of {folders}, which cannot be looked into now."

    def list_errors(self) -> Iterator[str]:
        """Say why the sync is not fine: a removal that is held, or too many bad images."""
        if self.held:
            yield (
                f"{self.held.describe()}. They are kept in the index, as a drive may be off; when it is back, nothing "
                "is embedded again. To remove them, sync with --allow-removals."
            )
        if self.is_too_bad:
            yield (
                f"{len(self.failures)} of {self.num_images} images cannot be read, more than --max-bad-fraction "
                f"allows. The others are indexed; {self.num_kept} images that would have been removed are kept. Repair "
                "the files, or allow a larger share, and sync again."
            )


def sync(
    collection: Collection | str | Path,
    index: str | Path,
    encoder: Encoder | str | Path | None = None,
    *,
    settings: SyncSettings | None = None,
    store: StoreKind | NewIndex = "lance",
    adopt: bool = False,
    device: Device = "auto",
) -> SyncReport:
    """Make an index hold a collection as it is now: embed what is new or changed, remove what is gone.

    ``sync("photos", "index")`` makes the index when it is not there. Killed at any moment, the same call goes on.

    Args:
        collection: A folder of pictures at any depth, another source as ``read_collection`` takes it, or what
            ``scan_collection`` made of one.
        index: Folder of the index.
        encoder: An encoder, a run, an encoder's folder or a weights name; None: the index's own, and for a new index
            the default of ``vitrieve weights list``.
        settings: How the collection is compared and embedded; None: the defaults.
        store: What a new index is; on a server ``NewIndex(kind="pgvector", uri="postgresql://…")``.
        adopt: Take over an index of another collection, or of this one under another path. A picture whose content the
            index has by an earlier sync keeps its vector; where no sync has made the index, all are embedded anew.
        device: Where an encoder that is loaded here computes; ``auto``: on a GPU where torch sees one.

    Returns:
        What was done; printed, it is a line.

    Raises:
        DataError: The collection cannot be read.
        FingerprintError: The index is of another encoder.
        ArtifactError: Another sync works on the index, it is of another collection, or damaged; or its server refused
            or did not answer.
        ConfigError: The server's address is none, or the index is there and on another server.
    """
    settings = settings or SyncSettings()
    where = store if isinstance(store, NewIndex) else NewIndex(kind=store)
    require_store(where.kind)
    index = Path(index)
    if not isinstance(collection, Collection):
        collection = scan_collection(str(collection), index)
    print_message(*collection.notes)
    if not isinstance(encoder, Encoder):
        encoder = load_sync_encoder(index, None if encoder is None else str(encoder), device=device)
    # What an index held that is taken over may go.
    settings = replace(settings, is_removal_allowed=settings.is_removal_allowed or adopt)
    with open_synced(collection, index, encoder, where=where, is_adopted=adopt) as synced:
        if adopt and synced.stored and not synced.states:
            print_message(EMBEDDED_ANEW)
        if settings.is_text_read is None and synced.is_text_read:
            print_message("the text in pictures is read as before; --no-ocr reads no more of it.")
        report = sync_collection(synced, encoder, collection, settings)
        question = f"{report.held.describe()}. Remove them from the index?" if report.held else ""
        if not (question and settings.confirm and settings.confirm(question)):
            return report
        again = sync_collection(synced, encoder, collection, replace(settings, is_removal_allowed=True))
        counts = {name: getattr(report, name) for name in ("num_embedded", "num_reused", "num_described")}
        return replace(again, **counts)


# The index, found or made, locked, of the right encoder and collection


def load_sync_encoder(
    index: Path | None,
    source: str | None = None,
    *,
    image_size: int | None = None,
    num_threads: int | None = None,
    device: Device = "auto",
) -> Encoder:
    """Load the encoder for an index that is there, or is to be made.

    Args:
        index: Folder of the index, there or not; None: a new one.
        source: A run, an encoder folder or a weights name; None: that of the index, or the default
            (``choose_default_encoder``).
        image_size: Side of the input in pixels; None: that of the index, or the encoder's own.
        num_threads: CPU threads; None: all cores.
        device: Where to compute, as ``load_encoder`` takes it.

    Raises:
        InputError: As ``load_encoder``, or the index is damaged.
    """
    if index is not None and _has_manifest(index):
        info, _ = read_info(index)
        return load_index_encoder(info, source, image_size=image_size, num_threads=num_threads, device=device)
    return load_encoder(
        source or choose_default_encoder(), image_size=image_size, num_threads=num_threads, device=device
    )


@contextmanager
def open_synced(
    collection: Collection,
    index: Path,
    encoder: Encoder,
    *,
    where: NewIndex = LOCAL,
    is_adopted: bool = False,
) -> Iterator[SyncedIndex]:
    """Open an index that this process alone syncs until the block ends, or make an empty one.

    Args:
        collection: What the index follows. The license of its images is that of a new index; the patterns of what is
            left out of it are remembered for the next sync.
        index: Folder of the index.
        encoder: Makes the vectors.
        where: Store and server of a new index; a server that is named must be that of an index which is there.
        is_adopted: Take over an index of another collection, or of this one under another path.

    Raises:
        FingerprintError: The index is of another encoder.
        ArtifactError: Another sync works on it, it is of another collection, damaged, or no index.
        ConfigError: The index is on another server.
    """
    if _has_manifest(index):
        _require_place(index, where)
        release_abandoned(index)
        if not (index / STATE_NAME).exists():  # what begins that file must not be refused afterwards
            with closing(open_index(index)) as unsynced:
                _require_index(unsynced, encoder, collection.source, index, None, is_adopted=is_adopted)
    else:
        _create_empty(index, encoder, where, collection.license)
    state_file = StateFile(index)
    try:
        store = open_index(index)
        try:
            found = state_file.read_fact(_COLLECTION_FACT)
            followed = _require_index(store, encoder, collection.source, index, found, is_adopted=is_adopted)
            if followed != found:
                state_file.write_fact(_COLLECTION_FACT, followed)
            state_file.write_exclude(collection.exclude)
            yield SyncedIndex(store, state_file)
        finally:
            store.close()
    finally:
        state_file.close()


def _has_manifest(index: Path) -> bool:
    return (index / MANIFEST_NAME).exists()


def _create_empty(index: Path, encoder: Encoder, where: NewIndex, license: str) -> None:
    """Make an empty index for the vectors of an encoder."""
    info = StoreInfo(
        kind=where.kind,
        fingerprint=encoder.fingerprint,
        encoder_source=describe_source(encoder),
        image_size=encoder.preprocessing.image_size,
        embedding_dim=encoder.embedding_dim,
        license=license,
    )
    create_index_whole(info, index, settings=IndexSettings(uri=where.uri))


def _require_place(index: Path, where: NewIndex) -> None:
    """Refuse an index that is there, but not on the server that was named."""
    found = read_place(index)
    if where.uri is not None and where != found:
        named = f"{found.kind}" if found.uri is None else f"{found.kind} at {found.uri}"
        raise ConfigError(
            f"{index} is an index of the store {named}, not of {where.kind} at {where.uri}; give another --index for a "
            "new one, or leave --store and --uri out."
        )


def read_place(index: Path) -> NewIndex:
    """Read in which store an index is, and on which server.

    Raises:
        ArtifactError: As ``read_info``.
    """
    info, manifest = read_info(index)
    return NewIndex(kind=info.kind, uri=str(manifest["uri"]) if info.kind in SERVERS else None)


def _require_index(
    store: VectorStore, encoder: Encoder, source: str, index: Path, found: str | None, *, is_adopted: bool
) -> str:
    """Refuse an index of another encoder, and to replace what it holds by another collection; name the new one.

    Args:
        store: What the index holds.
        encoder: Makes the vectors.
        source: The collection, as ``read_collection`` takes it.
        index: Folder of the index.
        found: The collection that it has followed so far; None: no sync has made it.
        is_adopted: It may follow another collection from now on.
    """
    advice = "Leave --encoder out to go on with the index's own, or give a new --index, which then embeds the "
    require_encoder(store.info, encoder, advice=f"{advice}whole collection.")
    path = find_source_path(source)
    wanted = source if path is None else str(path.resolve())
    if found != wanted and not is_adopted and store.count():
        held = f"the collection {found}" if found else "images that no sync has put there"
        cost = "" if found else f" {EMBEDDED_ANEW}"
        raise ArtifactError(
            f"{index} holds {held}, which a sync with {wanted} would replace. Give another --index; or pass --adopt, "
            f"where the collection has moved there, or is to be replaced.{cost}"
        )
    return wanted


def default_index_folder(folder: Path, fingerprint: str, where: NewIndex = LOCAL) -> Path:
    """Tell where the index of a folder is kept: in the user's cache, one for each folder and encoder.

    It is not kept in the folder itself. That may be read-only, on a network drive (where memory maps and file locks
    are unreliable), shared or copied by other programs, and it holds somebody's photographs and nothing of ours. The
    price: a folder that moves is embedded anew, unless the index is named.

    Args:
        folder: The collection, there or not.
        fingerprint: Fingerprint of the encoder.
        where: Store and server of the index.
    """
    path = folder.resolve()
    parts = [str(path), fingerprint, *([] if where == LOCAL else [where.kind, where.uri or ""])]
    identity = hashlib.sha256("\0".join(parts).encode("utf-8", "surrogateescape")).hexdigest()
    name = re.sub(r"[^\w.-]+", "-", path.name, flags=re.ASCII).strip(".-") or "collection"
    return cache_folder() / "indexes" / f"{name}-{identity[:12]}"


# One sync


def sync_collection(
    synced: SyncedIndex, encoder: Encoder, collection: Collection, settings: SyncSettings | None = None
) -> SyncReport:
    """Make an index hold the images of a collection, and no others; bring up to date what makes searching fast.

    New and changed contents are embedded, a content that the index has keeps its vector under any name, and what
    has vanished or become unreadable is removed, last of all. A kill at any moment costs the ``COMMIT_SIZE`` images
    at hand; run again, it goes on. A bad image is reported and the work goes on; when more than
    ``max_bad_fraction`` of the collection is bad, nothing is removed, because a disk or a decoder is the likelier
    fault than that many pictures. Nor is a mass removal made that the settings do not allow: a drive may be off. What
    the index holds of a file that the system cannot read now is kept: only a content that was read says something.

    Args:
        synced: An index of the same encoder.
        encoder: Makes the vectors.
        collection: What the index is to hold.
        settings: How to compare and embed; None: the defaults.
    """
    settings = settings or SyncSettings()
    is_text_read = synced.is_text_read if settings.is_text_read is None else settings.is_text_read
    ingestion = Ingestion(synced, encoder, settings, read_text=PictureReader() if is_text_read else None)
    synced.remember_text_choice(is_text_read)  # not before its reader is there
    records = collection.records
    differences = find_differences(
        records.values(),
        synced.states,
        is_checksum=settings.is_checksum,
        is_bad_retried=settings.is_bad_retried,
        is_text_read=is_text_read,
    )
    for start in range(0, len(differences.undescribed), COMMIT_SIZE):
        _describe_again(synced, differences.undescribed[start : start + COMMIT_SIZE])
    ingestion.take_all(differences.unread)
    away = {record.image_id: AWAY_REASON for record in differences.away}
    bad = {**dict(_list_bad(synced, records)), **away, **ingestion.undecided, **dict(collection.failures)}
    failures = sorted(bad.items())
    num_images = len(records) + len(collection.failures)
    is_too_bad = len(failures) > settings.max_bad_fraction * num_images
    surplus = synced.list_surplus(set(records) - set(away))
    lost = [image_id for image_id in surplus if image_id not in records or image_id in away]
    kept, unreachable, held = _choose_kept(synced, collection, lost, set(away), settings)
    removed = [] if is_too_bad else [image_id for image_id in surplus if image_id not in kept]
    for start in range(0, len(removed), COMMIT_SIZE):
        synced.remove(removed[start : start + COMMIT_SIZE])
    if not is_too_bad:
        synced.forget_others(records)
    report = SyncReport(
        num_images=num_images,
        num_embedded=ingestion.num_embedded,
        num_reused=ingestion.num_reused,
        num_described=len(differences.undescribed) + ingestion.num_described,
        num_removed=len(removed),
        num_kept=len(surplus) - len(removed),
        failures=tuple(failures),
        is_too_bad=is_too_bad,
        held=held,
        unreachable=unreachable,
    )
    if report.is_changed:
        synced.store.optimize()
    return replace(report, num_indexed=synced.store.count())


def _choose_kept(
    synced: SyncedIndex, collection: Collection, lost: Sequence[str], away: Set[str], settings: SyncSettings
) -> tuple[set[str], tuple[str, ...], MassRemoval | None]:
    """Choose which of the lost images stay in the index; also name the folders out of reach, and what is held."""
    # A collection without images is one that its reader was told to allow.
    if settings.is_removal_allowed or not lost or not collection.records:
        return set(), (), None
    wanted = set(collection.records) - away
    contents = {synced.states[image_id].sha256 for image_id in wanted if image_id in synced.states}
    gone = [
        image_id
        for image_id in lost
        if not _is_moved(synced, image_id, contents) and not is_left_out(collection.rules, image_id)
    ]
    unreachable = find_unreachable(collection.root, gone)
    rest = [image_id for image_id in gone if image_id not in unreachable]
    held = find_mass_removal(rest, synced.stored, wanted)
    kept = {*unreachable, *(rest if held else ())}
    return kept, tuple(sorted(set(unreachable.values()))), held


def _is_moved(synced: SyncedIndex, image_id: str, contents: Set[str]) -> bool:
    state = synced.states.get(image_id)
    return state is not None and state.sha256 in contents


def _list_bad(synced: SyncedIndex, image_ids: Iterable[str]) -> list[tuple[str, str]]:
    states = (synced.states.get(image_id) for image_id in image_ids)
    return [(state.image_id, state.reason) for state in states if state is not None and state.reason is not None]


def _describe_again(synced: SyncedIndex, records: Sequence[ImageRecord]) -> None:
    """Put images with the vectors they have under what their source says now."""
    vectors = synced.get_vectors([record.image_id for record in records])
    changes = []
    for record, vector in zip(records, vectors, strict=True):
        state = synced.states[record.image_id]
        changes.append(
            Change(
                record=complete_record(record, state.metadata),
                state=replace(state, record_hash=hash_record(record)),
                vector=vector,
            )
        )
    synced.put(changes)


class Ingestion:
    """Reads files, embeds the contents that the index does not have, and puts the images into the store.

    Attributes:
        undecided: Reasons by ``image_id`` of files of whose content nothing can be said now; what the index holds of
            them stays.
        num_embedded: Contents embedded, each once.
        num_reused: Images that took the vector of the same content.
        num_described: Images that kept their vector under other metadata.
    """

    def __init__(
        self, synced: SyncedIndex, encoder: Encoder, settings: SyncSettings, *, read_text: PictureReader | None = None
    ) -> None:
        """Begin with nothing read; ``read_text`` reads the text in pictures."""
        self.undecided: dict[str, str] = {}
        self.num_embedded = 0
        self.num_reused = 0
        self.num_described = 0
        self._synced = synced
        self._encoder = encoder
        self._settings = settings
        self._read = partial(
            read_file,
            preprocessing=encoder.preprocessing,
            read_text=read_text,
        )
        self._waiting: list[ReadFile] = []
        self._vectors: dict[tuple[str, str], np.ndarray] = {}  # of contents embedded since the last commit
        self._states: list[FileState] = []  # to be written without a change of the store

    def take_all(self, records: Sequence[ImageRecord]) -> None:
        """Take in images; those that are done when the process dies are kept, but for the last ``COMMIT_SIZE``."""
        if not records:
            return
        read = partial(self._read, find_holder=self._synced.find_holder)
        size = choose_chunk_size(self._encoder, self._settings.batch_size)
        batches = [records[start : start + size] for start in range(0, len(records), size)]
        files = prepare_ahead(read, batches, num_threads=self._settings.num_threads)
        for batch in track(files, "sync", total=len(records), weight=size, is_shown=self._settings.show_progress):
            self._take(batch)
            if len(self._waiting) >= COMMIT_SIZE:
                self._commit()
        self._commit()

    def _take(self, files: Sequence[ReadFile]) -> None:
        """Sort files by what is to be done about them, and embed what is new."""
        wanted = []
        for file in files:
            state = file.state
            if file.is_undecided:
                self.undecided[state.image_id] = str(state.reason)
            elif state.reason is not None or self._is_stored_as_it_is(state):
                self._states.append(state)
            else:
                wanted.append(file)
        self._embed(wanted)
        self._waiting += [replace(file, square=None) for file in wanted]

    def _is_stored_as_it_is(self, state: FileState) -> bool:
        own = self._synced.states.get(state.image_id)
        return own is not None and replace(own, signature=state.signature) == state

    def _embed(self, files: Sequence[ReadFile]) -> None:
        squares = {
            file.state.content_key: file.square
            for file in files
            if file.square is not None and not self._has_vector(file)
        }
        if squares:
            vectors = encode_in_parallel(self._encoder, np.stack(list(squares.values())), self._settings.batch_size)
            self._vectors.update(zip(squares, vectors, strict=True))
            self.num_embedded += len(squares)

    def _has_vector(self, file: ReadFile) -> bool:
        key = file.state.content_key
        return key in self._vectors or self._synced.find_holder(key) is not None

    def _commit(self) -> None:
        """Put what waits into the store."""
        self._read_lost_again()
        keys = [file.state.content_key for file in self._waiting]
        vectors = {**self._find_stored_vectors(set(keys) - set(self._vectors)), **self._vectors}
        changes = [
            Change(record=complete_record(file.record, file.state.metadata), state=file.state, vector=vectors[key])
            for file, key in zip(self._waiting, keys, strict=True)
        ]
        num_described = sum(self._has_own_vector(change.state) for change in changes)
        self._synced.put(changes)
        self._synced.write_states(self._states)
        self.num_described += num_described
        self.num_reused += len(changes) - len(self._vectors) - num_described
        self._waiting, self._vectors, self._states = [], {}, []

    def _has_own_vector(self, state: FileState) -> bool:
        """Say whether the store has the vector of this content under this very name, and another metadata."""
        own = self._synced.states.get(state.image_id)
        is_same = own is not None and own.reason is None and own.content_key == state.content_key
        return is_same and state.content_key not in self._vectors

    def _read_lost_again(self) -> None:
        """Read the files again whose vector was there when they were read and has been replaced since.

        It happens when files exchange their names.
        """
        lost = [file for file in self._waiting if not self._has_vector(file)]
        self._waiting = [file for file in self._waiting if self._has_vector(file)]
        for file in lost:
            self._take([self._read(file.record, find_holder=lambda key: None)])

    def _find_stored_vectors(self, keys: set[tuple[str, str]]) -> dict[tuple[str, str], np.ndarray]:
        if not keys:
            return {}
        holders = {key: holder.image_id for key in keys if (holder := self._synced.find_holder(key)) is not None}
        return dict(zip(holders, self._synced.get_vectors(list(holders.values())), strict=True))
