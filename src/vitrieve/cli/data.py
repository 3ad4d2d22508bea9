"""``vitrieve data check`` and ``data describe``: what is in a data set and wrong with it, and where to get one."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Annotated

import tyro

from vitrieve.cli.arguments import Exclude, Json, Switch, read_data
from vitrieve.cli.console import print_json, print_result


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Count the images of a data set, and find unreadable and duplicate ones.

    Exit status 1 when a file or folder cannot be read, or one picture is in training and test or has two labels.
    """

    source: Annotated[str | None, tyro.conf.Positional, tyro.conf.arg(metavar="[SOURCE]")] = None
    """The same as --data, as it was spelled before."""
    data: str | None = None
    """NAME:DIR or NAME of `vitrieve data describe`, folder:DIR (a folder per class), table:FILE, or a folder."""
    protocol: str | None = None
    """Which of the source's protocols the roles follow; by default its first."""
    exclude: Exclude = ()
    num_threads: int | None = None
    """Decoding threads; by default one for each core, up to four."""
    json: Switch = False
    """Print one JSON object, with every class, unreadable file and duplicate."""


@dataclass(frozen=True, kw_only=True)
class DescribeArguments:
    """Tell where to get a data set, its layout, license, expected counts and size."""

    name: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="NAME")]
    """grocery, emoji, cub200, sop, inshop, sfm120k, roxford5k, rparis6k, revisitop1m, folder, table, shards or hf."""
    json: Json = False


def run(arguments: Arguments) -> int:
    """Check the data set and print the report; 0 when it is fine, 1 when not."""
    from vitrieve.data.check import check_dataset, format_report, report_to_json
    from vitrieve.data.sources import read_source

    source = read_data(arguments.data, arguments.source)
    dataset = read_source(source, protocol=arguments.protocol, exclude=arguments.exclude)
    report = check_dataset(dataset, num_threads=arguments.num_threads, show_progress=True)
    if arguments.json:
        print_json(report_to_json(report))
    else:
        print_result(*format_report(report).split("\n"))
    return 0 if report.is_fine else 1


def run_describe(arguments: DescribeArguments) -> int:
    """Print the description of a data set."""
    from vitrieve.data.sources import find_description, find_source_folder, format_description, spell_source

    name = arguments.name
    description = find_description(name)
    folder = find_source_folder(name)
    found = None if folder is None else str(folder)
    if arguments.json:
        print_json({"name": name, **asdict(description), "spelling": spell_source(name), "found": found})
    else:
        print_result(*format_description(name, description, spelling=spell_source(name), found=found).split("\n"))
    return 0
