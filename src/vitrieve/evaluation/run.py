"""Measure encoders on data sets: embed, score, and write ``results.json`` and the report."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vitrieve.artifacts import MANIFEST_NAME, write_text_durably
from vitrieve.data.records import Dataset, ImageRecord
from vitrieve.embed.collection import Embeddings, EmbedSettings, embed_collection, embed_images, load_embeddings
from vitrieve.errors import ConfigError
from vitrieve.evaluation.bootstrap import bootstrap_intervals
from vitrieve.evaluation.metrics import Scores, score_queries
from vitrieve.evaluation.protocols import RetrievalTask, build_task, find_whole_cut_offs, select_records
from vitrieve.evaluation.relevance import Exclusions
from vitrieve.evaluation.revisited import score_judged
from vitrieve.runtime.encoder import Encoder
from vitrieve.similarity import FloatArray, IntArray, similarity

QUERY_BLOCK_BYTES = 512 * 2**20
"""Of similarities at a time: the 70 queries of revisited Oxford and a million distractors take 281 MB."""
GALLERY_BLOCK_SIZE = 8192
"""Gallery rows taken from the embeddings, which may be a memory map larger than memory, at a time."""


def similarity_blocks(
    vectors: FloatArray, query_rows: IntArray, gallery_rows: IntArray, *, block_bytes: int = QUERY_BLOCK_BYTES
) -> Iterator[tuple[slice, FloatArray]]:
    """Compute the similarities of some queries to the whole gallery at a time, in order.

    Unlike ``similarity.similarity_chunks`` it never holds a copy of the gallery's embeddings.

    Args:
        vectors: ``(N, E)`` embeddings, also a memory map.
        query_rows: ``(Q,)`` rows of ``vectors`` that ask.
        gallery_rows: ``(G,)`` rows of ``vectors`` that can be found, at least one.
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
            places = slice(first, first + GALLERY_BLOCK_SIZE)
            block[:, places] = similarity(queries, vectors[gallery_rows[places]])
        yield slice(start, start + len(queries)), block


RESULTS_NAME = "results.json"
REPORT_NAME = "report.html"
EMBEDDINGS_FOLDER = "embeddings"
"""Inside an unfinished evaluation: what a resumed one need not embed again."""


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
        dataset: What was measured on.
        task: Queries, gallery and junk among the readable images.
        vectors: ``(N, E)`` embeddings of ``task.records``; may be a memory map.
        scores: Of every query.
        failures: ``(image_id, reason)`` of the protocol's unreadable images.
    """

    result: EvaluationResult
    dataset: Dataset
    task: RetrievalTask
    vectors: FloatArray
    scores: Scores
    failures: tuple[tuple[str, str], ...]


def measure_embeddings(
    vectors: npt.ArrayLike, labels: npt.ArrayLike, *, junk_groups: npt.ArrayLike | None = None
) -> dict[str, float]:
    """Measure embeddings in which every image searches among the others, as training does on held-out classes.

    Args:
        vectors: ``(N, E)``, L2-normalized.
        labels: ``(N,)`` integers.
        junk_groups: ``(N,)`` integers; images of one group are junk for each other (-1: for nobody). None: no junk.

    Returns:
        ``recall_at_1`` and ``map_at_r``, in [0, 1].

    Raises:
        InputError: Shapes that do not fit, non-finite embeddings, or no two images of a class.

    >>> measure_embeddings([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]], [3, 3, 4])
    {'recall_at_1': 1.0, 'map_at_r': 1.0}
    """
    means = score_queries(vectors, labels, exclusions=Exclusions(query_junk=junk_groups)).means((1,))
    return {name: means[name] for name in ("recall_at_1", "map_at_r")}


def evaluate_encoder(
    encoder: Encoder,
    dataset: Dataset,
    *,
    settings: EmbedSettings | None = None,
    show_progress: bool = False,
    has_intervals: bool = True,
) -> EvaluationResult:
    """Measure one encoder under one protocol, in memory.

    Args:
        encoder: Turns pictures into embeddings.
        dataset: Its test split is measured on.
        settings: How the images are embedded; None: the defaults.
        show_progress: Report progress on standard error.
        has_intervals: Whether the result has intervals; without them 100,000 classes are measured seconds sooner.

    Returns:
        The figures.

    Raises:
        DataError: Nothing to measure on, or too many unreadable images.
    """
    settings = settings or EmbedSettings()
    embeddings = embed_images(
        encoder,
        select_records(dataset),
        batch_size=settings.batch_size,
        num_threads=settings.num_threads,
        max_bad_fraction=settings.max_bad_fraction,
        show_progress=show_progress,
    )
    return measure(dataset, embeddings, encoder.name, has_intervals=has_intervals).result


def run_comparison(
    encoders: Sequence[Encoder],
    datasets: Sequence[Dataset],
    out: Path,
    *,
    names: Sequence[str] | None = None,
    settings: EmbedSettings | None = None,
    is_report: bool = True,
    show_progress: bool = False,
) -> list[EvaluationResult]:
    """Measure encoders under protocols, and write ``results.json`` and ``report.html``.

    Every encoder sees every image once, however many protocols use it. Embeddings are kept in ``out`` until all
    is written, so that the same call after an interruption goes on; the manifest is the caller's.

    Args:
        encoders: The first is the reference ("before") that the report compares the others with.
        datasets: Protocols; those with the same data set name are protocols of one source, in which an image_id
            means the same file, and the same embedding too unless the protocols crop it differently.
        out: Folder for the files; made when missing.
        names: What to call the encoders, all different; None: their own names, or where those repeat, their sources.
        settings: How the images are embedded; None: the defaults.
        is_report: Write the report, not only the results.
        show_progress: Report progress on standard error.

    Returns:
        One result for each encoder and protocol: all of the first encoder, then of the next.

    Raises:
        DataError: Nothing to measure on, or too many unreadable images.
        ConfigError: No encoder, no data set, or names that do not tell the encoders apart.
    """
    names = choose_names(encoders, names)
    if not datasets:
        raise ConfigError("there is no data set to measure on; give at least one.")
    settings = dataclasses.replace(settings or EmbedSettings(), show_progress=show_progress)
    measurements: list[Measurement] = []
    for encoder, name in zip(encoders, names, strict=True):
        embedded = _embed_sources(encoder, datasets, out / EMBEDDINGS_FOLDER, settings)
        measurements += [measure(dataset, found, name) for dataset, found in zip(datasets, embedded, strict=True)]
    results = [measurement.result for measurement in measurements]
    out.mkdir(parents=True, exist_ok=True)
    content = {"results": [result.to_json() for result in results]}
    write_text_durably(out / RESULTS_NAME, json.dumps(content, indent=2) + "\n")
    if is_report:
        from vitrieve.evaluation.report import write_report

        write_report(measurements, out / REPORT_NAME)
    shutil.rmtree(out / EMBEDDINGS_FOLDER)
    return results


def measure(dataset: Dataset, embeddings: Embeddings, encoder_name: str, *, has_intervals: bool = True) -> Measurement:
    """Score the embeddings of a data set under its protocol.

    Args:
        dataset: Says who asks and what can be found.
        embeddings: Of all images of the protocol, or more; matched by image_id.
        encoder_name: For the result.
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
    if task.judgements is not None:
        blocks = similarity_blocks(vectors, task.query_rows, task.gallery_rows)
        return score_judged(blocks, task.judgements)
    queries = _take_rows(vectors, task.query_rows)
    is_same = np.array_equal(task.query_rows, task.gallery_rows)  # then half of the products are computed
    return score_queries(
        queries,
        task.query_labels,
        queries if is_same else _take_rows(vectors, task.gallery_rows),
        task.gallery_labels,
        exclusions=task.exclusions,
    )


