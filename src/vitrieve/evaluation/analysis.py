"""What the report shows beside the figures: classes, similarity histograms, spectra, and queries with their neighbors.

Nothing here knows HTML.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from PIL import ImageOps

from vitrieve.data.decode import encode_jpeg, read_image, to_data_uri
from vitrieve.data.records import ImageRecord
from vitrieve.errors import DecodeError, UnreachableError
from vitrieve.evaluation.measure import Measurement, similarity_blocks
from vitrieve.evaluation.metrics import RelevanceRule, Scores, bootstrap_means, name_average, percentile_interval
from vitrieve.similarity import FloatArray, IntArray, order_nearest

Verdict = Literal["right", "wrong", "junk"]

NUM_BINS = 80
NUM_HISTOGRAM_QUERIES = 2000
"""Queries whose pairs are counted in a histogram: with every gallery image, enough for a smooth curve."""
ENERGY_BLOCK_SIZE = 8192
NUM_NEIGHBORS = 8
MAX_ENCODERS = 3
"""Encoders in a gallery: the first ones and, where there are more, the last."""
THUMBNAIL_PX = 96
THUMBNAIL_BYTES = 3_400
"""The most bytes of a picture, before base64; a busier picture is compressed more."""
MAX_THUMBNAILS = 900
"""The most pictures in a whole report: together with THUMBNAIL_BYTES this keeps it below 5 MB."""
MAX_QUERIES = 8
"""The most queries in one gallery."""
JPEG_QUALITIES = (80, 65, 50, 35, 20)


@dataclass(frozen=True, kw_only=True)
class GroupFigures:
    """One group of queries under one encoder.

    Attributes:
        group: Number in ``Scores.groups``: the label of a class, or the number of a query.
        num_queries: Scored queries of the group.
        first: Their mean of the first headline metric (Recall@1, mP@1), in [0, 1].
        average: Their mean of the second one (MAP@R, mAP), in [0, 1].
    """

    group: int
    num_queries: int
    first: float
    average: float


@dataclass(frozen=True, kw_only=True)
class SimilarityHistogram:
    """How similar relevant and irrelevant pairs of query and gallery image are.

    Attributes:
        edges: ``(B + 1,)`` rising, from -1 to 1.
        positive: ``(B,)`` share of the relevant pairs in each bin.
        negative: ``(B,)`` share of the irrelevant pairs in each bin.
        positive_mean: Mean similarity of relevant pairs.
        negative_mean: Mean similarity of irrelevant pairs.
    """

    edges: npt.NDArray[np.float64]
    positive: npt.NDArray[np.float64]
    negative: npt.NDArray[np.float64]
    positive_mean: float
    negative_mean: float


@dataclass(frozen=True, kw_only=True)
class Neighbor:
    """A gallery image in a query's ranking; ``row`` is its row in the task's records."""

    row: int
    similarity: float
    verdict: Verdict


def list_group_figures(scores: Scores) -> list[GroupFigures]:
    """Average the two headline metrics over the scored queries of each group, by rising group."""
    values = [scores.values((1,))[name] for name in scores.headlines]
    groups, group_rows, counts = np.unique(scores.groups[scores.is_scored], return_inverse=True, return_counts=True)
    firsts, averages = (np.bincount(group_rows, column, len(groups)) / counts for column in values)
    return [
        GroupFigures(group=int(group), num_queries=int(count), first=float(first), average=float(average))
        for group, count, first, average in zip(groups, counts, firsts, averages, strict=True)
    ]


def difference_interval(before: Scores, after: Scores, ks: Sequence[int]) -> dict[str, tuple[float, float]]:
    """Compute the 95 % interval of each metric's difference, paired: both encoders on the same draws.

    Args:
        before: Scores of the reference.
        after: Scores of another encoder on the same queries.
        ks: Cut-offs.
    """
    first, second = bootstrap_means(before, ks), bootstrap_means(after, ks)
    return {name: percentile_interval(second[name] - first[name]) for name in first}


def count_similarities(measurement: Measurement, *, seed: int = 0) -> SimilarityHistogram:
    """Build the histograms of the similarities of relevant and irrelevant pairs.

    Args:
        measurement: Measurement of one encoder. Beyond ``NUM_HISTOGRAM_QUERIES`` queries a random choice is counted.
        seed: Seed of the generator of that choice.
    """
    task, relevance = measurement.task, measurement.task.relevance
    chosen = np.arange(len(task.query_rows))
    if len(chosen) > NUM_HISTOGRAM_QUERIES:
        chosen = np.sort(np.random.default_rng(seed).choice(chosen, NUM_HISTOGRAM_QUERIES, replace=False))
    counts, sums = np.zeros((2, NUM_BINS), dtype=np.int64), np.zeros(2)
    for rows, block in similarity_blocks(measurement.vectors, task.query_rows[chosen], task.gallery_rows):
        for query, similarities in zip(chosen[rows], block, strict=True):
            pairs = _split_pairs(similarities, relevance, int(query))
            counts += [_count_bins(values) for values in pairs]
            sums += [values.sum(dtype=np.float64) for values in pairs]
    totals = np.maximum(counts.sum(axis=1), 1)
    return SimilarityHistogram(
        edges=np.linspace(-1, 1, NUM_BINS + 1),
        positive=counts[0] / totals[0],
        negative=counts[1] / totals[1],
        positive_mean=float(sums[0] / totals[0]),
        negative_mean=float(sums[1] / totals[1]),
    )


def _split_pairs(similarities: FloatArray, relevance: RelevanceRule, query: int) -> tuple[FloatArray, FloatArray]:
    """Split a query's similarities into those of relevant and of irrelevant images."""
    kind = np.zeros(len(similarities), dtype=np.int8)
    kind[relevance.relevant_rows(query)] = 1
    kind[relevance.excluded_rows(query)] = -1
    return similarities[kind == 1], similarities[kind == 0]


