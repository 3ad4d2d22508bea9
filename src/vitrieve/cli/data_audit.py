"""``vitrieve data audit`` reads the flags and prints what to look at; ``curation/audit.py`` finds it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from vitrieve.cli.arguments import DeviceFlag, Exclude, Json, read_data
from vitrieve.cli.console import print_json, print_message, print_result
from vitrieve.cli.files import FileToWrite, write_files
from vitrieve.errors import ConfigError
from vitrieve.quoting import count_nouns, quote_name
from vitrieve.writing import check_files

if TYPE_CHECKING:
    from vitrieve.curation.audit import AuditReport

NUM_SHOWN = 10


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Find probable label errors, copies across splits or classes, overlapping classes and odd pictures.

    Nothing is changed: --apply carries out what a person decided, and writes a table.
    """

    source: Annotated[str | None, tyro.conf.Positional, tyro.conf.arg(metavar="[SOURCE]")] = None
    """The same as --data."""
    data: str | None = None
    """A labeled source: grocery:DIR, folder:DIR (a folder per class), table:FILE, …"""
    protocol: str | None = None
    """Which of the source's protocols the splits follow; by default its first."""
    encoder: str | None = None
    """A run, an encoder folder or a weights name; None: that of --embeddings, without them the default."""
    embeddings: Path | None = None
    """Embeddings of the same source, so that no picture is embedded again."""
    threshold: float | None = None
    """Similarity from which two pictures are copies; None: calibrated on copies of some of the pictures."""
    exclude: Exclude = ()
    html: Path | None = None
    """Write a page in one file, with pictures, to work through; it saves decisions as CSV."""
    csv: Path | None = None
    """Write all findings as CSV, with the columns action (keep, relabel, new, drop) and new_label to fill in."""
    apply: Path | None = None
    """Carry out the decisions in this CSV, and write --out; nothing is looked for."""
    out: Path | None = None
    """With --apply: the corrected table to write, which --data table:FILE reads."""
    device: DeviceFlag = "auto"
    json: Json = False


def run(arguments: Arguments) -> int:
    """Audit the source, or apply decisions to it."""
    from vitrieve.curation.audit import audit
    from vitrieve.curation.pages import write_audit_csv, write_audit_page
    from vitrieve.data.sources import find_source_path

    source = read_data(arguments.data, arguments.source, is_note=False)
    if (arguments.apply is None) != (arguments.out is None):
        raise ConfigError("--apply carries out decisions and --out is the table that they give; give both or none.")
    if arguments.apply is not None and not (arguments.html is None and arguments.csv is None):
        raise ConfigError(
            "--apply looks for nothing: leave out --html and --csv, and audit --data table:FILE of --out afterwards."
        )
    check_files(arguments.html, arguments.csv, arguments.out, read=find_source_path(source))
    if arguments.apply is not None:
        return _apply(source, arguments)
    report = audit(
        source,
        arguments.encoder,
        embeddings=arguments.embeddings,
        threshold=arguments.threshold,
        protocol=arguments.protocol,
        exclude=arguments.exclude,
        device=arguments.device,
    )
    print_message(*report.notes)
    try:
        write_files(
            FileToWrite("page", arguments.html, partial(write_audit_page, report)),
            FileToWrite("table", arguments.csv, partial(write_audit_csv, report)),
        )
    finally:  # what was found took long, whatever became of the files
        _print(report, arguments)
    return 0


def _print(report: AuditReport, arguments: Arguments) -> None:
    if arguments.json:
        print_json(report.to_json())
        return
    print_result(*str(report).split("\n"))
    for error in report.label_errors[:NUM_SHOWN]:
        print_result(f"{error.score:.3f}  {error.image_id}: {error.label}, rather {error.suggested_label}")
    if len(report.label_errors) > NUM_SHOWN:
        more = count_nouns(len(report.label_errors) - NUM_SHOWN, "more label", "more labels")
        print_message(f"and {more}; --html, --csv and --json show all")


def _apply(source: str, arguments: Arguments) -> int:
    from vitrieve.curation.decisions import correct_labels
    from vitrieve.data.sources import read_source

    assert arguments.apply is not None
    assert arguments.out is not None
    dataset = read_source(source, protocol=arguments.protocol, exclude=arguments.exclude)
    table = correct_labels(dataset, arguments.apply, arguments.out)
    if arguments.json:
        print_json({**asdict(table), "out": str(table.out)})
    else:
        print_result(
            f"{table.out}: {table.num_images:,} pictures, {table.num_relabeled:,} with another label, "
            f"{table.num_dropped:,} dropped"
        )
        if table.new_labels:
            print_result(f"new labels: {', '.join(map(quote_name, table.new_labels))}")
        print_message(f"next: vitrieve train small --data table:{table.out} --out RUN")
    return 0
