"""What a contest that was begun has results of, and how the sources and methods of a call fit them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from vitrieve.data.sources import resolve_source
from vitrieve.quoting import count_nouns


class ResultKey(NamedTuple):
    """Names one result: the spelling of its source, its method and its seed."""

    data: str
    method: str
    seed: int


def list_results(folder: Path) -> tuple[ResultKey, ...]:
    """List the results below the folder ``results`` of a contest, in the order of their files."""
    keys = []
    for path in sorted(folder.glob("*/*.json")):
        found = json.loads(path.read_text(encoding="utf-8"))
        if "data" in found:  # what came of a single trial has no names
            keys.append(ResultKey(found["data"], found["method"], found["seed"]))
    return tuple(keys)


def choose_spellings(sources: Iterable[str], results: Sequence[ResultKey]) -> tuple[str, ...]:
    """Choose one spelling for each source, under which its results are kept.

    Args:
        sources: Sources of a call, of which some may be the same folder or file in other words.
        results: Results of before.

    Returns:
        The sources in order, each once: as the results spell it, or else as it is first spelled in the call.
    """
    before = {resolve_source(name): name for name in dict.fromkeys(key.data for key in results)}
    chosen: dict[str, str] = {}
    for source in sources:
        place = resolve_source(source)
        is_spelled_so = any(key.data == source for key in results)
        chosen.setdefault(place, source if is_spelled_so else before.get(place, source))
    return tuple(chosen.values())


def describe_unnamed(results: Iterable[ResultKey], named: Iterable[ResultKey]) -> str:
    """Say which results the page leaves out, because a call does not name them; empty where it names all.

    >>> one, other = ResultKey("emoji", "small", 0), ResultKey("emoji", "small", 1)
    >>> describe_unnamed([one, other], [one])
    'the page leaves out 1 result that this call does not name (seed 1); name it again to have it there.'
    """
    known = set(named)
    unnamed = [key for key in results if key not in known]
    if not unnamed:
        return ""
    data, methods, seeds = ({key[column] for key in known} for column in range(3))
    missing = [
        *(f"data {key.data}" for key in unnamed if key.data not in data),
        *(f"method {key.method}" for key in unnamed if key.method not in methods),
        *(f"seed {key.seed}" for key in unnamed if key.seed not in seeds),
    ]
    them = "it" if len(unnamed) == 1 else "them"
    return (
        f"the page leaves out {count_nouns(len(unnamed), 'result', 'results')} that this call does not name "
        f"({', '.join(dict.fromkeys(missing))}); name {them} again to have {them} there."
    )
