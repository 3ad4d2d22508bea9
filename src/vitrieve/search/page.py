"""The result of a search as a web page: one file, pictures inside, that needs nothing else."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from vitrieve import __version__
from vitrieve.data.decode import crop_to_box, decode_image, read_image_bytes
from vitrieve.errors import DecodeError
from vitrieve.index.exact import ExactStore
from vitrieve.search.searcher import SearchResult

THUMBNAIL_PX = 320
"""Longest side: sharp at the 150 to 200 CSS pixels of a card on a dense screen."""
JPEG_QUALITY = 85
TITLE_KEYS = ("label", "name")
"""Metadata that says what a picture shows, the first present wins."""


def write_search_page(path: Path, results: Iterable[tuple[Path, Sequence[SearchResult]]], *, store: ExactStore) -> None:
    """Write the page of some searches; its folder is made where needed.

    Args:
        path: HTML file to write.
        results: Each query's file, and what was found for it.
        store: The index that was searched: its size, encoder and licence are named at the foot.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    page = render_search_page(results, store=store)
    path.write_text(page, encoding="utf-8", errors="backslashreplace")  # a query's name may be no text at all


def render_search_page(results: Iterable[tuple[Path, Sequence[SearchResult]]], *, store: ExactStore) -> str:
    """Render the page of some searches, as ``write_search_page``; every text in it is escaped."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("vitrieve.search"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    return environment.get_template("search.html").render(
        queries=[_describe_query(query, found) for query, found in results],
        num_vectors=len(store),
        # A folder's name is enough: the page may be shown to others, this machine's paths are not theirs.
        encoder=Path(store.encoder_source).name,
        image_size=store.image_size,
        license=store.license,
        version=__version__,
    )


def _describe_query(query: Path, found: Sequence[SearchResult]) -> dict[str, Any]:
    return {
        "name": query.name,
        "picture": build_thumbnail(query),
        "results": [_describe_result(rank, result) for rank, result in enumerate(found, start=1)],
    }


def _describe_result(rank: int, result: SearchResult) -> dict[str, Any]:
    titles = [result.metadata[key] for key in TITLE_KEYS if result.metadata.get(key)]
    title = titles[0] if titles else result.path.name
    return {
        "rank": rank,
        "score": result.score,
        "percent": round(100 * min(max(result.score, 0.0), 1.0), 1),
        "image_id": result.image_id,
        "title": title,
        "metadata": [(key, value) for key, value in result.metadata.items() if value not in ("", title)],
        "picture": build_thumbnail(result.path, result.box),
    }


def build_thumbnail(path: Path, box: tuple[float, float, float, float] | None = None) -> str | None:
    """Build a small copy of a picture as a data URI; None when the file is gone or cannot be read.

    Args:
        path: An image file.
        box: The region to show, in pixels; None for all of it.
    """
    try:
        image = crop_to_box(decode_image(read_image_bytes(path)), box)
    except DecodeError:
        return None
    image.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX), Image.Resampling.LANCZOS)
    jpeg = io.BytesIO()
    image.save(jpeg, format="JPEG", quality=JPEG_QUALITY)
    return "data:image/jpeg;base64," + base64.b64encode(jpeg.getvalue()).decode("ascii")
