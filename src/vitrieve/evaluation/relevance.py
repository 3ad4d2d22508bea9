"""Who is right, wrong or left out in a query's ranking: by labels (``Relevance``) or by lists (``Judgements``).

Used by the metrics, the histograms and the galleries of the report, so that all three mean the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from vitrieve.errors import InputError
from vitrieve.similarity import IntArray

NO_ROW = -1
"""As a query's gallery row: the query is not in the gallery."""
NO_GROUP = -1
"""As a junk group: the image is junk for nobody."""


@dataclass(frozen=True, kw_only=True)
class Exclusions:
    """Gallery images that a query's ranking leaves out.

    Attributes:
        query_rows: ``(Q,)`` the gallery row that is the query's own image, or ``NO_ROW``; None: no query is in the
            gallery. Not to be given without a gallery: then every query leaves out its own row.
        query_junk: ``(Q,)`` int64 group of each query, or ``NO_GROUP``. Gallery images of its group are junk for it.
        gallery_junk: ``(G,)`` group of each gallery image. Not to be given without a gallery: ``query_junk`` serves.
    """

    query_rows: npt.ArrayLike | None = None
    query_junk: npt.ArrayLike | None = None
    gallery_junk: npt.ArrayLike | None = None


class RelevanceRule(Protocol):
    """Who is right and who is left out, query by query; all other gallery images are wrong."""

    def relevant_rows(self, query: int) -> IntArray:
        """Return the gallery rows to be found; those that are excluded too do not count."""

    def excluded_rows(self, query: int) -> IntArray:
        """Return the gallery rows that are neither right nor wrong."""

    def shown_junk_rows(self, query: int) -> IntArray:
        """Return the excluded rows that a picture of the ranking shows nevertheless, as junk."""


@dataclass(frozen=True, kw_only=True)
class Judgements:
    """Right and ignored gallery images listed query by query, as the revisited benchmarks do.

    Attributes:
        positive_rows: For each query its gallery rows to be found.
        ignored_rows: For each query the gallery rows that its ranking leaves out; none of them is positive.
        num_positives: ``(Q,)`` images to be found, among them those without a gallery row (not readable).
    """

    positive_rows: tuple[IntArray, ...]
    ignored_rows: tuple[IntArray, ...]
    num_positives: IntArray

    def relevant_rows(self, query: int) -> IntArray:
        """Return the gallery rows to be found."""
        return self.positive_rows[query]

    def excluded_rows(self, query: int) -> IntArray:
        """Return the gallery rows that are ignored."""
        return self.ignored_rows[query]

    def shown_junk_rows(self, query: int) -> IntArray:
        """Return the ignored rows: a look at a ranking asks whether they are ignored rightly."""
        return self.ignored_rows[query]


