"""``vitrieve search``: find the pictures most like a given one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from vitrieve.cli.arguments import Switch
from vitrieve.cli.console import print_json, print_message
from vitrieve.errors import ConfigError

if TYPE_CHECKING:
    from vitrieve.search.searcher import SearchResult


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Find the pictures most like one or several given ones; each is searched by itself."""

    images: tyro.conf.Positional[tuple[Path, ...]]
    """Pictures to search for."""
    index: Path
    """Folder written by vitrieve index."""
    k: Annotated[int, tyro.conf.arg(aliases=["-k"])] = 10
    """Pictures to find for each query."""
    encoder: str | None = None
    """Where the index's encoder is now; None: where it was when the index was made."""
    num_threads: int | None = None
    """CPU threads; None: all cores."""
    html: Path | None = None
    """Write the result as a web page, one file that needs nothing else."""
    json: Switch = False
    """Print one JSON object."""


def run(arguments: Arguments) -> int:
    """Search for every query, print the results, and write the page."""
    if not arguments.images:
        raise ConfigError("no query: name one or more pictures, as in vitrieve search --index INDEX PICTURE.")
    from vitrieve.search.searcher import Searcher

    searcher = Searcher.open(arguments.index, arguments.encoder, num_threads=arguments.num_threads)
    results = [(image, searcher.search(image, arguments.k)) for image in arguments.images]
    if arguments.html is not None:
        from vitrieve.search.page import write_search_page

        write_search_page(arguments.html, results, store=searcher.store)
        print_message(f"result page: {arguments.html}")
    if arguments.json:
        print_json({"queries": [_to_json(image, found) for image, found in results]})
    else:
        print("\n\n".join(_to_text(image, found) for image, found in results))
    return 0


def _to_json(image: Path, found: list[SearchResult]) -> dict[str, Any]:
    return {
        "query": str(image),
        "results": [
            {
                "image_id": result.image_id,
                "score": result.score,
                "path": str(result.path),
                "metadata": dict(result.metadata),
            }
            for result in found
        ],
    }


def _to_text(image: Path, found: list[SearchResult]) -> str:
    lines = [f"{rank:>4}  {result.score:.4f}  {result.image_id}" for rank, result in enumerate(found, start=1)]
    return "\n".join([str(image), *lines])
