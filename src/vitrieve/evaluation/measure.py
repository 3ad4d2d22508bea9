"""Measure embeddings under a protocol: similarities, scores, means and intervals, and the same as text."""

from __future__ import annotations

import dataclasses
import os
import sys
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile, gettempdir
from typing import Any

import numpy as np

from vitrieve.data.records import Dataset, ImageRecord, choose_records, read_columns, read_ids
from vitrieve.embed.embeddings import Embeddings
from vitrieve.evaluation.metrics import Scores, bootstrap_intervals, score_queries, short_name
from vitrieve.evaluation.protocols import RetrievalTask, build_task, find_whole_cut_offs, select_records
from vitrieve.evaluation.revisited import score_listed
from vitrieve.quoting import quote_name
from vitrieve.similarity import FloatArray, IntArray, similarity
from vitrieve.writing import explaining_full_disk

QUERY_BLOCK_BYTES = 512 * 2**20
"""Bytes of similarities at a time: the 70 queries of revisited Oxford and a million distractors take 281 MB."""
HELD_BYTES = 256 * 2**20
"""Vectors copied in memory: of 175,000 images with 384 dimensions."""
GALLERY_BLOCK_SIZE = 8192
"""Gallery rows taken from the embeddings, which may be a memory map larger than memory, at a time."""


@dataclass(frozen=True, kw_only=True)
class EvaluationResult:
    """The figures of one encoder under one protocol.

    Attributes:
        encoder: Name of the encoder.
        dataset: Name of the data set.
        protocol: Its protocol.
        num_queries: Queries that the means are over.
        num_skipped_queries: Further queries, for which nothing relevant is in the gallery.
        num_drawn_from: Queries of the protocol, of which those were drawn at random; None: all were asked.
        num_gallery: Images that can be found, among them the queries' own.
        num_unreadable: Images of the protocol that could not be read, and so are in none of these counts.
        embedding_dim: Length of an embedding.
        image_size: Side of the encoder's input in pixels.
        metrics: ``recall_at_K`` for the data set's cut-offs, ``r_precision`` and ``map_at_r``, in [0, 1]; with a
            ground truth ``mean_average_precision`` and ``mp_at_K``.
        intervals: For each metric its 95 % bootstrap interval over classes, with a ground truth over queries; empty
            where they were not asked for.
        whole_cut_offs: Cut-offs K as large as the gallery: their Recall@K is 1 whatever the encoder does.
    """

    encoder: str
    dataset: str
    protocol: str
    num_queries: int
    num_skipped_queries: int
    num_gallery: int
    num_unreadable: int
    embedding_dim: int
    image_size: int
    metrics: Mapping[str, float]
    intervals: Mapping[str, tuple[float, float]]
    whole_cut_offs: tuple[int, ...] = ()
    num_drawn_from: int | None = None

    def to_json(self) -> dict[str, Any]:
        """Convert to plain JSON values; the metrics stand beside the counts."""
        values = dataclasses.asdict(self)
        if self.num_drawn_from is None:
            del values["num_drawn_from"]
        metrics, intervals, whole = values.pop("metrics"), values.pop("intervals"), values.pop("whole_cut_offs")
        ends = {name: list(ends) for name, ends in intervals.items()}
        return {**values, **metrics, "intervals": ends, "whole_cut_offs": list(whole)}


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """A result with what it was computed from, for the report.

    Attributes:
        result: The figures.
        dataset: Data set that was measured on.
        task: Queries, gallery and junk among the readable images.
        vectors: ``(N, E)`` embeddings of ``task.records``; may be a memory map.
        scores: Scores of every query.
        failures: ``(image_id, reason)`` of the protocol's unreadable images.
    """

    result: EvaluationResult
    dataset: Dataset
    task: RetrievalTask
    vectors: FloatArray
    scores: Scores
    failures: tuple[tuple[str, str], ...]


