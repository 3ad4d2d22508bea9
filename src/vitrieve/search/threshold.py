"""From which score on a result is the wanted thing at all. ``vitrieve calibrate`` calls ``calibrate``.

What is wanted may not be in the collection, and yet some image is always the nearest. The threshold comes from images
whose answer is known: each is searched for as a query, itself left out.

- The best similarity to any other image is what a query gets whose thing is in the collection ("known").
- With classes, the best similarity to an image of another class is what it would get, had its class been left out of
  the collection ("unknown"). Rejecting a known query is a false reject, accepting an unknown one a false accept.
- Without classes only false rejects can be counted: such a threshold turns away what is less like the collection than
  its own images are like each other, not a further thing of the same kind.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator, Sequence
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vitrieve.choices import Device
from vitrieve.data.records import Dataset, read_columns
from vitrieve.embed.collection import embed_images
from vitrieve.embed.embeddings import Embeddings
from vitrieve.errors import ArtifactError, ConfigError, DataError
from vitrieve.index.filter import Condition, Exact, require_column
from vitrieve.index.open import load_index_encoder, open_index, require_encoder
from vitrieve.index.store import Hit, VectorStore
from vitrieve.model.artifact import require_made_by
from vitrieve.progress import print_message
from vitrieve.runtime.encoder import Encoder
from vitrieve.similarity import FloatArray, similarity_chunks, top_k
from vitrieve.writing import write_text_durably

THRESHOLD_NAME = "threshold.json"
MAX_QUERIES = 2_000
"""Images searched for, drawn at random from a larger collection: rates are then right to a percentage point."""
MIN_QUERIES = 20
"""Fewer say nothing about a rate of 5 %."""
DEFAULT_FALSE_REJECT_RATE = 0.05
"""Where no classes are known, and so no balance can be struck."""
MAX_COMPARED = 20_000
"""Images of a labeled collection beside the index that are searched for: comparing one is cheaper than a search."""
NUM_NEAREST = 32
"""Images found for each query; where all are of its class, the nearest of another class is searched for by a filter."""
COUNTED_ROWS = 65_536
"""Labels that are compared at a time."""
BLOCK_QUERIES = 64


@dataclasses.dataclass(frozen=True, kw_only=True)
class Threshold:
    """The score from which the nearest image counts as a match, and how it was found.

    Attributes:
        score: Cosine similarity; a nearest image at or above it is a match.
        fingerprint: Fingerprint of the encoder that made the similarities.
        method: Description of the method, in a sentence.
        false_reject_rate: Share of the known queries that it rejects; None: not counted.
        false_accept_rate: Share of the unknown queries that it accepts; None: not counted, for want of classes.
        num_known: Known queries looked at.
        num_unknown: Unknown queries looked at.
    """

    score: float
    fingerprint: str
    method: str
    false_reject_rate: float | None = None
    false_accept_rate: float | None = None
    num_known: int = 0
    num_unknown: int = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class NearestScores:
    """Best similarities of queries with a known answer.

    Attributes:
        known: ``(n,)`` similarities to any other image, of queries whose class has another image;
            without classes, of all.
        unknown: ``(m,)`` similarities to an image of another class; empty without classes.
    """

    known: FloatArray
    unknown: FloatArray


def calibrate_index(
    store: VectorStore,
    *,
    column: str | None,
    false_accept_rate: float | None = None,
    false_reject_rate: float | None = None,
    seed: int = 0,
) -> Threshold:
    """Calibrate a threshold on an index's own images.

    Args:
        store: The index.
        column: Metadata column that says what an image shows; None: nothing does.
        false_accept_rate: Share of unknown queries that may be accepted, in (0, 1).
        false_reject_rate: Share of known queries that may be rejected, in (0, 1). With neither rate the two errors are
            balanced, or without classes ``DEFAULT_FALSE_REJECT_RATE`` holds.
        seed: Which images are drawn from more than ``MAX_QUERIES``.

    Raises:
        ConfigError: Both rates, a rate out of range, or a rate of false accepts without classes.
        DataError: Too few images.
    """
    image_ids = _draw_names(store, seed)
    known: list[float] = []
    unknown: list[float] = []
    for start in range(0, len(image_ids), BLOCK_QUERIES):
        for best, best_other in _search_without_self(store, image_ids[start : start + BLOCK_QUERIES], column):
            known += [] if best is None else [best]
            unknown += [] if best_other is None else [best_other]
    scores = NearestScores(known=np.array(known, np.float32), unknown=np.array(unknown, np.float32))
    return choose_threshold(
        scores,
        fingerprint=store.info.fingerprint,
        where=f"the index's own images{'' if column is None else f', class: {column}'}",
        false_accept_rate=false_accept_rate,
        false_reject_rate=false_reject_rate,
    )


def calibrate_embeddings(
    embeddings: Embeddings,
    *,
    name: str,
    false_accept_rate: float | None = None,
    false_reject_rate: float | None = None,
    num_queries: int = MAX_COMPARED,
) -> Threshold:
    """Calibrate a threshold on a labeled collection beside the index, by the labels of its records.

    Its images search among themselves. It should be about as large as the index: in a larger collection the nearest
    image is nearer.

    Args:
        embeddings: Embeddings of the labeled collection, made by the encoder of the index.
        name: Name of the collection.
        false_accept_rate: As in ``calibrate_index``.
        false_reject_rate: As in ``calibrate_index``.
        num_queries: Number of images that are searched for, drawn at random where there are more.

    Raises:
        ConfigError: As in ``calibrate_index``.
        DataError: Too few images.
    """
    labels = read_columns(embeddings.records).labels
    scores = measure_nearest(embeddings.vectors, labels, num_queries=num_queries)
    has_classes = len(labels) > 0 and labels.min() < labels.max()
    return choose_threshold(
        scores,
        fingerprint=embeddings.fingerprint,
        where=f"{name}, classes: its labels" if has_classes else f"{name}, which have no classes",
        false_accept_rate=false_accept_rate,
        false_reject_rate=false_reject_rate,
    )


def measure_nearest(
    vectors: npt.ArrayLike, labels: npt.NDArray[np.int64], *, num_queries: int = MAX_COMPARED, seed: int = 0
) -> NearestScores:
    """Search for images among the others, by row; with one label in all, nothing is unknown.

    Args:
        vectors: ``(N, E)`` embeddings, also a memory map.
        labels: ``(N,)``.
        num_queries: Number of images that are searched for, drawn at random where there are more.
        seed: Seed of the generator of the draw.

    >>> measure_nearest([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]], np.array([7, 7, 8])).unknown.round(3).tolist()
    [0.0, 0.800000011920929, 0.800000011920929]
    """
    rows = np.asarray(vectors, dtype=np.float32)
    chosen = np.arange(len(rows))
    if len(chosen) > num_queries:
        chosen = np.sort(np.random.default_rng(seed).choice(chosen, num_queries, replace=False))
    if not len(chosen):
        return NearestScores(known=np.empty(0, np.float32), unknown=np.empty(0, np.float32))
    queries = rows if len(chosen) == len(rows) else rows[chosen]
    similarities, found = top_k(queries, rows, NUM_NEAREST)
    is_other = found != chosen[:, None]  # by row: duplicates stay
    is_known = _count_alike(labels, labels[chosen]) > 1
    known = np.where(is_other, similarities, -np.inf).max(axis=1)
    is_another = labels[found] != labels[chosen][:, None]
    unknown = np.where(is_another, similarities, -np.inf).max(axis=1)
    left = np.flatnonzero(~is_another.any(axis=1)) if labels.min() < labels.max() else chosen[:0]
    for chunk, block in similarity_chunks(queries[left], rows) if len(left) else ():
        places = left[chunk]
        block[labels[chosen[places]][:, None] == labels[None]] = -np.inf
        unknown[places] = block.max(axis=1)
    return NearestScores(known=known[is_known], unknown=unknown[np.isfinite(unknown)])


def _count_alike(labels: npt.NDArray[np.int64], wanted: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Count the images that have each wanted label, a block of them at a time."""
    values, places = np.unique(wanted, return_inverse=True)
    counts = np.zeros(len(values), dtype=np.int64)
    for start in range(0, len(labels), COUNTED_ROWS):
        block = labels[start : start + COUNTED_ROWS]
        found = np.minimum(np.searchsorted(values, block), len(values) - 1)
        counts += np.bincount(found[values[found] == block], minlength=len(values))
    return counts[places]


