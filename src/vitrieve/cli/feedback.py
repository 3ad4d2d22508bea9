"""``vitrieve feedback``: write what people said of the results of an index as a manifest of pairs."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from vitrieve.cli.arguments import Json
from vitrieve.cli.console import print_json, print_result
from vitrieve.errors import DataError
from vitrieve.writing import check_files


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Count the feedback on an index, and export it as pairs for vitrieve train --pairs."""

    index: Annotated[Path, tyro.conf.arg(metavar="DIR")]
    """An index."""
    out: Path | None = None
    """Write the corrections that count as a Parquet file, a row each: kind, image_id, query_id, query, tags, label,
    who, at, fingerprint."""
    json: Json = False


def run(arguments: Arguments) -> int:
    """Count, and write what is asked for."""
    from vitrieve.feedback.events import find_last_words
    from vitrieve.feedback.pairs import write_pairs
    from vitrieve.feedback.store import count_new
    from vitrieve.index.feedback import open_feedback
    from vitrieve.index.store import read_info

    check_files(arguments.out)
    history = open_feedback(arguments.index).read()
    counted = find_last_words(history)
    kinds = Counter(one.kind for one in counted)
    num_new = count_new(history, read_info(arguments.index)[0].fingerprint)
    if arguments.out is not None:
        if not counted:
            raise DataError(f"{arguments.index} has no feedback yet; the search page and POST /feedback take it.")
        write_pairs(counted, arguments.out)
    if arguments.json:
        print_json(
            {
                "num_corrections": len(counted),
                "num_since_training": num_new,
                "kinds": dict(sorted(kinds.items())),
                "out": None if arguments.out is None else str(arguments.out),
            }
        )
        return 0
    listed = ", ".join(f"{count} {kind.replace('_', ' ')}" for kind, count in sorted(kinds.items()))
    print_result(
        f"{len(counted)} corrections{f' ({listed})' if listed else ''}, {num_new} of them since the last training"
    )
    if arguments.out is not None:
        print_result(f"pairs: {arguments.out}")
    return 0
