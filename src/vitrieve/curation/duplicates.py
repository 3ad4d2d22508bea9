"""``duplicates``: the pictures that are in a collection more than once, and which one of each group is the best.

Two pictures are linked where they have the same pixels (level exact), where one fits into the other (level near), or
where their similarity reaches a threshold (level same-scene); ``links.py`` finds those. Links make chains: a, b, c may
each resemble the next while a and c have nothing in common. So a group is not everything that hangs together. From the
best picture on, each picture that is still free is kept, and takes what is free among the pictures that are linked
*with it*: every member of a group resembles the picture that is kept, and removing the members loses nothing that has
no like.

The best picture has the most pixels; of those, the sharpest; then the largest file; then the first name.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from vitrieve.choices import Device
from vitrieve.curation.links import CopyThresholds, find_links
from vitrieve.curation.looking import Look, look_at_all
from vitrieve.curation.material import EncoderLike, Material, open_material
from vitrieve.data.records import Dataset, ImageRecord
from vitrieve.errors import ConfigError, DataError
from vitrieve.quoting import count_nouns
from vitrieve.similarity import Pairs

Level = Literal["exact", "near", "same-scene"]


@dataclass(frozen=True, kw_only=True)
class DuplicateGroup:
    """Pictures of which one is enough.

    Attributes:
        image_ids: The picture that is kept, then the others: the most similar first, equal ones by name.
        keep: The best picture.
        level: The strictest level at which all the others belong to the one that is kept.
        similarities: Similarity of each picture to the one that is kept, in the order of ``image_ids``.
    """

    image_ids: tuple[str, ...]
    keep: str
    level: Level
    similarities: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class DuplicateReport:
    """The groups of a collection.

    Attributes:
        groups: Largest first, equal ones by the name that is kept.
        level: Level that was asked for.
        threshold: Similarity from which two pictures are linked; None where pixels decide, as at the level exact, and
            at the level near unless one was given.
        num_images: Pictures that were compared.
        failures: ``(image_id, reason)`` of pictures that could not be read. Of an index they are compared by their
            vectors where a similarity decides, and are never kept before one that can be read.
        calibration: What two pictures need to be copies, and how it was chosen; None where a threshold was given, or
            none was needed.
        records: The pictures of the groups, by name.
    """

    groups: tuple[DuplicateGroup, ...]
    level: Level
    threshold: float | None
    num_images: int
    failures: tuple[tuple[str, str], ...]
    calibration: CopyThresholds | None
    records: Mapping[str, ImageRecord]

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values, without the records."""
        return {
            "groups": [asdict(group) for group in self.groups],
            "level": self.level,
            "threshold": self.threshold,
            "num_images": self.num_images,
            "failures": [{"image_id": image_id, "reason": reason} for image_id, reason in self.failures],
            "calibration": None if self.calibration is None else asdict(self.calibration),
        }

    def __str__(self) -> str:
        counts = Counter(group.level for group in self.groups)
        num_extra = sum(len(group.image_ids) - 1 for group in self.groups)
        parts = ", ".join(f"{count} {level}" for level, count in counts.items())
        pictures = count_nouns(self.num_images, "picture", "pictures")
        groups = count_nouns(len(self.groups), "group", "groups")
        extra = count_nouns(num_extra, "picture", "pictures")
        return f"{pictures}, {groups} of duplicates{f' ({parts})' if parts else ''}: {extra} could go"


def duplicates(
    collection: Dataset | str | Path,
    encoder: EncoderLike = None,
    *,
    level: Level = "near",
    threshold: float | None = None,
    exclude: str | Sequence[str] = (),
    device: Device = "auto",
) -> DuplicateReport:
    """Find the pictures that are in a collection more than once; nothing is changed.

    Args:
        collection: Folder of an index or of embeddings, a folder of pictures or another source, or a data set. Pictures
            without an index are embedded in memory.
        encoder: The encoder, or where it is; None: that of the index or the embeddings, and for pictures the default.
            At the level exact, none is needed.
        level: ``exact``: the same pixels; ``near``: copies that were cropped, resized, compressed, mirrored, colored,
            framed or written on; ``same-scene``: also pictures that share about half of what they show.
        threshold: Similarity from which two pictures are linked, in [-1, 1], whatever their pixels are; None: pixels
            decide about copies, and what is enough is calibrated on copies of some of the collection's pictures.
        exclude: Patterns of what to leave out of a folder, with the rules of gitignore.
        device: Where an encoder that is loaded here computes; ``auto``: on a GPU where torch sees one.

    Raises:
        ConfigError: A threshold beside the level exact, or out of range.
        DataError: The collection cannot be read; nothing can be calibrated; or, at the level exact, no picture
            can be read.
    """
    if threshold is not None and (level == "exact" or not -1 <= threshold <= 1):
        raise ConfigError(
            f"threshold is {threshold}; it is a similarity in [-1, 1], for the levels near and same-scene only."
        )
    with ExitStack() as stack:
        material = open_material(
            collection, encoder, stack, has_vectors=level != "exact", device=device, exclude=exclude
        )
        if level == "exact":
            return find_exact(material)
        if encoder is not None:
            material.load_encoder()  # refuses another one than that of the vectors
        return find_near(material, level, threshold)


