"""Galleries of the report: chosen queries beside what each encoder finds for them, as small pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import ImageOps

from vitrieve.data.decode import encode_jpeg, read_image, to_data_uri
from vitrieve.data.records import ImageRecord
from vitrieve.errors import DecodeError
from vitrieve.evaluation.analysis import Neighbor, Verdict, find_neighbors, pick_changed, pick_random, pick_worst
from vitrieve.evaluation.metrics import name_average
from vitrieve.evaluation.run import Measurement

NUM_NEIGHBORS = 8
MAX_ENCODERS = 3
"""Encoders in a gallery: the first ones and, where there are more, the last."""
THUMBNAIL_PX = 96
THUMBNAIL_BYTES = 3_400
"""At most, before base64; a busier picture is compressed more."""
MAX_THUMBNAILS = 900
"""In a whole report: together with THUMBNAIL_BYTES this keeps it below 5 MB."""
MAX_QUERIES = 8
"""In one gallery."""
JPEG_QUALITIES = (80, 65, 50, 35, 20)


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A small picture with its names.

    Attributes:
        uri: A data URI; empty when the file can no longer be read.
        class_name: Name of its label.
        image_id: Which image it is.
    """

    uri: str
    class_name: str
    image_id: str


@dataclass(frozen=True, kw_only=True)
class Place:
    """A picture in a ranking."""

    picture: Picture
    similarity: float
    verdict: Verdict


@dataclass(frozen=True, kw_only=True)
class Ranking:
    """What one encoder finds for a query: its number among the encoders, its figures, its first neighbors.

    ``first_rank`` is 0 where nothing is found: what there is to be found could not be read.
    """

    encoder: str
    number: int
    first_rank: int
    average_precision: float
    places: tuple[Place, ...]


@dataclass(frozen=True, kw_only=True)
class GalleryItem:
    """A query with a ranking for each encoder."""

    query: Picture
    num_relevant: int
    rankings: tuple[Ranking, ...]


@dataclass(frozen=True, kw_only=True)
class Gallery:
    """Some queries, why they were chosen, and the name of the figure beside each ranking."""

    title: str
    explanation: str
    average_name: str
    items: tuple[GalleryItem, ...]


class Thumbnails:
    """Small pictures of records, each made once."""

    def __init__(self, label_names: Sequence[str]) -> None:
        """Start without pictures.

        Args:
            label_names: Names of the labels of all records to come.
        """
        self._label_names = label_names
        self._pictures: dict[str, Picture] = {}

    def picture(self, record: ImageRecord) -> Picture:
        """Return the thumbnail of a record, with its names."""
        if record.image_id not in self._pictures:
            self._pictures[record.image_id] = Picture(
                uri=encode_thumbnail(record),
                class_name=self._label_names[record.label],
                image_id=record.image_id,
            )
        return self._pictures[record.image_id]


def encode_thumbnail(record: ImageRecord) -> str:
    """Encode the center square of a picture as a JPEG data URI of at most ``THUMBNAIL_BYTES`` (before base64).

    Returns:
        The URI; empty when the picture cannot be read, which a report must survive.
    """
    try:
        image = ImageOps.fit(read_image(record), (THUMBNAIL_PX, THUMBNAIL_PX))
    except (DecodeError, MemoryError):
        return ""
    data = b""
    for quality in JPEG_QUALITIES:
        data = encode_jpeg(image, quality)
        if len(data) <= THUMBNAIL_BYTES:
            break
    return to_data_uri(data)


def build_galleries(measurements: Sequence[Measurement], num_protocols: int) -> list[Gallery]:
    """Choose queries under one protocol and show what they find.

    The worst are the worst of the last encoder. With several encoders two more galleries show the largest gains
    and losses from the first to the last.

    Args:
        measurements: Of all encoders under one protocol.
        num_protocols: Protocols in the report, which share its size.
    """
    before, after = measurements[0], measurements[-1]
    is_compared = len(measurements) > 1
    shown = list(enumerate(measurements))
    if len(shown) > MAX_ENCODERS:
        shown = [*shown[: MAX_ENCODERS - 1], shown[-1]]
    num_galleries = 4 if is_compared else 2
    num_pictures = 1 + NUM_NEIGHBORS * len(shown)
    num_picked = max(1, min(MAX_QUERIES, MAX_THUMBNAILS // (num_protocols * num_galleries * num_pictures)))
    last, average_name = after.result.encoder, name_average(after.scores)
    spread = ", at most one a class where there are enough classes" if after.scores.group_name == "class" else ""
    choices = [
        (
            "Worst queries",
            f"The lowest {average_name} under {last}{spread}.",
            pick_worst(after.scores, num_picked),
        ),
        ("Random queries", "Chosen by chance, not by result.", pick_random(after.scores, num_picked)),
    ]
    if is_compared:
        change = f"{average_name} from {before.result.encoder} to {last}."
        gains = pick_changed(before.scores, after.scores, num_picked, is_gain=True)
        losses = pick_changed(before.scores, after.scores, num_picked, is_gain=False)
        choices += [("Largest gains", change, gains), ("Largest losses", change, losses)]
    thumbnails = Thumbnails(after.dataset.label_names)
    return [
        Gallery(
            title=title,
            explanation=explanation,
            average_name=average_name,
            items=_build_items(shown, queries, thumbnails),
        )
        for title, explanation, queries in choices
        if queries
    ]


def _build_items(
    shown: Sequence[tuple[int, Measurement]], queries: Sequence[int], thumbnails: Thumbnails
) -> tuple[GalleryItem, ...]:
    task, scores = shown[0][1].task, shown[0][1].scores
    found = [find_neighbors(measurement, queries, NUM_NEIGHBORS) for _, measurement in shown]
    return tuple(
        GalleryItem(
            query=thumbnails.picture(task.records[task.query_rows[query]]),
            num_relevant=int(scores.num_relevant[query]),
            rankings=tuple(
                Ranking(
                    encoder=measurement.result.encoder,
                    number=number,
                    first_rank=int(measurement.scores.first_rank[query]),
                    average_precision=float(measurement.scores.average_precision[query]),
                    places=_build_places(neighbors[position], task.records, thumbnails),
                )
                for (number, measurement), neighbors in zip(shown, found, strict=True)
            ),
        )
        for position, query in enumerate(queries)
    )


def _build_places(
    neighbors: Sequence[Neighbor], records: Sequence[ImageRecord], thumbnails: Thumbnails
) -> tuple[Place, ...]:
    return tuple(
        Place(
            picture=thumbnails.picture(records[neighbor.row]),
            similarity=neighbor.similarity,
            verdict=neighbor.verdict,
        )
        for neighbor in neighbors
    )
