"""What can be asked of a collection, and the answer: as values, as JSON and as text for a terminal."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from vitrieve.data.decode import Picture
from vitrieve.errors import ConfigError, DataError
from vitrieve.index.filter import FilterLike, parse_filter
from vitrieve.quoting import quote_name
from vitrieve.rerank.names import Reranking

Box = tuple[float, float, float, float]
"""``(x_1, y_1, x_2, y_2)`` in pixels, after EXIF orientation."""
MAX_TEXT_LENGTH = 1000
"""Characters of a text to search for: some 250 tokens of English, which is what text encoders read."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Example:
    """One example of what is wanted, or not wanted: exactly one of a picture, an image of the index, a vector, a text.

    Attributes:
        picture: A picture from outside.
        image_id: An image of the index; its stored vector is used.
        vector: ``(E,)`` float32 embedding of the index's encoder.
        text: Words for it; at most ``MAX_TEXT_LENGTH`` characters.
        box: The region of ``picture`` to look at; None for all of it.
    """

    picture: Picture | None = None
    image_id: str | None = None
    vector: np.ndarray | None = None
    text: str | None = None
    box: Box | None = None

    def __post_init__(self) -> None:
        """Refuse none or several at once."""
        if sum(part is not None for part in (self.picture, self.image_id, self.vector, self.text)) != 1:
            raise ConfigError("an example is one picture, one image_id, one vector or one text.")
        if self.text is not None:
            check_text(self.text)
        if self.box is not None and self.picture is None:
            raise ConfigError("a box belongs to a picture; an image_id, a vector and a text have none.")
        if self.box is not None and not _is_box(self.box):
            raise ConfigError(
                f"the box {self.box} is none; give x_1, y_1, x_2, y_2 in pixels, x_1 < x_2 and y_1 < y_2."
            )


@dataclass(frozen=True, kw_only=True)
class SearchRequest:
    """One search.

    Attributes:
        plus: Examples of what is wanted; of several the mean direction counts.
        minus: Examples of what is not wanted; may be empty.
        k: Results to return, at least 1 (groups, where results are grouped).
        offset: Results to leave out at the front: the pages of an answer are stable and do not overlap.
        filter: Conditions on the metadata, in any form that ``parse_filter`` reads: ``"year>=2020"``, or several.
        group_by: Metadata column; of the images that share its value only the nearest is a result, the others
            stand behind it. One that is empty is shared by none. None: no groups.
        is_near_duplicate_grouped: Images nearly equal to a nearer result stand behind it.
        reranking: Method that orders the first results again; ``auto``: the one that the index remembers, where it
            does and the request has what it compares, else none.
    """

    plus: tuple[Example, ...]
    minus: tuple[Example, ...] = ()
    k: int = 10
    offset: int = 0
    filter: FilterLike = ()
    group_by: str | None = None
    is_near_duplicate_grouped: bool = False
    reranking: Reranking = "auto"

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        if not self.plus:
            raise ConfigError("a search needs an example of what is wanted.")
        object.__setattr__(self, "filter", parse_filter(self.filter))
        if self.k < 1:
            raise ConfigError(f"k is {self.k}; it must be 1 or more.")
        if self.offset < 0:
            raise ConfigError(f"offset is {self.offset}; it must be 0 or more.")

    @property
    def has_text(self) -> bool:
        """Say whether an example is a text."""
        return any(example.text is not None for example in (*self.plus, *self.minus))


@dataclass(frozen=True, kw_only=True)
class SearchResult:
    """One picture found.

    Attributes:
        image_id: Its name in the collection.
        score: Cosine similarity to the query, in [-1, 1]; higher is nearer. Where words alone were compared, the share
            of the most that they could score, in (0, 1).
        path: File of the picture when it was embedded.
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
        results: Nearest first (in the order of the re-ranking or of the fusion with words, where there was one).
        is_match: Verdict whether the nearest result is likely the wanted thing; None: the index has no threshold.
        threshold: The score that decides it; None: the index has none.
        has_more: Flag that a further page would hold results.
        timings_seconds: Time for ``decode``, ``encode`` and ``search``.
        reranking: Method that ordered the first results again, or ``none``.
        ways: Ways in which the examples were compared: ``pictures`` (image vectors), ``text_encoder``, and ``words``
            (with names, files and metadata).
    """

    results: tuple[SearchResult, ...]
    is_match: bool | None = None
    threshold: float | None = None
    has_more: bool = False
    timings_seconds: Mapping[str, float] = field(default_factory=dict)
    reranking: str = "none"
    ways: tuple[str, ...] = ()


