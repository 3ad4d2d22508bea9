"""``audit``: what a person should look at in a labeled collection, worst first.

It embeds every picture once, and looks at its pixels once. Nothing is changed: ``decisions.py`` applies what a
person has decided.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from vitrieve.choices import Device
from vitrieve.curation.labels import (
    OUTLIER_DEVIATIONS,
    choose_num_neighbors,
    find_neighborhood,
    find_overlaps,
    measure_outliers,
    score_labels,
)
from vitrieve.curation.links import CopyThresholds, Links, find_links
from vitrieve.curation.looking import Look, look_at_all
from vitrieve.curation.material import EncoderLike, Material, embed_material, take_embeddings
from vitrieve.data.records import Dataset, ImageRecord
from vitrieve.data.sources import read_source
from vitrieve.errors import ConfigError
from vitrieve.model.default import choose_default_encoder
from vitrieve.progress import print_message
from vitrieve.runtime.encoder import Encoder, load_encoder

MAX_LIGHTNESS = 0.3
"""A picture is dark where the strongest channel of 99 % of its pixels is below this value."""
MAX_SHARPNESS = 50.0
BLURRED_SHARE, TINY_SHARE = 0.1, 0.25
"""A picture is blurred below ``MAX_SHARPNESS`` and a tenth of the median sharpness; it is tiny where the root of its
pixels is below a quarter of the median's."""

OddKind = Literal["outlier", "dark", "blurred", "tiny"]


@dataclass(frozen=True, kw_only=True)
class LabelError:
    """A label that is probably wrong.

    Attributes:
        image_id: The picture.
        label: Its label.
        suggested_label: The class that a classifier gives it which has not seen its label.
        score: 1: surely the suggested class; 0.5: as well the label; in [0, 1].
        evidence: The nearest picture with the suggested label.
    """

    image_id: str
    label: str
    suggested_label: str
    score: float
    evidence: str


@dataclass(frozen=True, kw_only=True)
class NearPair:
    """Two pictures of which one seems to be a copy of the other."""

    image_ids: tuple[str, str]
    labels: tuple[str, str]
    splits: tuple[str, str]
    similarity: float


@dataclass(frozen=True, kw_only=True)
class OverlappingClasses:
    """Two classes whose pictures are neighbors of each other; at 0.5 the neighbors do not tell them apart."""

    labels: tuple[str, str]
    overlap: float


@dataclass(frozen=True, kw_only=True)
class OddPicture:
    """A picture that is unusual.

    Attributes:
        image_id: The picture.
        label: Its label.
        value: For an outlier the standard deviations, for a dark picture the lightness in [0, 1], for a blurred one the
            sharpness, for a tiny one the pixels.
    """

    image_id: str
    label: str
    value: float


