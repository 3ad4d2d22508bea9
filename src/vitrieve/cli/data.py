"""``vitrieve data check``: what is in a data set, and what is wrong with it. Next file: ``weights.py``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import tyro

from vitrieve.cli.arguments import Switch
from vitrieve.cli.console import print_json


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Count the images of a data set, and find unreadable and duplicate ones.

    Exit status 1 when an image is unreadable, or the same in training and test.
    """

    source: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="SOURCE")]
    """grocery:DIR, emoji, folder:DIR (a folder per class), manifest:FILE (CSV or Parquet), or a folder."""
    protocol: str | None = None
    """Which of the source's protocols the roles follow; by default its first."""
    num_threads: int | None = None
    """Decoding threads; by default one for each core, up to four."""
    json: Switch = False
    """Print one JSON object, with every class, unreadable file and duplicate."""


def run(arguments: Arguments) -> int:
    """Check the data set and print the report; 0 when it is fine, 1 when not."""
    from vitrieve.data.check import check_dataset, format_report, report_to_json
    from vitrieve.data.sources import read_source

    dataset = read_source(arguments.source, protocol=arguments.protocol)
    report = check_dataset(dataset, num_threads=arguments.num_threads, show_progress=True)
    if arguments.json:
        print_json(report_to_json(report))
    else:
        print(format_report(report))
    return 0 if report.is_fine else 1
