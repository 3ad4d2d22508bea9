"""Images that stand behind a nearer one: of the same group, or nearly equal to it. Next file: ``searcher.py``."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from vitrieve.index.store import Hit, VectorStore
from vitrieve.search.ranking import read_vectors
from vitrieve.search.request import SearchRequest

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
    whose first image it nearly equals; or it opens a group. An image without the column opens one, too. A group's first
    image depends on nearer images only, so that every page finds the same groups.

    Returns:
        Groups in the order of their first images; in each, the images met until then, in order, at most
        ``MAX_GROUP_IMAGES``. Without grouping, every image is a group.
    """
    groups = _Groups(request.group_by, request.offset + request.k + 1, store.info.embedding_dim)
    for hits in levels:
        groups.add(hits, read_vectors(store, hits) if request.is_near_duplicate_grouped and hits else None)
        if groups.is_enough:
            break
    return groups.found


class _Groups:
    def __init__(self, column: str | None, num_wanted: int, embedding_dim: int) -> None:
        self.found: list[list[Hit]] = []
        self._column = column
        self._num_wanted = num_wanted
        self._places: dict[str, int] = {}  # value of the column -> place in found
        self._leaders = np.empty((num_wanted, embedding_dim), np.float32)  # vectors of the groups' first images

    @property
    def is_enough(self) -> bool:
        return len(self.found) == self._num_wanted

    def add(self, hits: Sequence[Hit], vectors: np.ndarray | None) -> None:
        for row, hit in enumerate(hits):
            value = None if self._column is None else hit.record.metadata.get(self._column)
            vector = None if vectors is None else vectors[row]
            place = self._find(value, vector)
            if place is None:
                if self.is_enough:
                    continue
                place = len(self.found)
                self.found.append([])
                if vector is not None:
                    self._leaders[place] = vector
            if len(self.found[place]) < MAX_GROUP_IMAGES:
                self.found[place].append(hit)
            if value is not None:
                self._places.setdefault(value, place)

    def _find(self, value: str | None, vector: np.ndarray | None) -> int | None:
        if value is not None and value in self._places:
            return self._places[value]
        if vector is None or not self.found:
            return None
        similarities = self._leaders[: len(self.found)] @ vector  # (groups,)
        nearest = int(np.argmax(similarities))
        return nearest if similarities[nearest] >= NEAR_DUPLICATE_SIMILARITY else None