def _count_bins(similarities: FloatArray) -> IntArray:
    bins = np.floor((similarities.astype(np.float64) + 1) * (NUM_BINS / 2)).astype(np.int64)
    return np.bincount(np.clip(bins, 0, NUM_BINS - 1), minlength=NUM_BINS)  # 1 belongs to the last bin


def cumulative_energy(vectors: FloatArray) -> npt.NDArray[np.float64]:
    """Compute how much of the embeddings' variance their first principal components hold.

    Args:
        vectors: ``(N, E)`` embeddings; centered here.

    Returns:
        ``(E,)`` rising shares, the last of them 1; all of them 1 where the embeddings do not vary.

    Source: El-Nouby et al., arXiv:2102.05644, figures 2 and 3.

    >>> cumulative_energy(np.float32([[1, 0, 5], [-1, 0, 5], [0, 1, 5], [0, -1, 5]])).round(3).tolist()
    [0.5, 1.0, 1.0]
    """
    num_dims = vectors.shape[1]
    mean = vectors.mean(axis=0, dtype=np.float64)
    covariance = np.zeros((num_dims, num_dims))
    for start in range(0, len(vectors), ENERGY_BLOCK_SIZE):
        centered = vectors[start : start + ENERGY_BLOCK_SIZE] - mean
        covariance += centered.T @ centered
    # The covariance is symmetric, so its eigenvalues are real; rounding may leave some just below zero.
    eigenvalues = np.maximum(np.linalg.eigvalsh(covariance)[::-1], 0.0)
    total = eigenvalues.sum()
    if total <= np.finfo(np.float32).eps * max(1, len(vectors)):
        return np.ones(num_dims)
    return np.asarray(np.minimum(np.cumsum(eigenvalues) / total, 1.0))


