"""An answer as plain JSON values, and as text for a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vitrieve.errors import DataError
from vitrieve.quoting import quote_name
from vitrieve.search.request import SearchAnswer, SearchResult


def answer_to_json(answer: SearchAnswer) -> dict[str, Any]:
    """Turn an answer into plain JSON values."""
    return {
        "results": [_result_to_json(result) for result in answer.results],
        "is_match": answer.is_match,
        "threshold": answer.threshold,
        "has_more": answer.has_more,
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
    lines = [quote_name(name)]
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