@dataclass(frozen=True, kw_only=True)
class AuditReport:
    """What to look at; every list begins with the worst.

    Attributes:
        name: The data set's name.
        num_images: Pictures that were looked at.
        label_errors: Labels that the other pictures contradict.
        duplicates_across_splits: Copies of which one is for testing and the other is not.
        duplicates_across_classes: Copies with different labels.
        overlapping_classes: Classes that lie on each other.
        odd: Kind -> unusual pictures.
        unreadable: ``(image_id, reason)``.
        threshold: Similarity from which two pictures count as copies; None where pixels decide.
        calibration: How well copies fit each other; None where a threshold was given, or nothing was there to compare.
        notes: What could not be looked at, and why.
        label_names: All labels.
        records: The pictures, by name.
    """

    name: str
    num_images: int
    label_errors: tuple[LabelError, ...]
    duplicates_across_splits: tuple[NearPair, ...]
    duplicates_across_classes: tuple[NearPair, ...]
    overlapping_classes: tuple[OverlappingClasses, ...]
    odd: Mapping[OddKind, tuple[OddPicture, ...]]
    unreadable: tuple[tuple[str, str], ...]
    threshold: float | None
    calibration: CopyThresholds | None
    notes: tuple[str, ...]
    label_names: tuple[str, ...]
    records: Mapping[str, ImageRecord]

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values, without the records."""
        lists = ("label_errors", "duplicates_across_splits", "duplicates_across_classes", "overlapping_classes")
        return {
            "name": self.name,
            "num_images": self.num_images,
            **{name: [asdict(one) for one in getattr(self, name)] for name in lists},
            **{kind: [asdict(one) for one in found] for kind, found in self.odd.items()},
            "unreadable": [{"image_id": image_id, "reason": reason} for image_id, reason in self.unreadable],
            "threshold": self.threshold,
            "calibration": None if self.calibration is None else asdict(self.calibration),
            "notes": list(self.notes),
        }

    def __str__(self) -> str:
        counts = (
            ("probable label errors", len(self.label_errors)),
            ("copies across training and test", len(self.duplicates_across_splits)),
            ("copies across classes", len(self.duplicates_across_classes)),
            ("pairs of overlapping classes", len(self.overlapping_classes)),
            *((f"pictures: {kind}", len(found)) for kind, found in self.odd.items()),
            ("unreadable pictures", len(self.unreadable)),
        )
        lines = [f"{self.name}: {self.num_images:,} pictures", *(f"  {what:<34}{count:>7,}" for what, count in counts)]
        return "\n".join(lines)


def audit(
    data: Dataset | str | Path,
    encoder: EncoderLike = None,
    *,
    embeddings: Path | str | None = None,
    threshold: float | None = None,
    protocol: str | None = None,
    exclude: str | Sequence[str] = (),
    device: Device = "auto",
) -> AuditReport:
    """Look for what is probably wrong in a labeled collection.

    Args:
        data: A labeled source, or a data set.
        encoder: The encoder, or where it is; None: that of ``embeddings``, and without them the default.
        embeddings: Folder with embeddings of the same source, so that no picture is embedded again; None: all are.
        threshold: Similarity from which two pictures are copies; None: pixels decide, as in ``duplicates``.
        protocol: One of the source's protocols; None: its first.
        exclude: Patterns of what to leave out of a folder, with the rules of gitignore.
        device: Where an encoder that is loaded here computes; ``auto``: on a GPU where torch sees one.

    Raises:
        ConfigError: The threshold is out of range.
        DataError: The data cannot be read, or the embeddings are not those of the source.
    """
    if threshold is not None and not -1 <= threshold <= 1:
        raise ConfigError(f"threshold is {threshold}; it is a similarity in [-1, 1].")
    dataset = data if isinstance(data, Dataset) else read_source(str(data), protocol=protocol, exclude=exclude)
    print_message(*dataset.notes)
    if embeddings is not None:
        material = take_embeddings(embeddings, dataset, encoder, device=device)
    else:
        loaded = (
            encoder
            if isinstance(encoder, Encoder)
            else load_encoder(encoder or choose_default_encoder(), device=device)
        )
        material = embed_material(loaded, dataset)
    return audit_material(dataset, material, threshold)


def audit_material(dataset: Dataset, material: Material, threshold: float | None = None) -> AuditReport:
    """Audit a data set whose pictures are embedded, as ``audit`` does."""
    records = material.fetch(range(len(material.image_ids)))
    looks = look_at_all(records, show_progress=True)
    links = find_links(material, "near", threshold)
    near = _list_near(dataset, records, links)
    errors, overlaps, outliers = _judge(dataset, material, records)
    late = {record.image_id: look for record, look in zip(records, looks, strict=True) if isinstance(look, str)}
    return AuditReport(
        name=dataset.name,
        num_images=len(records),
        label_errors=errors,
        duplicates_across_splits=tuple(pair for pair in near if _is_across_test(pair)),
        duplicates_across_classes=tuple(pair for pair in near if pair.labels[0] != pair.labels[1]),
        overlapping_classes=overlaps,
        odd={"outlier": outliers, **_find_odd(dataset, records, looks)},
        unreadable=(*material.failures, *late.items()),
        threshold=threshold,
        calibration=links.calibration,
        notes=tuple(_list_notes(records)),
        label_names=dataset.label_names,
        records={record.image_id: record for record in records},
    )


def _is_across_test(pair: NearPair) -> bool:
    return (pair.splits[0] == "test") != (pair.splits[1] == "test")


def _list_notes(records: Sequence[ImageRecord]) -> Iterator[str]:
    sizes = Counter(record.label for record in records)
    if len(sizes) < 2:
        yield "the pictures have one label only: labels and classes cannot be judged."
        return
    num_alone = sum(size == 1 for size in sizes.values())
    if num_alone:
        yield f"{num_alone} of {len(sizes)} classes have one readable picture, whose label cannot be judged."
    if len({record.split for record in records}) == 1:
        yield "all pictures are in one split: there is nothing to compare across splits."


def _judge(
    dataset: Dataset, material: Material, records: Sequence[ImageRecord]
) -> tuple[tuple[LabelError, ...], tuple[OverlappingClasses, ...], tuple[OddPicture, ...]]:
    """Find label errors, overlapping classes and outliers."""
    if len(records) < 2:
        return (), (), ()
    labels = np.array([record.label for record in records], dtype=np.int64)
    names = dataset.label_names
    neighborhood = find_neighborhood(material.vectors, choose_num_neighbors(labels), shown_as="nearest vectors")
    deviations = measure_outliers(neighborhood)
    outliers = tuple(
        OddPicture(image_id=records[row].image_id, label=names[labels[row]], value=float(deviations[row]))
        for row in np.argsort(-deviations, kind="stable").tolist()
        if deviations[row] >= OUTLIER_DEVIATIONS
    )
    if len(set(labels.tolist())) < 2:
        return (), (), outliers
    scores = score_labels(material.vectors, labels)
    wrong = [row for row in np.argsort(-scores.scores, kind="stable").tolist() if scores.is_error[row]]
    errors = []
    for row in wrong:
        suggested = int(scores.suggested[row])
        members = np.flatnonzero(labels == suggested)
        nearest = members[np.argmax(material.vectors[members] @ material.vectors[row])]
        errors.append(
            LabelError(
                image_id=records[row].image_id,
                label=names[labels[row]],
                suggested_label=names[suggested],
                score=float(np.clip(scores.scores[row], 0, 1)),
                evidence=records[nearest].image_id,
            )
        )
    overlaps = (
        OverlappingClasses(labels=(names[one], names[other]), overlap=overlap)
        for one, other, overlap in find_overlaps(neighborhood, labels)
    )
    return tuple(errors), tuple(overlaps), outliers


def _list_near(dataset: Dataset, records: Sequence[ImageRecord], links: Links) -> list[NearPair]:
    """List the copies that are not of one class and one side of the test, the most similar first."""
    labels = np.array([record.label for record in records], dtype=np.int64)
    is_test = np.array([record.split == "test" for record in records], dtype=bool)
    pairs = links.pairs
    is_wrong = (labels[pairs.first] != labels[pairs.second]) | (is_test[pairs.first] != is_test[pairs.second])
    columns = (column[is_wrong].tolist() for column in pairs)
    found = []
    for first, second, similarity in zip(*columns, strict=True):
        one, other = records[first], records[second]
        found.append(
            NearPair(
                image_ids=(one.image_id, other.image_id),
                labels=(dataset.label_names[one.label], dataset.label_names[other.label]),
                splits=(one.split, other.split),
                similarity=min(1.0, similarity),
            )
        )
    return sorted(found, key=lambda pair: (-pair.similarity, pair.image_ids))


def _find_odd(
    dataset: Dataset, records: Sequence[ImageRecord], looks: Sequence[Look | str]
) -> dict[OddKind, tuple[OddPicture, ...]]:
    seen = [(record, look) for record, look in zip(records, looks, strict=True) if isinstance(look, Look)]
    sharpness = np.array([look.sharpness for _, look in seen])
    blurred = min(MAX_SHARPNESS, BLURRED_SHARE * float(np.median(sharpness))) if seen else 0.0
    pixels = np.array([look.width_px * look.height_px for _, look in seen])
    tiny = TINY_SHARE**2 * float(np.median(pixels)) if seen else 0.0

    def choose(values: Sequence[float], limit: float) -> tuple[OddPicture, ...]:
        chosen = sorted((value, number) for number, value in enumerate(values) if value < limit)
        return tuple(
            OddPicture(
                image_id=seen[number][0].image_id, label=dataset.label_names[seen[number][0].label], value=float(value)
            )
            for value, number in chosen
        )

    return {
        "dark": choose([look.lightness for _, look in seen], MAX_LIGHTNESS),
        "blurred": choose(sharpness.tolist(), blurred),
        "tiny": choose(pixels.tolist(), tiny),
    }
