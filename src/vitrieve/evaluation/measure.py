"""Measure embeddings under a protocol: similarities, scores, means and intervals, and the same as text."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vitrieve.data.records import Dataset
from vitrieve.embed.collection import Embeddings
from vitrieve.evaluation.metrics import Scores, bootstrap_intervals, score_queries, short_name
from vitrieve.evaluation.protocols import RetrievalTask, build_task, find_whole_cut_offs, select_records
from vitrieve.evaluation.revisited import score_listed
from vitrieve.quoting import quote_name
from vitrieve.similarity import FloatArray, IntArray, similarity

QUERY_BLOCK_BYTES = 512 * 2**20
"""Bytes of similarities at a time: the 70 queries of revisited Oxford and a million distractors take 281 MB."""
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

    def to_json(self) -> dict[str, Any]:
        """Convert to plain JSON values; the metrics stand beside the counts."""
        values = dataclasses.asdict(self)
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


def measure(dataset: Dataset, embeddings: Embeddings, encoder_name: str, *, has_intervals: bool = True) -> Measurement:
    """Score the embeddings of a data set under its protocol.

    Args:
        dataset: Data set, which says which images are queries and which can be found.
        embeddings: Embeddings of all images of the protocol, or more; matched by image_id.
        encoder_name: Name for the result.
        has_intervals: Whether the result has intervals.

    Raises:
        DataError: Nothing to measure on.
        InputError: No query with anything relevant.
    """
    rows = {record.image_id: row for row, record in enumerate(embeddings.records)}
    wanted = select_records(dataset)
    readable = [record for record in wanted if record.image_id in rows]
    wanted_ids = {record.image_id for record in wanted}
    failures = [failure for failure in embeddings.failures if failure[0] in wanted_ids]
    task = build_task(dataset, readable)
    vectors = _take_rows(embeddings.vectors, [rows[record.image_id] for record in readable])
    scores = _score(task, vectors)
    result = EvaluationResult(
        encoder=encoder_name,
        dataset=dataset.name,
        protocol=dataset.protocol,
        num_queries=scores.num_scored,
        num_skipped_queries=scores.num_skipped,
        num_gallery=len(task.gallery_rows),
        num_unreadable=len(failures),
        embedding_dim=vectors.shape[1],
        image_size=embeddings.image_size,
        metrics=scores.means(dataset.ks),
        intervals=bootstrap_intervals(scores, dataset.ks) if has_intervals else {},
        whole_cut_offs=find_whole_cut_offs(task, dataset.ks),
    )
    return Measurement(
        result=result, dataset=dataset, task=task, vectors=vectors, scores=scores, failures=tuple(failures)
    )


def _take_rows(vectors: FloatArray, rows: Sequence[int] | IntArray) -> FloatArray:
    """Take rows in order; all of them are taken without a copy, as a million distractors are too many for one."""
    chosen = np.asarray(rows, dtype=np.int64)
    if np.array_equal(chosen, np.arange(len(vectors))):
        return vectors
    return np.asarray(vectors[chosen])


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
    if result.num_skipped_queries:
        text += f"\nqueries left out, as nothing relevant is in the gallery: {result.num_skipped_queries:,}"
    if result.num_unreadable:
        text += f"\nimages left out, as they cannot be read: {result.num_unreadable:,}"
    if result.whole_cut_offs:
        text += "\n* K is as large as the gallery: this is 100 % whatever the encoder does"
    return text