def check_text(text: str) -> None:
    """Refuse a text that cannot be searched for.

    Raises:
        ConfigError: It is empty, too long, or no text: half a character, or a character that is not printed.
    """
    if not text.strip():
        raise ConfigError("the text to search for is empty; say in words what is wanted.")
    if len(text) > MAX_TEXT_LENGTH:
        raise ConfigError(
            f"the text to search for has {len(text):,} characters; at most {MAX_TEXT_LENGTH:,} are read: say it in "
            "fewer words."
        )
    broken = next(
        (letter for letter in text if unicodedata.category(letter) in ("Cs", "Cc") and letter not in "\t\r\n"), None
    )
    if broken is not None:
        raise ConfigError(f"the text to search for holds {broken!r}, which is no part of a text; leave it out.")


def parse_box(text: str | None) -> Box | None:
    """Read ``x_1,y_1,x_2,y_2``; None where there is no text.

    Raises:
        ConfigError: Anything else.

    >>> parse_box("0,0,10.5,20")
    (0.0, 0.0, 10.5, 20.0)
    """
    if not text:
        return None
    try:
        return to_box([float(part) for part in text.split(",")])
    except ValueError:
        raise ConfigError(
            f"{text[:100]!r} is no box; write x_1,y_1,x_2,y_2 in pixels, with x_1 < x_2 and y_1 < y_2."
        ) from None


def to_box(numbers: Sequence[float]) -> Box:
    """Check the four sides of a box.

    Raises:
        ConfigError: Another count, numbers that no picture has, or sides in the wrong order.
    """
    if not _is_box(numbers):
        raise ConfigError(f"{list(numbers)} is no box; give x_1, y_1, x_2, y_2 with x_1 < x_2 and y_1 < y_2.")
    x_1, y_1, x_2, y_2 = numbers
    return (x_1, y_1, x_2, y_2)


def _is_box(box: Sequence[float]) -> bool:
    # Beyond what a picture can have, rounding to whole pixels would make numbers of many digits.
    has_sides = len(box) == 4 and all(math.isfinite(side) and abs(side) < 1e9 for side in box)
    return has_sides and box[0] < box[2] and box[1] < box[3]


def answer_to_json(answer: SearchAnswer) -> dict[str, Any]:
    """Turn an answer into plain JSON values."""
    return {
        "results": [_result_to_json(result) for result in answer.results],
        "is_match": answer.is_match,
        "threshold": answer.threshold,
        "has_more": answer.has_more,
        "reranking": answer.reranking,
        "ways": list(answer.ways),
        "timings_seconds": {name: round(seconds, 6) for name, seconds in answer.timings_seconds.items()},
    }


def _result_to_json(result: SearchResult) -> dict[str, Any]:
    return {
        "image_id": result.image_id,
        "score": result.score,
        "path": str(result.path),
        "metadata": dict(result.metadata),
        "box": None if result.box is None else list(result.box),
        "others": [_result_to_json(other) for other in result.others],
    }


def answer_to_text(name: str, answer: SearchAnswer, offset: int) -> str:
    """Lay an answer out as plain text, a line for each result, under the name of its query."""
    lines = [quote_name(name) + (f"  ({', '.join(answer.ways)})" if set(answer.ways) - {"pictures"} else "")]
    if not answer.results and answer.ways == ("words",):
        lines.append("      nothing: no name, file or metadata of an image has one of these words")
    if answer.is_match is False:
        lines.append(f"      probably not in this collection: nothing reaches the threshold {answer.threshold:.4f}")
    for rank, result in enumerate(answer.results, start=offset + 1):
        others = f"  (+{len(result.others)})" if result.others else ""
        lines.append(f"{rank:>4}  {result.score:.4f}  {quote_name(result.image_id)}{others}")
    return "\n".join(lines)


def list_names(answers: Sequence[SearchAnswer], *, is_one_a_line: bool) -> list[str]:
    """List the names of the images found, in order.

    Args:
        answers: Any number.
        is_one_a_line: The names are printed one a line, so that none may hold a line break.

    Raises:
        DataError: A name holds one.
    """
    names = [result.image_id for answer in answers for result in answer.results]
    broken = next((name for name in names if is_one_a_line and len(name.splitlines()) > 1), None)
    if broken is not None:
        raise DataError(f"the name {broken!r} holds a line break; print the names with -0, for xargs -0.")
    return names
