"""What can be asked of a collection, and the answer."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from vitrieve.data.decode import Picture
from vitrieve.errors import ConfigError
from vitrieve.index.filter import FilterLike, parse_filter

Box = tuple[float, float, float, float]
"""``(x_1, y_1, x_2, y_2)`` in pixels, after EXIF orientation."""
Reranking = Literal["none", "average_query_expansion", "alpha_query_expansion", "k_reciprocal"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Example:
    """One example of what is wanted, or not wanted: exactly one of a picture, an image of the index, a vector.

    Attributes:
        picture: A picture from outside.
        image_id: An image of the index; its stored vector is used.
        vector: ``(E,)`` float32 embedding of the index's encoder.
        box: The region of ``picture`` to look at; None for all of it.
    """

    picture: Picture | None = None
    image_id: str | None = None
    vector: np.ndarray | None = None
    box: Box | None = None

    def __post_init__(self) -> None:
        """Refuse none or several at once."""
        if sum(part is not None for part in (self.picture, self.image_id, self.vector)) != 1:
            raise ConfigError("an example is one picture, one image_id or one vector.")
        if self.box is not None and self.picture is None:
            raise ConfigError("a box belongs to a picture; an image_id and a vector have none.")
        if self.box is not None and not _is_box(self.box):
            raise ConfigError(
                f"the box {self.box} is none; give x_1, y_1, x_2, y_2 in pixels, x_1 < x_2 and y_1 < y_2."
            )


@dataclass(frozen=True, kw_only=True)
class SearchRequest:
    """One question.

    Attributes:
        plus: What is wanted: one example, or several whose mean direction counts.
        minus: What is not wanted; may be empty.
        k: Results to return, at least 1 (groups, where results are grouped).
        offset: Results to leave out at the front: the pages of an answer are stable and do not overlap.
        filter: Conditions on the metadata, in any form that ``parse_filter`` reads: ``"year>=2020"``, or several.
        group_by: Metadata column; of the images that share its value only the nearest is a result, the others
            stand behind it. None: no groups.
        is_near_duplicate_grouped: Images nearly equal to a nearer result stand behind it.
        reranking: How the first results are ordered again.
    """

    plus: tuple[Example, ...]
    minus: tuple[Example, ...] = ()
    k: int = 10
    offset: int = 0
    filter: FilterLike = ()
    group_by: str | None = None
    is_near_duplicate_grouped: bool = False
    reranking: Reranking = "none"

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        if not self.plus:
            raise ConfigError("a search needs an example of what is wanted.")
        object.__setattr__(self, "filter", parse_filter(self.filter))
        if self.k < 1:
            raise ConfigError(f"k is {self.k}; it must be 1 or more.")
        if self.offset < 0:
            raise ConfigError(f"offset is {self.offset}; it must be 0 or more.")


@dataclass(frozen=True, kw_only=True)
class SearchResult:
    """One picture found.

    Attributes:
        image_id: Its name in the collection.
        score: Cosine similarity to the query, in [-1, 1]; higher is nearer.
        path: Where the picture was when it was embedded.
        metadata: Further columns of its source, as text.
        box: The region of the picture that was embedded; None for all of it.
        others: Images of its group (or nearly equal ones) that are further from the query, nearest first.
    """

    image_id: str
    score: float
    path: Path
    metadata: Mapping[str, str]
    box: Box | None = None
    others: tuple[SearchResult, ...] = ()


@dataclass(frozen=True, kw_only=True)
class SearchAnswer:
    """What was found.

    Attributes:
        results: Nearest first (in the order of the re-ranking, where one was asked for).
        is_match: Whether the nearest result is likely the wanted thing at all; None: the index has no threshold.
        threshold: The score that decides it; None: the index has none.
        has_more: Whether a further page would hold results.
        timings_seconds: Time for ``decode``, ``encode`` and ``search``.
    """

    results: tuple[SearchResult, ...]
    is_match: bool | None = None
    threshold: float | None = None
    has_more: bool = False
    timings_seconds: Mapping[str, float] = field(default_factory=dict)


def _is_box(box: Box) -> bool:
    return len(box) == 4 and all(map(math.isfinite, box)) and box[0] < box[2] and box[1] < box[3]