def measure(
    dataset: Dataset,
    embeddings: Embeddings,
    encoder_name: str,
    *,
    has_intervals: bool = True,
    num_queries: int | None = None,
) -> Measurement:
    """Score the embeddings of a data set under its protocol.

    Of embeddings on disk and a source that is a table, memory holds some ten bytes for each image and what the queries
    take; vectors are read block by block.

    Args:
        dataset: Data set, which says which images are queries and which can be found.
        embeddings: Embeddings of all images of the protocol, or more; matched by image_id.
        encoder_name: Name for the result.
        has_intervals: Whether the result has intervals.
        num_queries: Number of queries that are drawn at random where the protocol has more; None: all.

    Raises:
        DataError: Nothing to measure on.
        InputError: No query with anything relevant.
    """
    wanted = select_records(dataset)
    places, rows, failures = match_records(wanted, embeddings)
    readable = choose_records(wanted, places)
    task = build_task(dataset, readable, num_queries=num_queries)
    vectors = _take_rows(embeddings.vectors, rows)
    del places, rows  # of ten million images 160 MB
    scores = _score(task, vectors)
    result = EvaluationResult(
        encoder=encoder_name,
        dataset=dataset.name,
        protocol=dataset.protocol,
        num_queries=scores.num_scored,
        num_skipped_queries=scores.num_skipped,
        num_drawn_from=_count_queries(readable, task),
        num_gallery=len(task.gallery_rows),
        num_unreadable=len(failures),
        embedding_dim=vectors.shape[1],
        image_size=embeddings.image_size,
        metrics=scores.means(dataset.ks),
        intervals=bootstrap_intervals(scores, dataset.ks) if has_intervals else {},
        whole_cut_offs=find_whole_cut_offs(task, dataset.ks),
    )
    return Measurement(result=result, dataset=dataset, task=task, vectors=vectors, scores=scores, failures=failures)


def match_records(
    wanted: Sequence[ImageRecord], embeddings: Embeddings
) -> tuple[IntArray, IntArray, tuple[tuple[str, str], ...]]:
    """Find the embeddings of images by their names.

    Returns:
        The places in ``wanted`` of the images that have a vector, rising; the rows of their vectors; and those of the
        failures of the embeddings that are wanted.
    """
    # Embeddings stand in the order of their source: one walk along both finds them without a table of all names.
    failed = {image_id for image_id, _ in embeddings.failures}
    wanted_failed = set()
    places, rows = array("q"), array("q")
    found = enumerate(read_ids(embeddings.records))
    for place, image_id in enumerate(read_ids(wanted)):
        if image_id in failed:
            wanted_failed.add(image_id)
            continue
        row = next((row for row, other in found if other == image_id), None)
        if row is None:
            return _match_by_name(wanted, embeddings)
        places.append(place)
        rows.append(row)
    failures = tuple(failure for failure in embeddings.failures if failure[0] in wanted_failed)
    return np.frombuffer(places, dtype=np.int64), np.frombuffer(rows, dtype=np.int64), failures


def _match_by_name(
    wanted: Sequence[ImageRecord], embeddings: Embeddings
) -> tuple[IntArray, IntArray, tuple[tuple[str, str], ...]]:
    """Match embeddings that stand in another order, or lack images for no reason."""
    row_of = {image_id: row for row, image_id in enumerate(read_ids(embeddings.records))}
    wanted_ids = list(read_ids(wanted))
    places = [place for place, image_id in enumerate(wanted_ids) if image_id in row_of]
    rows = [row_of[wanted_ids[place]] for place in places]
    known = set(wanted_ids)
    failures = tuple(failure for failure in embeddings.failures if failure[0] in known)
    return np.array(places, dtype=np.int64), np.array(rows, dtype=np.int64), failures


def _count_queries(readable: Sequence[ImageRecord], task: RetrievalTask) -> int | None:
    """Count the queries of which those of a task were drawn; None where they are all."""
    num_all = int(np.count_nonzero(read_columns(readable).is_query))
    return None if num_all == len(task.query_rows) else num_all


def _take_rows(vectors: FloatArray, rows: IntArray) -> FloatArray:
    """Take rows in order: neighbors without a copy, and many others by a copy on disk, which needs no memory."""
    if len(rows) and np.array_equal(rows, np.arange(rows[0], rows[0] + len(rows))):
        return vectors[rows[0] : rows[0] + len(rows)]
    if len(rows) * vectors[:1].nbytes <= HELD_BYTES:
        return np.asarray(vectors[rows])
    shape = (len(rows), vectors.shape[1])
    num_bytes = 4 * shape[0] * shape[1]
    advice = "Make room, or set TMPDIR to a folder on another disk."
    with explaining_full_disk(Path(gettempdir()), num_bytes=num_bytes, advice=advice), TemporaryFile() as file:
        if sys.platform == "linux":
            os.posix_fallocate(file.fileno(), 0, num_bytes)  # a full disk would kill whoever writes to a map
        copy = np.memmap(file, dtype=np.float32, mode="w+", shape=shape)  # stays when the file is closed
    for start in range(0, len(rows), GALLERY_BLOCK_SIZE):
        copy[start : start + GALLERY_BLOCK_SIZE] = vectors[rows[start : start + GALLERY_BLOCK_SIZE]]
    return copy


