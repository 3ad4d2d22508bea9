"""One sync: from what differs to an index that is true again."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence, Set
from dataclasses import dataclass, replace

from vitrieve.data.records import ImageRecord
from vitrieve.errors import ConfigError, FingerprintError
from vitrieve.index.store import StoreInfo
from vitrieve.runtime.encoder import Encoder
from vitrieve.syncing.content import complete_record, hash_record
from vitrieve.syncing.intake import COMMIT_SIZE, Intake
from vitrieve.syncing.ledger import Change, Ledger
from vitrieve.syncing.removal import MassRemoval, find_mass_removal, find_unreachable, is_left_out
from vitrieve.syncing.scan import Collection, find_differences

AWAY_REASON = "No such file: the link leads nowhere now"


@dataclass(frozen=True, kw_only=True)
class SyncSettings:
    """How a collection is compared with its index and embedded."""

    batch_size: int | None = None
    """Images in one forward pass; None: as many as the encoder's engine is fastest with."""
    num_threads: int | None = None
    """Threads that read and decode images; None: one for each core, up to four."""
    max_bad_fraction: float = 0.05
    """Largest share of the collection's images that may be unreadable; above it nothing is removed."""
    is_checksum: bool = False
    """Read every file and compare its content, whatever its size and times say."""
    is_bad_retried: bool = True
    """Read also the bad files that have not changed."""
    is_removal_allowed: bool = False
    """Remove what has vanished, however much it is; else a mass removal (``removal.py``) is held."""
    confirm: Callable[[str], bool] | None = None
    """Asks a person, with a sentence, whether a mass removal shall be made; None: it is held without asking."""
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
class SyncReport:
    """What a sync did.

    Attributes:
        num_images: In the collection, bad ones included.
        num_embedded: Embedded: new and changed contents, each once.
        num_reused: Took the vector of an image with the same content: moved, copied, or listed twice.
        num_described: Kept their vector under other metadata.
        num_removed: Taken out of the index.
        num_kept: Would have been taken out, were not too many images bad, too many gone, or their folder out of reach.
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
        """Say in a line what the sync did."""
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


def check_encoder(info: StoreInfo, encoder: Encoder) -> None:
    """Refuse an encoder that did not make the vectors of an index.

    Raises:
        FingerprintError: The message says what to do.
    """
    if encoder.fingerprint == info.fingerprint:
        return
    raise FingerprintError(
        f"the index was made by {info.encoder_source} at {info.image_size} px (fingerprint {info.fingerprint[:12]}…), "
        f"not by {encoder.source} at {encoder.preprocessing.image_size} px ({encoder.fingerprint[:12]}…): their "
        "vectors are not comparable. Leave --encoder out to go on with the index's own, or give a new --index, which "
        "then embeds the whole collection."
    )


def sync_collection(
    ledger: Ledger, encoder: Encoder, collection: Collection, settings: SyncSettings | None = None
) -> SyncReport:
    """Make an index hold the images of a collection, and no others.

    New and changed contents are embedded, a content that the index has keeps its vector under any name, and what
    has vanished or become unreadable is removed, last of all. A kill at any moment costs the ``COMMIT_SIZE`` images
    at hand; run again, it goes on. A bad image is reported and the work goes on; when more than
    ``max_bad_fraction`` of the collection is bad, nothing is removed, because a disk or a decoder is the likelier
    fault than that many pictures. Nor is a mass removal made that the settings do not allow: a drive may be off.

    Args:
        ledger: Of an index of the same encoder.
        encoder: Makes the vectors.
        collection: What the index is to hold.
        settings: None: the defaults.
    """
    settings = settings or SyncSettings()
    records = collection.records
    differences = find_differences(
        records.values(),
        ledger.stamps,
        is_checksum=settings.is_checksum,
        is_bad_retried=settings.is_bad_retried,
    )
    for start in range(0, len(differences.undescribed), COMMIT_SIZE):
        _describe_again(ledger, differences.undescribed[start : start + COMMIT_SIZE])
    intake = Intake(ledger, encoder)
    intake.take_all(
        differences.unread,
        batch_size=settings.batch_size,
        num_threads=settings.num_threads,
        show_progress=settings.show_progress,
    )
    away = {record.image_id: AWAY_REASON for record in differences.away}
    bad = {**dict(_list_bad(ledger, records)), **away, **intake.changing, **dict(collection.failures)}
    failures = sorted(bad.items())
    num_images = len(records) + len(collection.failures)
    is_too_bad = len(failures) > settings.max_bad_fraction * num_images
    surplus = ledger.list_surplus(set(records) - set(away))
    lost = [image_id for image_id in surplus if image_id not in records or image_id in away]
    kept, unreachable, held = _choose_kept(ledger, collection, lost, set(away), settings)
    removed = [] if is_too_bad else [image_id for image_id in surplus if image_id not in kept]
    for start in range(0, len(removed), COMMIT_SIZE):
        ledger.remove(removed[start : start + COMMIT_SIZE])
    if not is_too_bad:
        ledger.forget_others(records)
    return SyncReport(
        num_images=num_images,
        num_embedded=intake.num_embedded,
        num_reused=intake.num_reused,
        num_described=len(differences.undescribed),
        num_removed=len(removed),
        num_kept=len(surplus) - len(removed),
        failures=tuple(failures),
        is_too_bad=is_too_bad,
        held=held,
        unreachable=unreachable,
    )


def _choose_kept(
    ledger: Ledger, collection: Collection, lost: Sequence[str], away: Set[str], settings: SyncSettings
) -> tuple[set[str], tuple[str, ...], MassRemoval | None]:
    """Choose which of the lost images stay in the index; also name the folders out of reach, and what is held."""
    # A collection without images is one that its reader was told to allow.
    if settings.is_removal_allowed or not lost or not collection.records:
        return set(), (), None
    wanted = set(collection.records) - away
    contents = {ledger.stamps[image_id].sha256 for image_id in wanted if image_id in ledger.stamps}
    gone = [
        image_id
        for image_id in lost
        if not _is_moved(ledger, image_id, contents) and not is_left_out(collection.rules, image_id)
    ]
    unreachable = find_unreachable(collection.root, gone)
    rest = [image_id for image_id in gone if image_id not in unreachable]
    held = find_mass_removal(rest, ledger.stored, wanted)
    kept = {*unreachable, *(rest if held else ())}
    return kept, tuple(sorted(set(unreachable.values()))), held


def _is_moved(ledger: Ledger, image_id: str, contents: Set[str]) -> bool:
    stamp = ledger.stamps.get(image_id)
    return stamp is not None and stamp.sha256 in contents


def _list_bad(ledger: Ledger, image_ids: Iterable[str]) -> list[tuple[str, str]]:
    stamps = (ledger.stamps.get(image_id) for image_id in image_ids)
    return [(stamp.image_id, stamp.reason) for stamp in stamps if stamp is not None and stamp.reason is not None]


def _describe_again(ledger: Ledger, records: Sequence[ImageRecord]) -> None:
    """Put images with the vectors they have under what their source says now."""
    vectors = ledger.get_vectors([record.image_id for record in records])
    changes = []
    for record, vector in zip(records, vectors, strict=True):
        stamp = ledger.stamps[record.image_id]
        changes.append(
            Change(
                record=complete_record(record, stamp.metadata),
                stamp=replace(stamp, record_hash=hash_record(record)),
                vector=vector,
            )
        )
    ledger.put(changes)