def choose_threshold(
    scores: NearestScores,
    *,
    fingerprint: str,
    where: str,
    false_accept_rate: float | None = None,
    false_reject_rate: float | None = None,
) -> Threshold:
    """Choose the score that keeps a stated rate, or balances the two errors.

    Args:
        scores: Best similarities of queries with a known answer.
        fingerprint: Fingerprint of their encoder.
        where: Images on which they were measured.
        false_accept_rate: The lowest score that accepts at most this share of the unknown.
        false_reject_rate: The highest score that rejects at most this share of the known.

    Raises:
        ConfigError: Both rates, a rate out of range, or no unknown queries for a rate of false accepts.
        DataError: Fewer than ``MIN_QUERIES`` known queries, which only a rate of false accepts does without.
    """
    rates = [rate for rate in (false_accept_rate, false_reject_rate) if rate is not None]
    if len(rates) > 1 or not all(0 < rate < 1 for rate in rates):
        raise ConfigError("give one rate between 0 and 1: of false accepts, or of false rejects.")
    has_classes = len(scores.unknown) >= MIN_QUERIES
    if false_accept_rate is not None and not has_classes:
        raise ConfigError(
            "a rate of false accepts needs classes, at least two, with images to search for; name the metadata column "
            "that says what an image shows, or a labeled collection."
        )
    if false_accept_rate is None and len(scores.known) < MIN_QUERIES:
        raise DataError(
            f"{len(scores.known)} images can be searched for among others of their class; a threshold needs "
            f"{MIN_QUERIES}, unless a rate of false accepts is given."
        )
    if not rates and not has_classes:
        false_reject_rate = DEFAULT_FALSE_REJECT_RATE
    if false_accept_rate is not None:
        score, rule = _accept_at_most(scores.unknown, false_accept_rate), f"false accepts at most {false_accept_rate:g}"
    elif false_reject_rate is not None:
        score, rule = _reject_at_most(scores.known, false_reject_rate), f"false rejects at most {false_reject_rate:g}"
    else:
        score, rule = _balance(scores), "false accepts and false rejects balanced"
    return Threshold(
        score=score,
        fingerprint=fingerprint,
        method=f"{'leave-class-out' if has_classes else 'leave-image-out'} on {where}; {rule}",
        false_reject_rate=float(np.mean(scores.known < score)) if len(scores.known) else None,
        false_accept_rate=float(np.mean(scores.unknown >= score)) if has_classes else None,
        num_known=len(scores.known),
        num_unknown=len(scores.unknown),
    )


