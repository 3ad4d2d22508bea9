"""What re-ranking adds: every way measured on held-out training classes, and one of them kept, or none.

One is kept only if it raises the average precision by more than chance (the 95 % interval of the difference, widened
for the number of ways that were tried, over five held-out classes or more) and does not lower the first headline
metric. Test classes never choose.

What is put into another order is what a search would show: all of the gallery but the query's own image. Images that a
protocol ignores are in it, as in the published figures, and taken out before it is scored.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from vitrieve.data.holdout import (
    MAX_CHOOSING,
    NUM_CLASSES_MIN,
    NUM_JUDGES_MIN,
    has_pairs,
    limit_images,
    split_for_training,
)
from vitrieve.data.records import Dataset, ImageRecord
from vitrieve.embed.collection import EmbedSettings, embed_images
from vitrieve.embed.embeddings import Embeddings
from vitrieve.errors import ConfigError, DataError, unknown_name_message
from vitrieve.evaluation.measure import Measurement, measure, similarity_blocks
from vitrieve.evaluation.metrics import NO_ROW, Relevance, Scores, bootstrap_means, score_rows, short_name
from vitrieve.evaluation.revisited import score_listed
from vitrieve.progress import print_message, track
from vitrieve.quoting import quote_name
from vitrieve.rerank.names import AUTO, LEARNT, NO_RERANKING
from vitrieve.rerank.parts import ByteArray, PartKind, compute_parts, has_patches, stack_parts
from vitrieve.rerank.reranker import RERANKERS, Reranker, Shortlist, build_learnt
from vitrieve.runtime.encoder import Encoder
from vitrieve.runtime.engine import is_torch_installed
from vitrieve.similarity import FloatArray, IntArray, order_nearest

CHANCE = 0.05
NUM_TIMED = 10
"""Queries whose parts are computed one by one, as a search does with a picture that is not in the index."""


@dataclass(frozen=True, kw_only=True)
class RerankingRow:
    """One way of re-ranking under one protocol.

    Attributes:
        reranking: Its name; ``none`` for the order that the embeddings give.
        metrics: The metrics of the data set, in [0, 1].
        gain: Interval of what it adds to the average precision (MAP@R or mAP), paired over the draws, that holds for
            all ways of the table together with 95 %; None for ``none``.
        milliseconds: Time that a query takes longer, with a picture that is not in the index: its own parts are
            computed, and the first images, whose parts are at hand, are ordered.
        bytes_per_image: Size of the parts that are kept of an image, beside its embedding.
    """

    reranking: str
    metrics: Mapping[str, float]
    gain: tuple[float, float] | None
    milliseconds: float
    bytes_per_image: int


@dataclass(frozen=True, kw_only=True)
class RerankingReport:
    """What re-ranking adds for one encoder on some images; printed, it is a table.

    Attributes:
        encoder: Name of the encoder.
        fingerprint: Its fingerprint.
        dataset: Name of the data set.
        protocol: Its protocol.
        num_queries: Queries that the means are over.
        rows: The order of the embeddings first, then every way that was tried.
        chosen: The one that is kept, or None for none.
        reason: Why, in a sentence; of rows that choose nothing, what they were measured on.
        chooses: Whether these rows choose: those of held-out classes do, those of test classes do not.
    """

    encoder: str
    fingerprint: str
    dataset: str
    protocol: str
    num_queries: int
    rows: tuple[RerankingRow, ...]
    chosen: Reranker | None
    reason: str
    chooses: bool

    @property
    def average(self) -> str:
        """Name of the metric that ``gain`` is of; there are rows."""
        names = list(self.rows[0].metrics)
        return "mean_average_precision" if "mean_average_precision" in names else names[-1]

    def describe(self) -> str:
        """Say what was measured on."""
        return f"{quote_name(self.dataset)}, {self.protocol}: {self.num_queries:,} queries"

    def to_json(self) -> dict[str, Any]:
        """Convert to plain JSON values."""
        values: dict[str, Any] = {
            "encoder": self.encoder,
            "dataset": self.dataset,
            "protocol": self.protocol,
            "num_queries": self.num_queries,
            "rows": [{**dataclasses.asdict(row), "gain": row.gain and list(row.gain)} for row in self.rows],
            "reason": self.reason,
        }
        return {**values, "chosen": self.chosen.name if self.chosen else NO_RERANKING} if self.chooses else values

    def __str__(self) -> str:
        if not self.rows:
            return self.reason
        names, average = list(self.rows[0].metrics), short_name(self.average)
        table = [["re-ranking", *map(short_name, names), f"gain in {average}", "ms a query", "bytes an image"]]
        for row in self.rows:
            gain = "" if row.gain is None else " to ".join(f"{100 * end:+.1f}" for end in row.gain)
            figures = [f"{100 * value:.1f}" for value in row.metrics.values()]
            table.append([row.reranking, *figures, gain, f"{row.milliseconds:.1f}", f"{row.bytes_per_image:,}"])
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        lines = [
            "  ".join([cells[0].ljust(widths[0]), *map(str.rjust, cells[1:], widths[1:])]).rstrip() for cells in table
        ]
        return "\n".join([f"{quote_name(self.encoder)} on {self.describe()}", *lines, self.reason])


def parse_rerankings(given: str | Sequence[str]) -> tuple[str, ...]:
    """Read ``auto``, ``none``, or names; commas separate several in one text.

    Returns:
        The names; none of them for ``none``, which is measured in any case.

    Raises:
        ConfigError: An unknown name, or ``auto`` or ``none`` beside others.

    >>> parse_rerankings("k_reciprocal,superglobal")
    ('k_reciprocal', 'superglobal')
    """
    words = [given] if isinstance(given, str) else given
    names = tuple(dict.fromkeys(name.strip() for word in words for name in word.split(",") if name.strip()))
    valid = (AUTO, NO_RERANKING, LEARNT, *RERANKERS)
    unknown = next((name for name in names if name not in valid), None)
    if unknown is not None:
        raise ConfigError(unknown_name_message("re-ranking", unknown, valid))
    if len(names) > 1 and {AUTO, NO_RERANKING} & {*names}:
        raise ConfigError(
            "auto tries every re-ranking, and none is measured in any case; give one of them alone, or name those to "
            "be measured on the test split."
        )
    return () if names == (NO_RERANKING,) else names


class _Shortlists:
    """The first images of every query of a measurement, and their parts, computed when they are first asked for."""

    def __init__(
        self, measurement: Measurement, encoder: Encoder, *, max_bad_fraction: float, show_progress: bool
    ) -> None:
        self._task, self._vectors = measurement.task, measurement.vectors
        self._encoder, self._show_progress, self._max_bad_fraction = encoder, show_progress, max_bad_fraction
        self._own_rows = np.asarray(measurement.task.exclusions.query_rows)
        self._relevance = measurement.task.relevance
        self._found: dict[tuple[PartKind, int], tuple[IntArray, ByteArray]] = {}
        self._part_seconds: dict[PartKind, float] = {}

    @cached_property
    def has_patches(self) -> bool:
        """Whether the encoder puts out patches."""
        return has_patches(self._encoder)

    def list_blocks(self) -> Iterator[tuple[slice, FloatArray]]:
        """Compute the similarities of some queries at a time to the whole gallery."""
        return similarity_blocks(self._vectors, self._task.query_rows, self._task.gallery_rows)

    def find_first(self, query: int, similarities: FloatArray, depth: int) -> IntArray:
        """Find the gallery rows that a query is first shown, without its own image where that does not count."""
        allowed, own = similarities, self._own_rows[query]
        if own != NO_ROW and own in self._relevance.excluded_rows(query):
            allowed = similarities.copy()
            allowed[own] = -np.inf
        num_shown = int(np.isfinite(allowed).sum())
        return order_nearest(allowed[None], min(depth, num_shown))[1][0] if num_shown else np.empty(0, dtype=np.int64)

    def build(self, query: int, first: IntArray, depth: int) -> Shortlist:
        """Join a query with its first images."""
        query_row, rows = self._task.query_rows[query], self._task.gallery_rows[first]

        def find_parts(kind: PartKind) -> tuple[ByteArray, ByteArray]:
            """Return the parts of the query and of its first images."""
            known, parts = self.compute_parts(kind, depth)
            return parts[np.searchsorted(known, query_row)], parts[np.searchsorted(known, rows)]

        return Shortlist(
            query=np.asarray(self._vectors[query_row]), vectors=np.asarray(self._vectors[rows]), find_parts=find_parts
        )

    def compute_parts(self, kind: PartKind, depth: int) -> tuple[IntArray, ByteArray]:
        """Compute the parts of the queries and of what they are first shown: of a large gallery that is little.

        Returns:
            Rows of ``task.records``, rising, and their parts ``(R, P, D)``; zeros for one that cannot be read.

        Raises:
            DataError: Too many of them cannot be read.
        """
        if (kind, depth) not in self._found:
            rows = self._list_shown(depth)
            records = [self._task.records[row] for row in rows]
            parts = compute_parts(self._encoder, records, kind, show_progress=self._show_progress)
            lost = [record.image_id for record, one in zip(records, parts, strict=True) if one is None]
            _tell_lost(lost, len(records), kind, self._max_bad_fraction)
            self._found[kind, depth] = rows, stack_parts(parts)
        return self._found[kind, depth]

    def time_query_parts(self, kind: PartKind) -> float:
        """Compute the seconds that it takes to read a query and compute its parts.

        Returns:
            The median over ``NUM_TIMED`` queries, spread over all; 0 where none of them can be read.
        """
        if kind not in self._part_seconds:
            rows = self._task.query_rows
            seconds = []
            for row in rows[:: max(1, len(rows) // NUM_TIMED)][:NUM_TIMED]:
                started = time.perf_counter()
                (parts,) = compute_parts(self._encoder, [self._task.records[row]], kind)
                if parts is not None:
                    seconds.append(time.perf_counter() - started)
            self._part_seconds[kind] = float(np.median(seconds)) if seconds else 0.0
        return self._part_seconds[kind]

    def _list_shown(self, depth: int) -> IntArray:
        is_shown = np.zeros(len(self._task.records), dtype=bool)
        is_shown[self._task.query_rows] = True
        for queries, block in self.list_blocks():
            for query, similarities in zip(range(queries.start, queries.stop), block, strict=True):
                is_shown[self._task.gallery_rows[self.find_first(query, similarities, depth)]] = True
        return np.flatnonzero(is_shown)


def _tell_lost(lost: Sequence[str], num_images: int, kind: PartKind, max_bad_fraction: float) -> None:
    """Say how many pictures have no parts, because they cannot be read.

    Raises:
        DataError: More than the share that is allowed.
    """
    if not lost:
        return
    which = f"{len(lost):,} of {num_images:,} images whose {kind} are compared cannot be read"
    if len(lost) > max_bad_fraction * num_images:
        raise DataError(
            f"{which}, more than the share of {max_bad_fraction:g} that is allowed (max_bad_fraction), the first of "
            f"them {quote_name(lost[0])}. Put them back where they were, or measure without re-ranking by parts."
        )
    print_message(f"{which}; they keep the place that their embeddings give them.")


def measure_rerankings(
    measurement: Measurement,
    encoder: Encoder,
    rerankers: Sequence[Reranker],
    *,
    max_bad_fraction: float = 0.05,
    show_progress: bool = False,
) -> tuple[RerankingRow, ...]:
    """Measure ways of re-ranking on what an encoder was measured on.

    Args:
        measurement: The order that the embeddings give.
        encoder: The encoder, which computes parts of pictures where they are compared.
        rerankers: Any number.
        max_bad_fraction: Largest share of the images that may be unreadable where their parts are compared.
        show_progress: Report progress on standard error.

    Returns:
        The row of the embeddings' order, then one for each; a way that compares patches is left out where the encoder
        has none, and a message says so.
    """
    ks = measurement.dataset.ks
    shortlists = _Shortlists(measurement, encoder, max_bad_fraction=max_bad_fraction, show_progress=show_progress)
    metrics = measurement.scores.means(ks)
    rows = [RerankingRow(reranking=NO_RERANKING, metrics=metrics, gain=None, milliseconds=0.0, bytes_per_image=0)]
    if any(one.parts == "patches" for one in rerankers) and not shortlists.has_patches:
        print_message(f"{encoder.name} puts out no tokens of patches; what compares them is left out.")
        rerankers = [one for one in rerankers if one.parts != "patches"]
    for reranker in rerankers:
        size, part_seconds = 0, 0.0
        if reranker.parts is not None:  # they are computed here, so that the time of the ordering leaves them out
            size = shortlists.compute_parts(reranker.parts, reranker.depth)[1][0].nbytes
            part_seconds = shortlists.time_query_parts(reranker.parts)
        scores, seconds = _rerank(measurement, reranker, shortlists, show_progress=show_progress)
        rows.append(
            RerankingRow(
                reranking=reranker.name,
                metrics=scores.means(ks),
                gain=_compute_gain(measurement.scores, scores, len(rerankers)),
                milliseconds=1000 * (part_seconds + seconds / len(measurement.task.query_rows)),
                bytes_per_image=size,
            )
        )
    return tuple(rows)


def _rerank(
    measurement: Measurement, reranker: Reranker, shortlists: _Shortlists, *, show_progress: bool
) -> tuple[Scores, float]:
    """Score the order of a re-ranking; return the scores, and the seconds that ordering took."""
    task, spent = measurement.task, [0.0]

    def reorder() -> Iterator[tuple[slice, FloatArray]]:
        """Yield the similarities, those of the first images replaced by numbers in the new order."""
        for rows, block in shortlists.list_blocks():
            for query, similarities in zip(range(rows.start, rows.stop), block, strict=True):
                first = shortlists.find_first(query, similarities, reranker.depth)
                shortlist = shortlists.build(query, first, reranker.depth)
                started = time.perf_counter()
                scores = reranker.rank(shortlist)
                spent[0] += time.perf_counter() - started
                # Above every cosine, equal scores alike: ties count against the query.
                similarities[first] = 2 + np.unique(scores, return_inverse=True)[1]
            yield rows, block

    tracked = track(reorder(), f"re-ranking by {reranker.name}", is_shown=show_progress)
    if task.listed is not None:
        return score_listed(tracked, task.listed), spent[0]
    relevance = task.relevance
    assert isinstance(relevance, Relevance), "without a list the labels decide"
    return score_rows((row for _, block in tracked for row in block), relevance), spent[0]


def _compute_gain(before: Scores, after: Scores, num_tried: int) -> tuple[float, float]:
    """Compute the interval of the gain in the average precision that holds for all ``num_tried`` together."""
    average = before.headlines[1]
    differences = bootstrap_means(after, (1,))[average] - bootstrap_means(before, (1,))[average]
    tail = CHANCE / 2 / max(1, num_tried)  # Bonferroni: the best of many is good by chance more easily
    low, high = np.quantile(differences, (tail, 1 - tail))
    return float(low), float(high)


@dataclass(frozen=True, kw_only=True)
class ChoiceData:
    """The images that a re-ranking is chosen with; none of them is of a test class.

    Attributes:
        held_out: Data set whose test split measures: held-out training classes.
        fit: Training images of the other classes, which a head may learn from.
        note: Sentence about how they were divided.
    """

    held_out: Dataset
    fit: tuple[ImageRecord, ...]
    note: str

    @property
    def num_judges(self) -> int:
        """Number of held-out classes that ask."""
        return len({record.label for record in self.held_out.records if record.is_query})


def divide_for_choice(dataset: Dataset) -> ChoiceData | None:
    """Divide the training images of a data set as a training does (``data/holdout.py``).

    Where the data set has pictures that only can be found (the catalogue of ``phone_to_catalogue``), those of training
    classes are what the held-out images look for, so that the choice is made for the task that is measured. If they
    are of too few classes to tell a gain from chance, the images look for each other. Of many images ``MAX_CHOOSING``
    ask and as many can be found.

    Returns:
        The images; None where too few classes are there to hold some out.
    """
    split = split_for_training(dataset, is_holdout=True)
    if split.held_out is None:
        return None
    shown = _list_shown(dataset)
    asking = limit_images([record for record in split.held_out.records if record.is_query], MAX_CHOOSING)
    labels = {record.label for record in asking}
    others = limit_images([record for record in split.held_out.records if not record.is_query], MAX_CHOOSING)
    wanted = limit_images([record for record in shown if record.label in labels], MAX_CHOOSING)
    if len({record.label for record in wanted}) >= NUM_JUDGES_MIN:
        wrong = limit_images([record for record in shown if record.label not in labels], MAX_CHOOSING - len(wanted))
        kept = {record.image_id for record in (*wanted, *wrong)}
        asking = [dataclasses.replace(record, is_gallery=False) for record in asking]
        others = [record for record in shown if record.image_id in kept]
    fit = (*split.fit, *(record for record in shown if record.label not in labels))
    held_out = dataclasses.replace(split.held_out, records=(*asking, *others))
    return ChoiceData(held_out=held_out, fit=fit, note=split.note)


def _list_shown(dataset: Dataset) -> tuple[ImageRecord, ...]:
    """List the pictures of training classes that can only be found; of none of them does a test query ask."""
    test = dataset.split("test")
    asked = {record.label for record in test if record.is_query}
    trained = {record.label for record in dataset.split("train")}
    return tuple(record for record in test if not record.is_query and record.label in trained - asked)


def choose_reranking(
    encoder: Encoder, dataset: Dataset, *, name: str, settings: EmbedSettings, learnt: Reranker | None = None
) -> RerankingReport:
    """Measure every re-ranking on held-out training classes, and keep the best that gains beyond chance, or none.

    Args:
        encoder: The encoder.
        dataset: Its training split chooses; its test split is not looked at.
        name: Name of the encoder in the report.
        settings: How images are embedded.
        learnt: What ``learn_reranker`` learned on the images that ``divide_for_choice`` leaves to it; None: it is
            learned here.

    Returns:
        The report; without rows where fewer than ``NUM_JUDGES_MIN`` classes are held out.

    Raises:
        DataError: Too many unreadable images.
    """
    data = divide_for_choice(dataset)
    num_judges = 0 if data is None else data.num_judges
    if data is None or num_judges < NUM_JUDGES_MIN:
        return _report(name, encoder, dataset, 0, (), None, _explain_too_few(dataset, num_judges))
    print_message(f"choosing a re-ranking on held-out training classes; {data.note}")
    embeddings = _embed(encoder, data.held_out.records, settings)
    measurement = measure(data.held_out, embeddings, name, has_intervals=False)
    rerankers = {**RERANKERS}
    learnt = learnt or learn_reranker(encoder, data.fit, settings)
    if learnt is not None:
        rerankers[LEARNT] = learnt
    rows = measure_rerankings(
        measurement,
        encoder,
        list(rerankers.values()),
        max_bad_fraction=settings.max_bad_fraction,
        show_progress=settings.show_progress,
    )
    scores = measurement.scores
    num_judges = len(np.unique(scores.groups[scores.is_scored]))  # fewer, where images cannot be read
    best = choose_row(rows, scores.headlines) if num_judges >= NUM_JUDGES_MIN else None
    chosen = None if best is None else rerankers[best.reranking]
    is_enough = num_judges >= NUM_JUDGES_MIN
    reason = _explain(best, rows, scores.headlines[1]) if is_enough else _explain_too_few(dataset, num_judges)
    return _report(name, encoder, data.held_out, scores.num_scored, rows, chosen, reason)


def _explain_too_few(dataset: Dataset, num_judges: int) -> str:
    if num_judges == 0:
        why = (
            f"{quote_name(dataset.name)} has too few training classes to hold some out, and a re-ranking that is not "
            "measured may be worse than none"
        )
    else:
        classes = "class of" if num_judges == 1 else "classes of"
        why = (
            f"{num_judges} training {classes} {quote_name(dataset.name)} can be held out, and fewer than "
            f"{NUM_JUDGES_MIN} cannot tell a gain from chance"
        )
    return f"kept none: {why}; give a source of {NUM_CLASSES_MIN} training classes or more with two images or more each"


def learn_reranker(encoder: Encoder, records: Sequence[ImageRecord], settings: EmbedSettings) -> Reranker | None:
    """Learn a head on labeled pictures, where that is possible; else say why not.

    Args:
        encoder: Its patches are compared.
        records: Training images; of many ``MAX_CHOOSING`` count.
        settings: How images are embedded.

    Returns:
        The re-ranking; None without torch, without patches, or without pairs.
    """
    records = limit_images(records, MAX_CHOOSING)
    why = _find_obstacle(encoder, records)
    if why is not None:
        print_message(f"the re-ranking {LEARNT} is left out: {why}.")
        return None
    from vitrieve.rerank.learning import learn_head

    embeddings = _embed(encoder, records, settings)
    if not has_pairs(embeddings.records):
        print_message(f"the re-ranking {LEARNT} is left out: of no two training classes a pair of images can be read.")
        return None
    parts = stack_parts(compute_parts(encoder, embeddings.records, "patches", show_progress=settings.show_progress))
    labels = np.array([record.label for record in embeddings.records], dtype=np.int64)
    return build_learnt(learn_head(parts, embeddings.vectors, labels, show_progress=settings.show_progress))


def learn_for_choice(encoder: Encoder, dataset: Dataset, settings: EmbedSettings) -> Reranker | None:
    """Learn a head on the training images that ``choose_reranking`` learns from; of too few classes on all of them."""
    data = divide_for_choice(dataset)
    return learn_reranker(encoder, data.fit if data else dataset.split("train"), settings)


def _find_obstacle(encoder: Encoder, records: Sequence[ImageRecord]) -> str | None:
    if not is_torch_installed():
        return "torch is not installed (vitrieve[train])"
    if not has_patches(encoder):
        return "the encoder puts out no tokens of patches"
    return None if has_pairs(records) else "there are no two training classes with pairs"


def _embed(encoder: Encoder, records: Sequence[ImageRecord], settings: EmbedSettings) -> Embeddings:
    return embed_images(
        encoder,
        records,
        batch_size=settings.batch_size,
        num_threads=settings.num_threads,
        max_bad_fraction=settings.max_bad_fraction,
        show_progress=settings.show_progress,
    )


def choose_row(rows: Sequence[RerankingRow], headlines: tuple[str, str]) -> RerankingRow | None:
    """Choose the row with the best average precision of those that gain beyond chance and cost no first rank.

    Args:
        rows: The order of the embeddings first.
        headlines: Names of the metric of the first rank and of the average precision.

    Returns:
        The best; of equal ones the first; None where no row qualifies.
    """
    first, average = headlines
    better = [row for row in rows[1:] if row.gain and row.gain[0] > 0 and row.metrics[first] >= rows[0].metrics[first]]
    return max(better, key=lambda row: row.metrics[average], default=None)


def _explain(best: RerankingRow | None, rows: Sequence[RerankingRow], average: str) -> str:
    if best is None:
        return f"kept none: of {len(rows) - 1} re-rankings none is better beyond chance on the held-out classes"
    assert best.gain is not None
    low, high = (100 * end for end in best.gain)
    return (
        f"kept {best.reranking}: {low:+.1f} to {high:+.1f} points of {short_name(average)} on the held-out classes, "
        f"for {best.milliseconds:.1f} ms a query and {best.bytes_per_image:,} bytes an image"
    )


def _report(
    name: str,
    encoder: Encoder,
    dataset: Dataset,
    num_queries: int,
    rows: tuple[RerankingRow, ...],
    chosen: Reranker | None,
    reason: str,
) -> RerankingReport:
    return RerankingReport(
        encoder=name,
        fingerprint=encoder.fingerprint,
        dataset=dataset.name,
        protocol=dataset.protocol,
        num_queries=num_queries,
        rows=rows,
        chosen=chosen,
        reason=reason,
        chooses=True,
    )


def report_rerankings(
    measurement: Measurement,
    encoder: Encoder,
    names: Sequence[str],
    settings: EmbedSettings,
    *,
    learnt: Reranker | None = None,
) -> list[RerankingReport]:
    """Measure the re-rankings that were asked for, and with ``auto`` choose one first.

    Args:
        measurement: What the encoder was measured on.
        encoder: The encoder.
        names: ``auto``, or names of re-rankings.
        settings: How images are embedded.
        learnt: As for ``choose_reranking``.

    Returns:
        With ``auto`` the report of the choice, then one of the test split where something was chosen; else the latter.
    """
    name, reports, rerankers = measurement.result.encoder, [], [RERANKERS[one] for one in names if one in RERANKERS]
    if LEARNT in names:
        learnt = learnt or learn_for_choice(encoder, measurement.dataset, settings)
        rerankers += [learnt] if learnt is not None else []
    if AUTO in names:
        choice = choose_reranking(encoder, measurement.dataset, name=name, settings=settings, learnt=learnt)
        reports.append(choice)
        rerankers = [choice.chosen] if choice.chosen is not None else []
    if rerankers:
        rows = measure_rerankings(
            measurement,
            encoder,
            rerankers,
            max_bad_fraction=settings.max_bad_fraction,
            show_progress=settings.show_progress,
        )
        tested = _report(
            name, encoder, measurement.dataset, measurement.scores.num_scored, rows, None, "measured on the test split"
        )
        reports.append(dataclasses.replace(tested, chooses=False))
    return reports
