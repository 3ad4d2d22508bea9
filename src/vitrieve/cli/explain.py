"""``vitrieve explain``: which patches of a query and a result match, as a picture.

A command of its own, not a flag of ``search``: it explains any result, not only those of a page, and prints its own
data.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import tyro

from vitrieve.cli.arguments import DeviceFlag, IndexEncoder, MapPaths, NumThreads, Switch, read_example_word
from vitrieve.cli.console import print_json, print_result
from vitrieve.errors import ConfigError, DataError
from vitrieve.quoting import quote_name
from vitrieve.writing import check_files, replacing_durably

if TYPE_CHECKING:
    from vitrieve.search.explain import Explanation
    from vitrieve.search.request import Example
    from vitrieve.search.searcher import Searcher

SUFFIXES = (".png", ".jpg", ".jpeg")
JPEG_QUALITY = 90


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Show why an image of the index matches a picture: both side by side, matching patches joined by lines."""

    image: tyro.conf.Positional[str]
    """The query: a picture's file, or id: and the name of an image of the index."""
    index: Path
    """Folder of the index, made by vitrieve index, sync or up."""
    out: Path
    """Picture to write: .png or .jpg."""
    result: str | None = None
    """Name of the image of the index that is explained; None: the nearest."""
    box: tuple[float, float, float, float] | None = None
    """Region of the query to look at: x_1 y_1 x_2 y_2 in pixels."""
    encoder: IndexEncoder = None
    map_path: MapPaths = ()
    device: DeviceFlag = "auto"
    num_threads: NumThreads = None
    json: Switch = False
    """Print one JSON object, with the matches in pixels of both pictures."""


def run(arguments: Arguments) -> int:
    """Explain, write the picture, and list the matches."""
    if arguments.out.suffix.lower() not in SUFFIXES:
        raise ConfigError(f"--out {arguments.out}: the picture is written as .png or .jpg; end its name so.")
    check_files(arguments.out, is_folder_made=True)
    example = read_example_word(arguments.image, arguments.box)
    from vitrieve.search.explain import explain_result
    from vitrieve.search.searcher import Searcher, parse_path_map

    with Searcher.open(
        arguments.index,
        arguments.encoder,
        num_threads=arguments.num_threads,
        device=arguments.device,
        maps=[parse_path_map(text) for text in arguments.map_path],
    ) as searcher:
        result = _find_nearest(searcher, example) if arguments.result is None else arguments.result
        explanation = explain_result(searcher, example, result)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    picture_format = "PNG" if arguments.out.suffix.lower() == ".png" else "JPEG"
    with replacing_durably(arguments.out) as temporary:
        explanation.overlay.save(temporary, format=picture_format, quality=JPEG_QUALITY)
    if arguments.json:
        matches = [
            {"query": match.query_point, "result": match.result_point, "similarity": match.similarity}
            for match in explanation.matches
        ]
        print_json({"query": arguments.image, "image_id": result, "out": str(arguments.out), "matches": matches})
    else:
        print_result(*_to_lines(arguments, result, explanation))
    return 0


def _find_nearest(searcher: Searcher, example: Example) -> str:
    from vitrieve.search.request import SearchRequest

    results = searcher.answer(SearchRequest(plus=(example,), k=1)).results
    if not results:
        raise DataError("the index holds no other image that could be explained.")
    return results[0].image_id


def _to_lines(arguments: Arguments, result: str, explanation: Explanation) -> list[str]:
    lines = [f"{arguments.out}: {quote_name(arguments.image)} and {quote_name(result)}"]
    for match in explanation.matches:
        (x_1, y_1), (x_2, y_2) = match.query_point, match.result_point
        lines.append(f"  {match.similarity:.3f}  ({x_1:.0f}, {y_1:.0f}) - ({x_2:.0f}, {y_2:.0f})")
    return lines
