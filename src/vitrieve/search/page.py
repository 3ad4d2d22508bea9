"""The result of a search as a web page: one file, pictures inside, that needs nothing else."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from vitrieve import __version__
from vitrieve.artifacts import write_bytes_durably
from vitrieve.data.decode import encode_jpeg, read_image_bytes, shrink, to_data_uri
from vitrieve.errors import DecodeError
from vitrieve.index.filter import format_condition, parse_filter
from vitrieve.index.store import VectorStore, find_name
from vitrieve.search.query import read_example
from vitrieve.search.request import Example, SearchAnswer, SearchRequest, SearchResult

THUMBNAIL_PX = 320
"""Longest side: sharp at the 150 to 200 CSS pixels of a card on a dense screen."""
MAX_OTHERS = 4
"""Pictures shown of those behind a result; the others are counted."""
TITLE_KEYS = ("label", "name")
"""Metadata that says what a picture shows, the first present wins."""


def write_search_page(
    path: Path, searches: Iterable[tuple[SearchRequest, SearchAnswer]], *, store: VectorStore
) -> None:
    """Write the page of some searches; its folder is made where needed.

    Args:
        path: HTML file to write.
        searches: What was asked, and what was found.
        store: The index that was searched: its size, encoder and license are named at the foot.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    page = render_search_page(searches, store=store)
    write_bytes_durably(path, page.encode(errors="backslashreplace"))  # a query's name may be no text at all


def render_search_page(searches: Iterable[tuple[SearchRequest, SearchAnswer]], *, store: VectorStore) -> str:
    """Render the page of some searches, as ``write_search_page``; every text in it is escaped."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("vitrieve.search"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    return environment.get_template("search.html").render(
        searches=[_describe_search(request, answer, store) for request, answer in searches],
        num_vectors=store.count(),
        # A folder's name is enough: the page may be shown to others, this machine's paths are not theirs.
        encoder=Path(store.info.encoder_source).name,
        image_size=store.info.image_size,
        license=store.info.license,
        version=__version__,
    )


def find_bar_start(scores: Sequence[float]) -> float:
    """Choose the score at which the bars of a page begin: those of one encoder may all lie between 0.9 and 1.

    >>> [find_bar_start(scores) for scores in ([1.0], [0.97, 0.83], [0.6, 0.05], [-0.2], [])]
    [0.9, 0.8, 0.0, 0.0, 0.0]
    """
    return min(0.9, max(0.0, math.floor(10 * min(scores, default=0.0)) / 10))


def fill_bar(score: float, start: float) -> float:
    """Return how much of a bar from ``start`` to 1 a score fills, in percent.

    >>> [fill_bar(score, 0.8) for score in (0.7, 0.8, 0.85, 1.0, 1.0001)]
    [0.0, 0.0, 25.0, 100.0, 100.0]
    """
    return round(100 * min(max((score - start) / (1 - start), 0.0), 1.0), 1)


def _describe_search(request: SearchRequest, answer: SearchAnswer, store: VectorStore) -> dict[str, Any]:
    plus = [_describe_example(example, "wanted", store) for example in request.plus]
    minus = [_describe_example(example, "not wanted", store) for example in request.minus]
    bar_start = find_bar_start([result.score for result in answer.results])
    return {
        "name": plus[0]["name"],
        "examples": plus + minus,
        "conditions": [format_condition(condition) for condition in parse_filter(request.filter)],
        "group_by": request.group_by,
        "is_match": answer.is_match,
        "threshold": answer.threshold,
        "first_rank": request.offset + 1,
        "has_more": answer.has_more,
        "results": [
            _describe_result(rank, result, bar_start)
            for rank, result in enumerate(answer.results, start=request.offset + 1)
        ],
    }


def _describe_example(example: Example, role: str, store: VectorStore) -> dict[str, Any]:
    """Name and show an example; only files and images of the index have both."""
    shown: dict[str, Any] = {"role": role, "name": "a vector", "picture": None, "box": example.box is not None}
    if example.image_id is not None:
        _, (record,) = store.get([find_name(store, example.image_id)])
        return {**shown, "name": example.image_id, "picture": build_thumbnail(record.path, record.box)}
    if isinstance(example.picture, (str, Path)):
        path = Path(example.picture)
        return {**shown, "name": path.name, "picture": build_thumbnail(path, example.box)}
    if example.picture is not None:
        image = read_example(example)
        return {**shown, "name": "a picture", "picture": encode_thumbnail(image)}
    return shown


def _describe_result(rank: int, result: SearchResult, bar_start: float) -> dict[str, Any]:
    titles = [result.metadata[key] for key in TITLE_KEYS if result.metadata.get(key)]
    title = titles[0] if titles else result.path.name
    return {
        "rank": rank,
        "score": result.score,
        "percent": fill_bar(result.score, bar_start),
        "bar_start": f"{bar_start:g}",
        "image_id": result.image_id,
        "title": title,
        "metadata": [(key, value) for key, value in result.metadata.items() if value not in ("", title)],
        "picture": build_thumbnail(result.path, result.box),
        "others": [build_thumbnail(other.path, other.box) for other in result.others[:MAX_OTHERS]],
        "num_others": len(result.others),
    }


def build_thumbnail(path: Path, box: tuple[float, float, float, float] | None = None) -> str | None:
    """Build a small copy of a picture as a data URI; None when the file is gone or cannot be read.

    Args:
        path: An image file.
        box: The region to show, in pixels; None for all of it.
    """
    try:
        return to_data_uri(shrink(read_image_bytes(path), THUMBNAIL_PX, box))
    except (DecodeError, MemoryError):
        return None


def encode_thumbnail(image: Image.Image) -> str:
    """Turn a picture, which is made smaller, into a data URI."""
    image.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX), Image.Resampling.LANCZOS)
    return to_data_uri(encode_jpeg(image))