class Relevance:
    """Which gallery rows are relevant to a query, and which its ranking leaves out.

    Rows are looked up in sorted arrays, so that a query costs its own list, not a comparison with the whole gallery.
    """

    def __init__(
        self, query_labels: npt.ArrayLike, gallery_labels: npt.ArrayLike | None, exclusions: Exclusions | None = None
    ) -> None:
        """Check labels and exclusions, and sort the gallery by label and by junk group.

        Args:
            query_labels: ``(Q,)`` integers.
            gallery_labels: ``(G,)`` integers; None: the queries are the gallery, and leave themselves out by row.
            exclusions: What rankings leave out.

        Raises:
            InputError: Arrays that are no integers, do not fit each other, or have no meaning without a gallery.
        """
        exclusions = exclusions or Exclusions()
        self.query_labels = as_labels(query_labels, "query labels")
        own_rows, gallery_junk = exclusions.query_rows, exclusions.gallery_junk
        if gallery_labels is None:
            if own_rows is not None or gallery_junk is not None:
                raise InputError("query_rows and gallery_junk describe a separate gallery; leave them out without one.")
            gallery_labels, own_rows = self.query_labels, np.arange(len(self.query_labels))
            gallery_junk = exclusions.query_junk
        self.gallery_labels = as_labels(gallery_labels, "gallery labels")
        self._own_rows = self._read_own_rows(own_rows)
        self._relevant = _Groups(self.query_labels, self.gallery_labels)
        self._junk = self._read_junk(exclusions.query_junk, gallery_junk)

    def relevant_rows(self, query: int) -> IntArray:
        """Return the gallery rows with the query's label, among them its own and junk."""
        return self._relevant.rows(query)

    def excluded_rows(self, query: int) -> IntArray:
        """Return the gallery rows that are the query's own or junk for it; a row may come twice."""
        own = self._own_rows[query : query + 1]
        if own[0] == NO_ROW:
            own = own[:0]
        if self._junk is None or self._junk.query_values[query] == NO_GROUP:
            return own
        return np.concatenate([own, self._junk.rows(query)])

    def shown_junk_rows(self, query: int) -> IntArray:
        """Return nothing: junk by metadata may be a large share of the gallery, and would hide what is found."""
        return self._own_rows[:0]

    def _read_own_rows(self, query_rows: npt.ArrayLike | None) -> IntArray:
        num_queries, num_gallery = len(self.query_labels), len(self.gallery_labels)
        if query_rows is None:
            return np.full(num_queries, NO_ROW, dtype=np.int64)
        rows = as_labels(query_rows, "query_rows", num_queries)
        if rows.min(initial=0) < NO_ROW or rows.max(initial=NO_ROW) >= num_gallery:
            raise InputError(
                f"query_rows lie in [{rows.min()}, {rows.max()}]; expected {NO_ROW} or a row of the gallery, "
                f"below {num_gallery}."
            )
        return rows

    def _read_junk(self, query_junk: npt.ArrayLike | None, gallery_junk: npt.ArrayLike | None) -> _Groups | None:
        if query_junk is None and gallery_junk is None:
            return None
        if query_junk is None or gallery_junk is None:
            raise InputError("query_junk and gallery_junk belong together; give both or neither.")
        return _Groups(
            as_labels(query_junk, "query_junk", len(self.query_labels)),
            as_labels(gallery_junk, "gallery_junk", len(self.gallery_labels)),
        )


class _Groups:
    """For every query, the gallery rows with its value."""

    def __init__(self, query_values: IntArray, gallery_values: IntArray) -> None:
        self.query_values = query_values
        self._order = np.argsort(gallery_values, kind="stable")
        self._starts = np.searchsorted(gallery_values, query_values, side="left", sorter=self._order)
        self._stops = np.searchsorted(gallery_values, query_values, side="right", sorter=self._order)

    def rows(self, query: int) -> IntArray:
        found: IntArray = self._order[self._starts[query] : self._stops[query]]
        return found


def as_labels(values: npt.ArrayLike, name: str, length: int | None = None) -> IntArray:
    """Check that ``values`` is a vector of integers and return it as int64, never by way of floats.

    Args:
        values: Integers that int64 holds.
        name: What the message calls them.
        length: Values expected; None for any number.

    Raises:
        InputError: Another shape or type, or an integer beyond int64.

    >>> as_labels([2**53, 2**53 + 1], "labels").tolist()
    [9007199254740992, 9007199254740993]
    """
    given = np.asarray(values)
    if given.shape == (0,):  # NumPy calls an empty list float64
        given = given.astype(np.int64)
    if given.ndim != 1 or given.dtype.kind not in "iu" or len(given) != (len(given) if length is None else length):
        expected = "a vector of integers" if length is None else f"{length} integers"
        raise InputError(f"{name} have shape {given.shape} and type {given.dtype}; expected {expected}.")
    if given.dtype.kind == "u" and given.max(initial=0) > np.iinfo(np.int64).max:
        raise InputError(f"{name} reach {given.max()}, which is beyond int64; number the classes from 0.")
    return given.astype(np.int64)
