"""``vitrieve search``: find the pictures most like given ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from vitrieve.cli.arguments import MapPaths, Switch
from vitrieve.cli.console import print_json, print_message, print_names, print_result
from vitrieve.config import Device
from vitrieve.errors import ConfigError, DataError
from vitrieve.quoting import quote_name
from vitrieve.runtime.choice import EngineChoice, PrecisionChoice

if TYPE_CHECKING:
    from vitrieve.search.request import Box, Example, SearchAnswer, SearchRequest, SearchResult
    from vitrieve.search.searcher import Searcher


ID_PREFIX = "id:"
"""A file whose name begins so is written ``./id:…``."""


def read_example_word(word: str, box: Box | None = None) -> Example:
    """Make an example of a word.

    Args:
        word: ``PICTURE`` or ``id:IMAGE_ID``.
        box: The region of the picture to look at.

    Raises:
        ConfigError: A box on an image of the index, or no box.
    """
    from vitrieve.search.request import Example

    if word.startswith(ID_PREFIX):
        return Example(image_id=word.removeprefix(ID_PREFIX), box=box)
    return Example(picture=Path(word), box=box)


Repeatable = tyro.conf.UseAppendAction[tuple[str, ...]]


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Find the pictures most like one or several given ones; each is searched by itself.

    A picture is a file, or id: and the name of an image of the index.
    """

    images: tyro.conf.Positional[tuple[str, ...]] = ()
    """Pictures to search for."""
    index: Path
    """Folder written by vitrieve index."""
    id: Repeatable = ()
    """Name of an image of the index to search for (as id:NAME); it is not among its own results."""
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
    rerank: Literal["none", "average_query_expansion", "alpha_query_expansion", "k_reciprocal"] = "none"
    """Order the results again by what their neighbours say."""
    encoder: str | None = None
    """Where the index's encoder is now; None: where it was when the index was made."""
    map_path: MapPaths = ()
    """OLD=NEW: photographs that lay below OLD when the index was made lie below NEW here, as in a container."""
    engine: EngineChoice = "auto"
    """What computes; auto: the fastest that is installed (vitrieve[fast])."""
    precision: PrecisionChoice = "auto"
    """Of the matrix products; auto: bf16 where engine and processor have it, else fp32."""
    device: Device = "auto"
    """Where to compute; auto: on a GPU where torch sees one."""
    num_threads: int | None = None
    """CPU threads; None: all cores."""
    html: Path | None = None
    """Write the result as a web page, one file that needs nothing else."""
    json: Switch = False
    """Print one JSON object."""
    ids: Switch = False
    """Print only the names of the images found, one a line, for pipes."""
    null: Annotated[bool, tyro.conf.FlagCreatePairsOff, tyro.conf.arg(aliases=["-0"])] = False
    """With --ids: end each name with a NUL character, for xargs -0."""


def run(arguments: Arguments) -> int:
    """Search for every query, print the results, and write the page."""
    requests = build_requests(arguments)
    from vitrieve.search.mapped import parse_path_map
    from vitrieve.search.searcher import Searcher

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
    print_message(f"engine: {searcher.encoder.engine} {searcher.encoder.precision}")
    found = [(name, request, searcher.answer(request)) for name, request in requests]
    if arguments.html is not None:
        from vitrieve.search.page import write_search_page

        write_search_page(arguments.html, [(request, answer) for _, request, answer in found], store=searcher.store)
        print_message(f"result page: {arguments.html}")
    if arguments.json:
        print_json({"queries": [{"query": name, **answer_to_json(answer)} for name, _, answer in found]})
    elif arguments.ids:
        _print_ids([result for _, _, answer in found for result in answer.results], is_null=arguments.null)
    else:
        texts = [_to_text(name, answer, arguments.offset) for name, _, answer in found]
        print_result(*"\n\n".join(texts).split("\n"))


def build_requests(arguments: Arguments) -> list[tuple[str, SearchRequest]]:
    """Make the requests, each with what to call it.

    Raises:
        ConfigError: No query, or flags that do not belong together.
    """
    from vitrieve.search.request import SearchRequest

    if arguments.json and arguments.ids:
        raise ConfigError("--json and --ids are two ways of printing; give one.")
    if arguments.null and not arguments.ids:
        raise ConfigError("--null (-0) separates the names that --ids prints; give both.")
    words = [*arguments.images, *(ID_PREFIX + image_id for image_id in arguments.id)]
    if not words and not arguments.plus:
        raise ConfigError("no query: name one or more pictures, as in vitrieve search --index INDEX PICTURE.")
    if arguments.box is not None and len(words) != 1:
        raise ConfigError(f"--box is a region of one picture; {len(words)} are searched for.")
    plus, minus = (tuple(map(read_example_word, some)) for some in (arguments.plus, arguments.minus))
    queries = [(word, (read_example_word(word, arguments.box), *plus)) for word in words]
    return [
        (
            name,
            SearchRequest(
                plus=examples,
                minus=minus,
                k=arguments.k,
                offset=arguments.offset,
                filter=arguments.filter,
                group_by=arguments.group_by,
                is_near_duplicate_grouped=arguments.near_duplicates,
                reranking=arguments.rerank,
            ),
        )
        for name, examples in queries or [(" + ".join(arguments.plus), plus)]
    ]


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


def _to_text(name: str, answer: SearchAnswer, offset: int) -> str:
    lines = [quote_name(name)]
    if answer.is_match is False:
        lines.append(f"      probably not in this collection: nothing reaches the threshold {answer.threshold:.4f}")
    for rank, result in enumerate(answer.results, start=offset + 1):
        others = f"  (+{len(result.others)})" if result.others else ""
        lines.append(f"{rank:>4}  {result.score:.4f}  {quote_name(result.image_id)}{others}")
    return "\n".join(lines)


def _print_ids(results: Sequence[SearchResult], *, is_null: bool) -> None:
    broken = [result.image_id for result in results if not is_null and len(result.image_id.splitlines()) > 1]
    if broken:
        raise DataError(f"the name {broken[0]!r} holds a line break; print the names with -0, for xargs -0.")
    print_names([result.image_id for result in results], end="\0" if is_null else "\n")
