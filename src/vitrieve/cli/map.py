"""``vitrieve map`` reads the flags and says what was made; ``mapping/collection_map.py`` makes the map."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from vitrieve.cli.arguments import Json
from vitrieve.cli.console import print_json, print_message, print_result
from vitrieve.writing import check_files


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Make a map of a collection: every picture is a point, and what looks alike lies together.

    The map is kept beside the index, and computed anew only when the index or --seed changed.
    """

    index: Annotated[Path, tyro.conf.arg(metavar="DIR")]
    """An index, or embeddings."""
    html: Path | None = None
    """Write the map as a page in one file: colors, lasso, thumbnails, and the groups as a list."""
    parquet: Path | None = None
    """Write the points with names and metadata as another Parquet file, for embedding-atlas."""
    seed: int = 0
    """Seed of the layout."""
    json: Json = False


def run(arguments: Arguments) -> int:
    """Make the map, and write what is asked for."""
    from vitrieve.mapping.collection_map import map_collection, write_points
    from vitrieve.serve.map_page import write_map_page

    check_files(arguments.html, arguments.parquet, is_folder_made=True)
    made = map_collection(arguments.index, seed=arguments.seed, show_progress=True)
    if arguments.html is not None:
        write_map_page(made, arguments.html)
        print_message(f"page: {arguments.html}")
    if arguments.parquet is not None:
        write_points(made, arguments.parquet)
        print_message(f"points: {arguments.parquet}")
    if arguments.json:
        print_json(made.to_json())
    else:
        print_result(str(made))
    return 0
