"""A command: ``vitrieve count --data SOURCE`` counts the pictures of each class."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from vitrieve.cli.arguments import Json
from vitrieve.cli.console import print_json, print_result
from vitrieve.data.sources import read_source


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Count the pictures of each class of a source."""

    data: str
    """A source, such as folder:DIR."""
    at_least: int = 1
    """Smallest number of pictures of a class that is shown."""
    json: Json = False


def run(arguments: Arguments) -> int:
    """Count, and print."""
    dataset = read_source(arguments.data)
    counts = Counter(dataset.label_names[record.label] for record in dataset.records)
    shown = {name: number for name, number in sorted(counts.items()) if number >= arguments.at_least}
    if arguments.json:
        print_json(shown)
    else:
        print_result(*(f"{name}: {number}" for name, number in shown.items()))
    return 0
