"""The images of an answer in their order: fetched as far as needed, the first of them ordered again, and grouped."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import chain

import numpy as np

from vitrieve.data.records import ImageRecord
from vitrieve.errors import DataError
from vitrieve.index.filter import FilterLike
from vitrieve.index.store import Hit, VectorStore
from vitrieve.search.query import Query
from vitrieve.search.request import SearchRequest
from vitrieve.similarity import FloatArray

MAX_DEPTH = 16_384
"""Nearest images that a search can reach: Milvus returns at most this many, and no user pages deeper."""
GROWTH = 4
"""Every further fetch is this many times as deep, so that all of them cost a third more than the last."""
GROUP_DEPTH = 4
"""Images fetched at first for each group asked for."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ranking:
    """The images that answer a query, in order.

    Attributes:
        nearest_score: Highest cosine similarity of all images that may be found; None when there is none.
        levels: The images, nearest first or in the order of a re-ranking, in the lists in which they are fetched.
    """

    nearest_score: float | None
    levels: Iterator[list[Hit]]


Reorder = Callable[[Sequence[Hit]], list[Hit]]
"""Puts the first images found into another order."""


def rank_images(
    store: VectorStore, query: Query, request: SearchRequest, *, reorder: Reorder | None = None, num_first: int = 0
) -> Ranking:
    """Order the images of a store for a query.

    The order is the same for every page of a request, also where a store is approximate and finds other images when
    more are asked for: what a deeper fetch finds in addition stands behind all that was found before.

    Args:
        store: The index.
        query: What is searched for.
        request: How.
        reorder: Puts the first images into another order; None: they stay as they are.
        num_first: Images that ``reorder`` is given; the first list has no fewer, where there are as many.

    Returns:
        At most ``MAX_DEPTH`` images, each once, without the query's own; every score is the cosine similarity to
        the query as it was asked.
    """
    levels = fetch_levels(store, query, query.vector, choose_depth(request, num_first), request.filter)
    first = next(levels, [])
    nearest_score = first[0].score if first else None
    if reorder is not None and first:
        first = reorder(first[:num_first]) + first[num_first:]
    return Ranking(nearest_score=nearest_score, levels=chain([first], levels))


def choose_depth(request: SearchRequest, num_first: int) -> int:
    """Choose how many images are fetched first: a function of all but the offset, so that pages agree."""
    is_grouped = request.group_by is not None or request.is_near_duplicate_grouped
    depth = (request.k + 1) * (GROUP_DEPTH if is_grouped else 1)
    return min(max(depth, num_first), MAX_DEPTH)


def fetch_levels(
    store: VectorStore, query: Query, vector: FloatArray, num_first: int, filter: FilterLike
) -> Iterator[list[Hit]]:
    """Fetch the nearest images, then deeper ones; yield what each fetch finds in addition, nearest first."""
    seen = set(query.own_ids)
    depth = min(num_first + len(seen), MAX_DEPTH)
    while True:
        (hits,) = store.search(vector[None], depth, filter)
        new = [hit for hit in hits if hit.record.image_id not in seen]
        seen.update(hit.record.image_id for hit in new)
        yield new
        if len(hits) < depth or depth == MAX_DEPTH:
            return
        depth = min(GROWTH * depth, MAX_DEPTH)


def read_vectors(store: VectorStore, hits: Sequence[Hit]) -> tuple[list[Hit], np.ndarray]:
    """Return those of some images found that are still there, and their full vectors ``(H, E)``."""
    vectors, records = read_present(store, [hit.record.image_id for hit in hits])
    there = {record.image_id for record in records}
    return [hit for hit in hits if hit.record.image_id in there], vectors


def read_present(store: VectorStore, image_ids: Sequence[str]) -> tuple[np.ndarray, list[ImageRecord]]:
    """Read those of some images that are still there: a writer may remove one after it was found."""
    with suppress(DataError):
        if image_ids:
            return store.get(image_ids)
    if len(image_ids) <= 1:
        return np.empty((0, store.info.embedding_dim), np.float32), []
    middle = len(image_ids) // 2  # one that is gone is looked for in ever smaller halves
    (one, these), (other, those) = (read_present(store, half) for half in (image_ids[:middle], image_ids[middle:]))
    return np.concatenate([one, other]), [*these, *those]


NEAR_DUPLICATE_SIMILARITY = 0.99
"""Images at least as similar as this are nearly equal. Measured with dinov2-vits14 at 112 px on 60 photographs
(Grocery, benchmarks/search_settings.py): a picture saved again as JPEG of quality 20 or 50, at half the size, or 15 %
brighter is above it in 99 of 100 cases; one cut by 2 % at every edge in half of them; of different photographs, one in
200 has another that near. An encoder fine-tuned to draw a class together calls more images equal."""

MAX_GROUP_IMAGES = 100
"""Images kept in a group, the first included: a class of 30,000 would fill a page that nobody looks through. A filter
shows them all."""


def group_hits(store: VectorStore, levels: Iterable[list[Hit]], request: SearchRequest) -> list[list[Hit]]:
    """Sort images into groups, until there is one more than the request's page needs.

    An image joins the group that has its value of ``group_by``; where near-duplicates are grouped, otherwise the group
    whose first image it nearly equals; or it opens a group. An image without a value in the column opens one, too. A
    group's first image depends on nearer images only, so that every page finds the same groups.

    Returns:
        Groups in the order of their first images; in each, the images met until then, in order, at most
        ``MAX_GROUP_IMAGES``. Without grouping, every image is a group.
    """
    groups = _Groups(request.group_by, request.offset + request.k + 1, store.info.embedding_dim)
    for hits in levels:
        groups.add(*(read_vectors(store, hits) if request.is_near_duplicate_grouped else (hits, None)))
        if groups.is_enough:
            break
    return groups.found


class _Groups:
    """The results so far, each with the images that are shown below it."""

    def __init__(self, column: str | None, num_wanted: int, embedding_dim: int) -> None:
        self.found: list[list[Hit]] = []
        self._column = column
        self._num_wanted = num_wanted
        self._group_rows: dict[str, int] = {}  # value of the column -> row in found
        self._leaders = np.empty((num_wanted, embedding_dim), np.float32)  # vectors of the groups' first images

    @property
    def is_enough(self) -> bool:
        """Say whether no further group is wanted."""
        return len(self.found) == self._num_wanted

    def add(self, hits: Sequence[Hit], vectors: np.ndarray | None) -> None:
        """Put hits into their groups, the best first; ``vectors`` ``(N, E)`` are theirs where near-duplicates group."""
        for row, hit in enumerate(hits):
            # An empty cell says nothing, as a missing one.
            value = None if self._column is None else hit.record.metadata.get(self._column) or None
            vector = None if vectors is None else vectors[row]
            group = self._find(value, vector)
            if group is None:
                if self.is_enough:
                    continue
                group = len(self.found)
                self.found.append([])
                if vector is not None:
                    self._leaders[group] = vector
            if len(self.found[group]) < MAX_GROUP_IMAGES:
                self.found[group].append(hit)
            if value is not None:
                self._group_rows.setdefault(value, group)

    def _find(self, value: str | None, vector: np.ndarray | None) -> int | None:
        if value is not None and value in self._group_rows:
            return self._group_rows[value]
        if vector is None or not self.found:
            return None
        similarities = self._leaders[: len(self.found)] @ vector  # (groups,)
        nearest = int(np.argmax(similarities))
        return nearest if similarities[nearest] >= NEAR_DUPLICATE_SIMILARITY else None