def find_exact(material: Material) -> DuplicateReport:
    """Find groups of pictures with the same pixels, as ``duplicates`` does at the level exact.

    Args:
        material: Pictures; vectors are not looked at.

    Raises:
        DataError: No picture can be read.
    """
    records = material.fetch(range(len(material.image_ids)))
    looks = look_at_all(records, show_progress=True)
    failures = [(record.image_id, look) for record, look in zip(records, looks, strict=True) if isinstance(look, str)]
    if records and len(failures) == len(records):
        raise DataError(
            f"none of {len(records)} pictures can be read ({failures[0][0]}: {failures[0][1]}), and the level exact "
            "compares pixels. An index can be compared by its vectors: --level near."
        )
    by_digest: dict[bytes, list[int]] = {}
    for row, look in enumerate(looks):
        if isinstance(look, Look):
            by_digest.setdefault(look.digest, []).append(row)
    groups = []
    for rows in by_digest.values():
        if len(rows) > 1:
            keep = min(rows, key=lambda row: _order_best(looks[row], records[row].image_id))
            others = sorted(records[row].image_id for row in rows if row != keep)
            names = (records[keep].image_id, *others)
            groups.append(
                DuplicateGroup(image_ids=names, keep=names[0], level="exact", similarities=(1.0,) * len(names))
            )
    by_name = {record.image_id: record for record in records}
    return DuplicateReport(
        groups=_sort_groups(groups),
        level="exact",
        threshold=None,
        num_images=len(records),
        failures=(*material.failures, *failures),
        calibration=None,
        records={name: by_name[name] for group in groups for name in group.image_ids},
    )


def find_near(
    material: Material, level: Literal["near", "same-scene"], threshold: float | None = None
) -> DuplicateReport:
    """Find groups of copies, or of pictures of one scene, as ``duplicates`` does.

    Args:
        material: Pictures and vectors.
        level: ``near`` or ``same-scene``.
        threshold: Similarity from which two pictures are linked; None: calibrated.
    """
    links = find_links(material, level, threshold)
    pairs, calibration = links.pairs, links.calibration
    copies = set(zip(pairs.first[links.is_copy].tolist(), pairs.second[links.is_copy].tolist(), strict=True))
    rows = np.unique(np.concatenate([pairs.first, pairs.second])).tolist()
    records = dict(zip(rows, material.fetch(rows), strict=True))
    looks = dict(zip(rows, look_at_all(list(records.values()), show_progress=bool(rows)), strict=True))
    order = sorted(rows, key=lambda row: _order_best(looks[row], material.image_ids[row]))
    late = {**links.failures, **{row: look for row, look in looks.items() if isinstance(look, str)}}
    groups = []
    for members, similarities in group_by_best(pairs, order):
        names = [material.image_ids[row] for row in members]
        ranked = sorted(zip(names[1:], similarities[1:], strict=True), key=lambda one: (-one[1], one[0]))
        is_near = all((min(members[0], row), max(members[0], row)) in copies for row in members[1:])
        groups.append(
            DuplicateGroup(
                image_ids=(names[0], *(name for name, _ in ranked)),
                keep=names[0],
                level="exact" if _is_same([looks[row] for row in members]) else "near" if is_near else level,
                similarities=(1.0, *(min(1.0, similarity) for _, similarity in ranked)),  # rounding may exceed 1
            )
        )
    return DuplicateReport(
        groups=_sort_groups(groups),
        level=level,
        threshold=threshold if calibration is None else calibration.same_scene,
        num_images=len(material.image_ids),
        failures=(*material.failures, *((material.image_ids[row], late[row]) for row in sorted(late))),
        calibration=calibration,
        records={record.image_id: record for record in records.values()},
    )


def group_by_best(pairs: Pairs, order: Sequence[int]) -> list[tuple[list[int], list[float]]]:
    """Divide linked pictures into groups in which each resembles the first.

    Args:
        pairs: Linked rows.
        order: All linked rows, best first.

    Returns:
        Of each group its rows, the best first, and their similarities to it, that of the first to itself being 1.

    >>> chain = Pairs(np.array([0, 1]), np.array([1, 2]), np.float32([0.9, 0.9]))
    >>> [rows for rows, _ in group_by_best(chain, [0, 1, 2])], [rows for rows, _ in group_by_best(chain, [1, 0, 2])]
    ([[0, 1]], [[1, 2, 0]])
    """
    owners = np.concatenate([pairs.first, pairs.second])
    others = np.concatenate([pairs.second, pairs.first])
    similarities = np.concatenate([pairs.similarities, pairs.similarities])
    by_owner = np.argsort(owners, kind="stable")
    owners, others, similarities = owners[by_owner], others[by_owner], similarities[by_owner]
    starts, stops = (np.searchsorted(owners, order, side=side) for side in ("left", "right"))
    taken: set[int] = set()
    groups = []
    for row, start, stop in zip(order, starts.tolist(), stops.tolist(), strict=True):
        if row in taken:
            continue
        free = [
            (other, similarity)
            for other, similarity in zip(others[start:stop].tolist(), similarities[start:stop].tolist(), strict=True)
            if other not in taken
        ]
        if free:
            taken.update([row, *(other for other, _ in free)])
            groups.append(([row, *(other for other, _ in free)], [1.0, *(similarity for _, similarity in free)]))
    return groups


def _is_same(looks: Sequence[Look | str]) -> bool:
    digests = {look.digest if isinstance(look, Look) else None for look in looks}
    return len(digests) == 1 and None not in digests


def _order_best(look: Look | str, image_id: str) -> tuple[int, float, int, str]:
    if isinstance(look, str):
        return (1, 0.0, 0, image_id)
    return (-look.width_px * look.height_px, -look.sharpness, -look.num_bytes, image_id)


def _sort_groups(groups: Sequence[DuplicateGroup]) -> tuple[DuplicateGroup, ...]:
    return tuple(sorted(groups, key=lambda group: (-len(group.image_ids), group.keep)))