def _score(task: RetrievalTask, vectors: FloatArray) -> Scores:
    """Score every query: by the ground truth where there is one, else by labels."""
    if task.listed is not None:
        blocks = similarity_blocks(vectors, task.query_rows, task.gallery_rows)
        return score_listed(blocks, task.listed)
    queries = _take_rows(vectors, task.query_rows)
    is_same = np.array_equal(task.query_rows, task.gallery_rows)  # then half of the products are computed
    return score_queries(
        queries,
        task.query_labels,
        queries if is_same else _take_rows(vectors, task.gallery_rows),
        task.gallery_labels,
        exclusions=task.exclusions,
    )


def similarity_blocks(
    vectors: FloatArray, query_rows: IntArray, gallery_rows: IntArray, *, block_bytes: int = QUERY_BLOCK_BYTES
) -> Iterator[tuple[slice, FloatArray]]:
    """Compute the similarities of some queries to the whole gallery at a time, in order.

    Unlike ``similarity.similarity_chunks`` it never holds a copy of the gallery's embeddings.

    Args:
        vectors: ``(N, E)`` embeddings, also a memory map.
        query_rows: ``(Q,)`` rows of the queries in ``vectors``.
        gallery_rows: ``(G,)`` rows of the gallery in ``vectors``, at least one.
        block_bytes: Size of a block of similarities to stay below, where one query allows it. Changes no value.

    Yields:
        Which queries, and their ``(q, G)`` similarities: a fresh array that the caller may change.
    """
    num_gallery = len(gallery_rows)
    num_rows = max(1, block_bytes // (4 * num_gallery))
    for start in range(0, len(query_rows), num_rows):
        queries = np.asarray(vectors[query_rows[start : start + num_rows]])
        block = np.empty((len(queries), num_gallery), dtype=np.float32)
        for first in range(0, num_gallery, GALLERY_BLOCK_SIZE):
            columns = slice(first, first + GALLERY_BLOCK_SIZE)
            block[:, columns] = similarity(queries, vectors[gallery_rows[columns]])
        yield slice(start, start + len(queries)), block


def format_results(results: Sequence[EvaluationResult]) -> str:
    """Lay results out as plain text: a table for each protocol, percentages with their intervals below."""
    groups: dict[tuple[str, str], list[EvaluationResult]] = {}
    for result in results:
        groups.setdefault((result.dataset, result.protocol), []).append(result)
    return "\n\n".join(_format_group(group) for group in groups.values())


def _format_group(group: Sequence[EvaluationResult]) -> str:
    first = group[0]
    whole = {f"recall_at_{k}" for k in first.whole_cut_offs}
    rows = [["", *(short_name(name) + ("*" if name in whole else "") for name in first.metrics)]]
    for result in group:
        rows.append([quote_name(result.encoder), *(f"{value * 100:.1f}" for value in result.metrics.values())])
        ends = (result.intervals[name] for name in result.metrics)
        rows.append(["  95 % interval", *(f"{low * 100:.1f}-{high * 100:.1f}" for low, high in ends)])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(
            [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        )
        for row in rows
    ]
    return "\n".join([_format_setting(group), *lines])


def _format_setting(group: Sequence[EvaluationResult]) -> str:
    result = group[0]
    sizes = " and ".join(str(size) for size in sorted({one.image_size for one in group}))
    text = (
        f"{quote_name(result.dataset)}, {result.protocol}: {result.num_queries:,} queries, "
        f"{result.num_gallery:,} gallery images, {sizes} px; figures in %"
    )
    if result.num_drawn_from is not None:
        text += f"\nqueries drawn at random from {result.num_drawn_from:,}"
    if result.num_skipped_queries:
        text += f"\nqueries left out, as nothing relevant is in the gallery: {result.num_skipped_queries:,}"
    if result.num_unreadable:
        text += f"\nimages left out, as they cannot be read: {result.num_unreadable:,}"
    if result.whole_cut_offs:
        text += "\n* K is as large as the gallery: this is 100 % whatever the encoder does"
    return text
