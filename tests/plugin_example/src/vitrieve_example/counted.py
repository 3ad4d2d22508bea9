"""A store: vitrieve's exact one, which also writes down how many queries it has answered."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from vitrieve.index.exact import ExactStore
from vitrieve.index.filter import FilterLike
from vitrieve.index.store import Hit


class CountedStore(ExactStore):
    """An exact store with the file ``searches.txt``, a line for each call with its number of queries."""

    def search(self, queries: np.ndarray, k: int, filter: FilterLike = ()) -> list[list[Hit]]:
        """Find the nearest images of every query, as ``VectorStore.search``, and write down their number."""
        found = super().search(queries, k, filter)
        with Path(self._folder, "searches.txt").open("a", encoding="utf-8") as file:
            file.write(f"{len(queries)}\n")
        return found
