"""What the pages tell of the whole index: pictures that show its variety, and its facets; kept until it changes."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import TypeVar, cast

from vitrieve.data.records import ImageRecord
from vitrieve.index.store import VectorStore
from vitrieve.search.facets import Facet, find_facets
from vitrieve.search.ranking import read_present
from vitrieve.search.variety import choose_varied

T = TypeVar("T")

NUM_SAMPLES = 12
NUM_SAMPLED_FROM = 2000
"""Images that the samples are chosen from."""
MAX_IMAGES = 300_000
"""Images up to which the page has facets: counting reads the texts of all."""
NUM_VALUES = 50
"""Values of a facet that are listed."""
MAX_KEPT = 64


class Overview:
    """The overview of one index.

    Args:
        store: The index.
    """

    def __init__(self, store: VectorStore) -> None:
        self._store = store
        self._kept: OrderedDict[Hashable, object] = OrderedDict()
        self._lock = threading.Lock()

    def find_samples(self) -> list[ImageRecord]:
        """Find images that show the variety of the index, the same ones as long as it does not change; in a worker."""
        return self._keep("samples", self._choose_samples)

    def find_facets(self, conditions: tuple[str, ...]) -> tuple[Facet, ...]:
        """Find the facets of the images that meet conditions; none where there are too many to count; in a worker.

        Raises:
            InputError: A condition that does not fit its column.
        """
        return self._keep(("facets", conditions), lambda: self._count(conditions))

    def _count(self, conditions: tuple[str, ...]) -> tuple[Facet, ...]:
        if self._store.count() > MAX_IMAGES:
            return ()
        return find_facets(self._store, filter=conditions, num_values=NUM_VALUES)

    def _choose_samples(self) -> list[ImageRecord]:
        vectors, records = read_present(self._store, self._store.sample_ids(NUM_SAMPLED_FROM))
        return [records[row] for row in choose_varied(vectors, NUM_SAMPLES)]

    def _keep(self, key: Hashable, find: Callable[[], T]) -> T:
        """Find something once for each state of the index."""
        key = (self._store.read_stamp(), key)
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return cast(T, self._kept[key])
        found = find()
        with self._lock:
            self._kept[key] = found
            while len(self._kept) > MAX_KEPT:
                self._kept.popitem(last=False)
        return found