def _embed_sources(
    encoder: Encoder, datasets: Sequence[Dataset], folder: Path, settings: EmbedSettings
) -> list[Embeddings]:
    """Embed the images of each source once, and return for each data set the embeddings that hold its images."""
    sources: list[tuple[Dataset, dict[str, ImageRecord]]] = []
    numbers = []
    for dataset in datasets:
        records = {record.image_id: record for record in select_records(dataset)}
        numbers.append(_find_source(sources, dataset, records))
        if numbers[-1] == len(sources):
            sources.append((dataset, {}))
        sources[numbers[-1]][1].update(records)
    embedded = []
    for number, (dataset, records) in enumerate(sources):
        source = dataclasses.replace(dataset, records=tuple(records.values()))
        embedded.append(_embed_once(encoder, source, folder / f"{encoder.fingerprint[:16]}-{number}", settings))
    return [embedded[number] for number in numbers]


def _find_source(
    sources: Sequence[tuple[Dataset, Mapping[str, ImageRecord]]], dataset: Dataset, records: Mapping[str, ImageRecord]
) -> int:
    """Find the source with the data set's name that crops every shared image alike; else the number of a new one."""
    for number, (source, others) in enumerate(sources):
        shared = others.keys() & records.keys()
        if source.name == dataset.name and all(others[one].box == records[one].box for one in shared):
            return number
    return len(sources)


def _embed_once(encoder: Encoder, dataset: Dataset, folder: Path, settings: EmbedSettings) -> Embeddings:
    """Embed the records of ``dataset``, or take up what an interrupted evaluation has already embedded."""
    if (folder / MANIFEST_NAME).is_file():
        found = load_embeddings(folder)
        ids = {*(record.image_id for record in found.records), *(image_id for image_id, _ in found.failures)}
        boxes = {record.image_id: record.box for record in dataset.records}
        is_same = ids == boxes.keys() and all(boxes[record.image_id] == record.box for record in found.records)
        if is_same and found.fingerprint == encoder.fingerprint:
            return found
        shutil.rmtree(folder)
    return embed_collection(encoder, dataset, folder, settings=settings, is_resume=True)


def choose_names(encoders: Sequence[Encoder], names: Sequence[str] | None = None) -> tuple[str, ...]:
    """Choose what to call the encoders.

    Args:
        encoders: At least one.
        names: All different; None: their own names, or where those repeat, their sources.

    Raises:
        ConfigError: No encoder, or names that do not tell them apart.
    """
    chosen = tuple(names) if names is not None else name_encoders(encoders)
    if not encoders or len(chosen) != len(encoders) or len(set(chosen)) != len(chosen):
        raise ConfigError(
            f"{len(encoders)} encoders are called {', '.join(map(repr, chosen)) or 'nothing'}; "
            "expected at least one encoder, each with a name of its own."
        )
    return chosen


def name_encoders(encoders: Sequence[Encoder]) -> tuple[str, ...]:
    """Name encoders after themselves, or where two share a name, after where they came from."""
    counts = Counter(encoder.name for encoder in encoders)
    return tuple(encoder.name if counts[encoder.name] == 1 else os.fspath(encoder.source) for encoder in encoders)