def find_neighbors(measurement: Measurement, queries: Sequence[int], k: int) -> list[list[Neighbor]]:
    """List what some queries find first; ties are ordered by row.

    Their own images and junk by metadata are left out; junk of a ground truth is shown and named.

    Args:
        measurement: Measurement of one encoder.
        queries: Positions in ``task.query_rows``.
        k: Neighbors a query, or fewer where the gallery has fewer.
    """
    task, relevance = measurement.task, measurement.task.relevance
    found = []
    chosen = np.asarray(queries, dtype=np.int64)
    for rows, block in similarity_blocks(measurement.vectors, task.query_rows[chosen], task.gallery_rows):
        for query, similarities in zip(chosen[rows], block, strict=True):
            junk = relevance.shown_junk_rows(query)
            similarities[np.setdiff1d(relevance.excluded_rows(query), junk)] = -np.inf
            values, columns = order_nearest(similarities[None], k)
            right = np.isin(columns[0], relevance.relevant_rows(query))
            verdicts = np.where(np.isin(columns[0], junk), "junk", np.where(right, "right", "wrong")).tolist()
            nearest = zip(task.gallery_rows[columns[0]], values[0], verdicts, strict=True)
            found.append(
                [
                    Neighbor(row=int(row), similarity=float(value), verdict=verdict)
                    for row, value, verdict in nearest
                    if value > -np.inf
                ]
            )
    return found


def pick_worst(scores: Scores, num_picked: int) -> list[int]:
    """Pick the scored queries with the lowest average precision, among equals the latest first hit; one a group.

    Where there are too few groups (classes), the rest come from any.
    """
    # A query that finds nothing (rank 0: its images cannot be read) is worse than one that finds something late.
    lateness = np.where(scores.first_rank > 0, scores.first_rank, np.iinfo(np.int64).max)
    order = np.lexsort((np.arange(len(lateness)), -lateness, scores.average_precision))
    return _pick_spread(order[scores.is_scored[order]], scores.groups, num_picked)


def pick_random(scores: Scores, num_picked: int, *, seed: int = 0) -> list[int]:
    """Pick scored queries at random, without repetition, by a generator of its own."""
    order = np.random.default_rng(seed).permutation(np.flatnonzero(scores.is_scored))
    return [int(query) for query in order[:num_picked]]


def pick_changed(before: Scores, after: Scores, num_picked: int, *, is_gain: bool) -> list[int]:
    """Pick the queries whose average precision rose (or fell) most; fewer where fewer did, one a group where possible.

    Args:
        before: Scores of the reference.
        after: Scores of another encoder on the same queries.
        num_picked: Queries at most.
        is_gain: Those that rose; else those that fell.
    """
    change = (after.average_precision - before.average_precision) * (1 if is_gain else -1)
    order = np.argsort(-change, kind="stable")
    return _pick_spread(order[change[order] > 0], after.groups, num_picked)


def _pick_spread(order: IntArray, groups: IntArray, num_picked: int) -> list[int]:
    """Take the first of each group in ``order``, then, when there are too few groups, the others."""
    _, firsts = np.unique(groups[order], return_index=True)
    is_first = np.zeros(len(order), dtype=bool)
    is_first[firsts] = True
    picked = np.concatenate([order[is_first], order[~is_first]])[:num_picked]
    return [int(query) for query in picked]


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
class RankedPicture:
    """A picture in a ranking, with its similarity and whether it is right."""

    picture: Picture
    similarity: float
    verdict: Verdict


@dataclass(frozen=True, kw_only=True)
class Ranking:
    """The first neighbors that one encoder finds for a query, with its number among the encoders and its figures.

    ``first_rank`` is 0 where nothing is found, because the relevant images could not be read.
    """

    encoder: str
    number: int
    first_rank: int
    average_precision: float
    pictures: tuple[RankedPicture, ...]


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
    except (DecodeError, UnreachableError, MemoryError):
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
        measurements: Measurements of all encoders under one protocol.
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
                    pictures=_build_pictures(neighbors[position], task.records, thumbnails),
                )
                for (number, measurement), neighbors in zip(shown, found, strict=True)
            ),
        )
        for position, query in enumerate(queries)
    )


def _build_pictures(
    neighbors: Sequence[Neighbor], records: Sequence[ImageRecord], thumbnails: Thumbnails
) -> tuple[RankedPicture, ...]:
    return tuple(
        RankedPicture(
            picture=thumbnails.picture(records[neighbor.row]),
            similarity=neighbor.similarity,
            verdict=neighbor.verdict,
        )
        for neighbor in neighbors
    )