def save_threshold(threshold: Threshold, index_folder: Path | str) -> Path:
    """Write a threshold beside an index, and return its file; a crash leaves the old one or the new one."""
    path = Path(index_folder) / THRESHOLD_NAME
    write_text_durably(path, json.dumps(dataclasses.asdict(threshold), indent=2, allow_nan=False) + "\n")
    return path


def load_threshold(index_folder: Path | str) -> Threshold | None:
    """Read the threshold of an index; None when it has none.

    Raises:
        ArtifactError: The file is damaged.
    """
    path = Path(index_folder) / THRESHOLD_NAME
    if not path.is_file():
        return None
    try:
        values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        threshold = Threshold(**values)
        if not math.isfinite(threshold.score):
            raise ValueError(f"the score is {threshold.score}")
    except (OSError, ValueError, TypeError) as error:
        raise ArtifactError(f"{path} is damaged ({error}); run vitrieve calibrate again.") from None
    return threshold


def _draw_names(store: VectorStore, seed: int) -> list[str]:
    """Draw the names of ``MAX_QUERIES`` images, or take all of fewer; only those are held."""
    num_images = store.count()
    if num_images <= MAX_QUERIES:
        return list(store.image_ids())
    drawn = np.sort(np.random.default_rng(seed).choice(num_images, MAX_QUERIES, replace=False))
    names, passed = store.image_ids(), np.diff(drawn, prepend=-1) - 1
    # A writer may remove images meanwhile: then the last of those drawn are not there.
    return [image_id for step in passed.tolist() for image_id in islice(names, step, step + 1)]


def _accept_at_most(unknown: FloatArray, rate: float) -> float:
    highest_rejected = np.sort(unknown)[::-1][math.floor(rate * len(unknown))]
    return float(np.nextafter(highest_rejected, np.float32(2)))


def _reject_at_most(known: FloatArray, rate: float) -> float:
    return float(np.sort(known)[math.floor(rate * len(known))])


def _balance(scores: NearestScores) -> float:
    """Find the score at which the larger of the two rates is smallest; the lowest of several."""
    candidates = np.unique(np.concatenate([scores.known, scores.unknown]))
    rejected = np.searchsorted(np.sort(scores.known), candidates) / len(scores.known)
    accepted = 1 - np.searchsorted(np.sort(scores.unknown), candidates) / len(scores.unknown)
    return float(candidates[np.argmin(np.maximum(rejected, accepted))])


