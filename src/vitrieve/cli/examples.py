"""What is searched for, as the command line spells it: a picture's file, or ``id:`` and the name of an image."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from vitrieve.errors import ConfigError

if TYPE_CHECKING:
    from vitrieve.cli.search import Arguments
    from vitrieve.search.request import Box, Example, SearchRequest

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
