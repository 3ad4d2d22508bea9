"""``vitrieve search``: find the pictures most like given ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from vitrieve.cli.arguments import (
    MAY_BE_EMPTY,
    DeviceFlag,
    Engine,
    IndexEncoder,
    Json,
    MapPaths,
    NumThreads,
    Precision,
    Switch,
    build_requests,
)
from vitrieve.cli.console import print_json, print_message, print_names, print_result
from vitrieve.rerank.names import Reranking
from vitrieve.writing import check_files

if TYPE_CHECKING:
    from vitrieve.search.request import SearchRequest
    from vitrieve.search.searcher import Searcher


Repeatable = tyro.conf.UseAppendAction[tuple[str, ...]]


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Find the pictures most like one or several given ones; each is searched by itself.

    A picture is a file, or id: and the name of an image of the index, or text: and words for it.
    """

    images: Annotated[tuple[str, ...], tyro.conf.Positional, MAY_BE_EMPTY] = ()
    """Pictures to search for."""
    index: Path
    """Folder of the index, made by vitrieve index, sync or up."""
    id: Repeatable = ()
    """Name of an image of the index to search for (as id:NAME); it is not among its own results."""
    text: Repeatable = ()
    """Words to search for (as text:WORDS), in names, files and metadata, and by meaning where the encoder has a text
    part (vitrieve align)."""
    plus: Repeatable = ()
    """One more example of what is wanted, added to every picture searched for; alone, it is what is searched for."""
    minus: Repeatable = ()
    """An example of what is not wanted, added to every picture searched for."""
    box: tuple[float, float, float, float] | None = None
    """Region of the one picture to look at: x_1 y_1 x_2 y_2 in pixels."""
    filter: Repeatable = ()
    """Condition on the metadata: column=value, column=one|another, column!=value, column<5, column>=2026-01-01,
    day=2026 (all of the year)."""
    k: Annotated[int, tyro.conf.arg(aliases=["-k"])] = 10
    """Pictures (or groups) to find for each query."""
    offset: int = 0
    """Results to leave out at the front: the page after -k 10 is --offset 10."""
    group_by: str | None = None
    """Metadata column; of the pictures that share its value only the nearest is a result."""
    near_duplicates: Switch = False
    """Put pictures nearly equal to a nearer result behind it."""
    rerank: Reranking = "auto"
    """Order the first results again, by their neighbors or by parts of the pictures; auto: as the index remembers
    (vitrieve evaluate --rerank auto --index INDEX), else not at all."""
    encoder: IndexEncoder = None
    map_path: MapPaths = ()
    engine: Engine = "auto"
    precision: Precision = "auto"
    device: DeviceFlag = "auto"
    num_threads: NumThreads = None
    html: Path | None = None
    """Write the result as a web page, one file that needs nothing else."""
    json: Json = False
    ids: Switch = False
    """Print only the names of the images found, one a line, for pipes."""
    null: Annotated[bool, tyro.conf.FlagCreatePairsOff, tyro.conf.arg(aliases=["-0"])] = False
    """With --ids: end each name with a NUL character, for xargs -0."""


def run(arguments: Arguments) -> int:
    """Search for every query, print the results, and write the page."""
    from vitrieve.search.searcher import Searcher, parse_path_map

    check_files(arguments.html, is_folder_made=True)
    requests = build_requests(arguments)
    with Searcher.open(
        arguments.index,
        arguments.encoder,
        engine=arguments.engine,
        precision=arguments.precision,
        num_threads=arguments.num_threads,
        device=arguments.device,
        maps=[parse_path_map(text) for text in arguments.map_path],
    ) as searcher:
        _search(searcher, requests, arguments)
    return 0


def _search(searcher: Searcher, requests: Sequence[tuple[str, SearchRequest]], arguments: Arguments) -> None:
    from vitrieve.search.request import answer_to_json, answer_to_text, list_names

    print_message(f"engine: {searcher.encoder.engine} {searcher.encoder.precision}")
    found = [(name, request, searcher.answer(request)) for name, request in requests]
    if arguments.html is not None:
        from vitrieve.serve.views import write_search_page

        write_search_page(arguments.html, [(request, answer) for _, request, answer in found], store=searcher.store)
        print_message(f"result page: {arguments.html}")
    if arguments.json:
        print_json({"queries": [{"query": name, **answer_to_json(answer)} for name, _, answer in found]})
    elif arguments.ids:
        names = list_names([answer for _, _, answer in found], is_one_a_line=not arguments.null)
        print_names(names, end="\0" if arguments.null else "\n")
    else:
        texts = [answer_to_text(name, answer, arguments.offset) for name, _, answer in found]
        print_result(*"\n\n".join(texts).split("\n"))