def _search_without_self(
    store: VectorStore, image_ids: Sequence[str], column: str | None
) -> Iterator[tuple[float | None, float | None]]:
    """Yield for each image its best score as a known and as an unknown query; None where it cannot be one.

    An image without a class is neither, where there are classes. One that is alone in its class is only unknown.
    """
    vectors, records = store.get(image_ids)
    for vector, record, hits in zip(vectors, records, store.search(vectors, NUM_NEAREST), strict=True):
        others = [hit for hit in hits if hit.record.image_id != record.image_id]
        if column is None:
            yield (others[0].score if others else None), None
        elif (value := record.metadata.get(column)) is not None and _names_class(value):
            is_known = _is_class_of_several(store, others, column, value)
            yield (others[0].score if is_known else None), _find_unknown(store, vector, others, column, value)


def _is_class_of_several(store: VectorStore, others: Sequence[Hit], column: str, value: str) -> bool:
    if any(hit.record.metadata.get(column) == value for hit in others):
        return True
    return store.count((Condition(column=column, operator="=", values=(Exact(value),)),)) > 1


def _find_unknown(
    store: VectorStore, vector: FloatArray, others: Sequence[Hit], column: str, value: str
) -> float | None:
    is_another_class = Condition(column=column, operator="!=", values=(Exact(value),))
    found, num_found = others, NUM_NEAREST
    while True:
        for hit in found:
            other = hit.record.metadata.get(column)
            if other is not None and other != value and _names_class(other):
                return hit.score
        if found is not others:
            if len(found) < num_found:
                return None
            num_found *= 4  # the nearest may all be without a class
        found = store.search(vector[None], num_found, (is_another_class,))[0]


def _names_class(value: str) -> bool:
    """Say whether a cell names a class: an empty one does not."""
    return value.strip() != ""


DEFAULT_COLUMN = "label"


def calibrate(
    index: str | Path,
    data: Dataset | Embeddings | str | Path | None = None,
    encoder: Encoder | str | Path | None = None,
    *,
    column: str | None = None,
    false_accept_rate: float | None = None,
    false_reject_rate: float | None = None,
    device: Device = "auto",
) -> Threshold:
    """Choose the score below which a search answers: probably not in this collection.

    ``save_threshold(calibrate(index), index)`` makes searches use it.

    Args:
        index: Folder of the index.
        data: Labeled images to calibrate on: a source, a data set, or embeddings by the index's encoder, of which
            ``MAX_COMPARED`` are searched for; None: the index's own.
        encoder: The index's encoder, or where it is now, needed where ``data`` are pictures; None: where it was when
            the index was made.
        column: Metadata column of the index that says what an image shows; None: label, where the index has it.
        false_accept_rate: Share of things not in the collection that may pass for a match; None, with no other rate:
            both errors are made alike.
        false_reject_rate: Share of things in the collection that may be turned away.
        device: Device of an encoder that is loaded here; ``auto``: on a GPU where torch sees one.

    Raises:
        InputError: The index or the data cannot be used, or have too few images.
    """
    from vitrieve.data.sources import read_source
    from vitrieve.evaluation.protocols import select_records

    check_column(column, has_data=data is not None)
    with closing(open_index(index)) as store:
        if data is None:
            return calibrate_index(
                store,
                column=_find_column(store, column),
                false_accept_rate=false_accept_rate,
                false_reject_rate=false_reject_rate,
            )
        if isinstance(data, Embeddings):
            return calibrate_embeddings(
                _require_comparable(store, data),
                name="embeddings",
                false_accept_rate=false_accept_rate,
                false_reject_rate=false_reject_rate,
            )
        if not isinstance(encoder, Encoder):
            encoder = load_index_encoder(store.info, encoder, device=device)
        require_encoder(store.info, encoder, advice="Calibrate with the index's own encoder.")
        dataset = data if isinstance(data, Dataset) else read_source(str(data))
        print_message(*dataset.notes)
        embeddings = embed_images(encoder, select_records(dataset), show_progress=True)
        return calibrate_embeddings(
            embeddings,
            name=dataset.name,
            false_accept_rate=false_accept_rate,
            false_reject_rate=false_reject_rate,
        )


def _require_comparable(store: VectorStore, embeddings: Embeddings) -> Embeddings:
    require_made_by(
        "the embeddings were",
        embeddings.fingerprint,
        "the index",
        store.info.fingerprint,
        advice="Embed the labeled images with the index's encoder.",
    )
    return embeddings


def check_column(column: str | None, *, has_data: bool) -> None:
    """Refuse a column beside data.

    Raises:
        ConfigError: Both are given.
    """
    if column is not None and has_data:
        raise ConfigError("--column belongs to the index's own images; the labels of --data say what they show.")


def _find_column(store: VectorStore, column: str | None) -> str | None:
    columns = store.columns()
    if column is None:
        return DEFAULT_COLUMN if DEFAULT_COLUMN in columns else None
    require_column(column, columns)
    return column
