"""``vitrieve duplicates`` reads the flags and prints the groups; ``curation/duplicates.py`` finds them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from vitrieve.cli.arguments import DeviceFlag, Exclude, Json, Switch
from vitrieve.cli.console import print_failure, print_json, print_message, print_result
from vitrieve.cli.files import FileToWrite, write_files
from vitrieve.errors import ConfigError, VitrieveError
from vitrieve.quoting import count_nouns
from vitrieve.writing import check_files

if TYPE_CHECKING:
    from vitrieve.curation.acting import Acted
    from vitrieve.curation.duplicates import DuplicateReport

NUM_SHOWN = 20
UNDO_FILE = Path("duplicates_undo.json")


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Find the pictures that are in a collection more than once; only --move-to and --link change anything."""

    collection: Annotated[str | None, tyro.conf.Positional, tyro.conf.arg(metavar="COLLECTION|INDEX")] = None
    """A folder of an index or of embeddings, a folder of pictures, or another source (as table:FILE)."""
    level: Literal["exact", "near", "same-scene"] = "near"
    """exact: the same pixels; near: copies that were cropped, resized, compressed, mirrored, colored, framed or written
    on; same-scene: also pictures that share about half of what they show."""
    threshold: float | None = None
    """Similarity from which two pictures belong together, whatever their pixels are; None: pixels decide about copies,
    and what is enough is calibrated on copies of the collection's own pictures."""
    encoder: str | None = None
    """A run, an encoder folder or a weights name; None: that of the index, and for pictures the default."""
    exclude: Exclude = ()
    html: Path | None = None
    """Write the groups with their pictures as a page in one file."""
    csv: Path | None = None
    """Write a row for each picture of a group."""
    move_to: Path | None = None
    """Move all but the best picture of each group into this folder, whose undo.json puts them back."""
    link: Switch = False
    """Replace files with the same bytes by hard links to the best one, and write --undo-file."""
    undo_file: Path | None = None
    """With --link: the file from which --undo makes files of the links again; None: duplicates_undo.json here."""
    undo: Path | None = None
    """Undo what --move-to or --link did, from the file that it wrote."""
    device: DeviceFlag = "auto"
    json: Json = False


def run(arguments: Arguments) -> int:
    """Find duplicates, write what is asked for, and act only where that is asked for."""
    from vitrieve.curation.acting import check_move_folder, check_undo_file, undo_duplicates
    from vitrieve.curation.duplicates import duplicates
    from vitrieve.data.sources import find_source_path

    _check(arguments)
    if arguments.move_to is not None:
        check_move_folder(arguments.move_to, arguments.collection)
    if arguments.link:
        check_undo_file(arguments.undo_file or UNDO_FILE)
    read = None if arguments.collection is None else find_source_path(arguments.collection)
    check_files(arguments.html, arguments.csv, arguments.undo_file, read=read)
    if arguments.undo is not None:
        return _report_acted(undo_duplicates(arguments.undo), "put back", arguments)
    assert arguments.collection is not None
    report = duplicates(
        arguments.collection,
        arguments.encoder,
        level=arguments.level,
        threshold=arguments.threshold,
        exclude=arguments.exclude,
        device=arguments.device,
    )
    try:
        acted = _write_and_act(report, arguments)
    except (OSError, VitrieveError):
        _print(report, None, arguments)  # what was found took long, whatever became of the files
        raise
    if acted is not None:
        return _report_acted(acted, "linked" if arguments.link else "moved", arguments, report)
    _print(report, None, arguments)
    return 0


def _write_and_act(report: DuplicateReport, arguments: Arguments) -> Acted | None:
    """Write page and table, and move or link where that is asked for; nothing is moved where a file was not written."""
    from vitrieve.curation.acting import link_duplicates, move_duplicates
    from vitrieve.curation.pages import write_duplicates_csv, write_duplicates_page

    write_files(
        FileToWrite("page", arguments.html, partial(write_duplicates_page, report)),
        FileToWrite("table", arguments.csv, partial(write_duplicates_csv, report)),
    )
    if arguments.move_to is not None:
        return move_duplicates(report, arguments.move_to)
    return link_duplicates(report, arguments.undo_file or UNDO_FILE) if arguments.link else None


def _check(arguments: Arguments) -> None:
    if (arguments.collection is None) == (arguments.undo is None):
        raise ConfigError("name a collection or an index, as in vitrieve duplicates INDEX; or --undo FILE alone.")
    written = (arguments.html, arguments.csv, arguments.move_to, arguments.undo_file)
    if arguments.undo is not None and (arguments.link or any(path is not None for path in written)):
        raise ConfigError("--undo looks for nothing: leave out --html, --csv, --move-to, --link and --undo-file.")
    if arguments.link and arguments.move_to is not None:
        raise ConfigError("--move-to and --link are two things to do with duplicates; give one.")
    if arguments.undo_file is not None and not arguments.link:
        instead = "" if arguments.move_to is None else ", and --move-to writes undo.json into its folder"
        raise ConfigError(f"--undo-file belongs to --link{instead}: leave it out.")


def _report_acted(acted: Acted, what: str, arguments: Arguments, report: DuplicateReport | None = None) -> int:
    for name, reason in acted.skipped[:NUM_SHOWN]:
        print_failure(f"not {what}: {name}: {reason}")
    if len(acted.skipped) > NUM_SHOWN:
        print_message(f"and {len(acted.skipped) - NUM_SHOWN} more; --json lists them all")
    if report is not None:
        _print(report, acted, arguments)
    elif arguments.json:
        print_json(acted.to_json())
    if not arguments.json:
        print_result(f"{len(acted.done):,} files {what}, {len(acted.skipped):,} left as they are")
    return 1 if report is None and acted.skipped else 0


def _print(report: DuplicateReport, acted: Acted | None, arguments: Arguments) -> None:
    for image_id, reason in report.failures[:NUM_SHOWN]:
        print_failure(f"unreadable: {image_id}: {reason}")
    if arguments.json:
        print_json({**report.to_json(), **({} if acted is None else {"acted": acted.to_json()})})
        return
    for group in report.groups[:NUM_SHOWN]:
        print_result(f"{group.level}: keep {group.keep}", *(f"    {name}" for name in group.image_ids[1:]))
    if len(report.groups) > NUM_SHOWN:
        more = count_nouns(len(report.groups) - NUM_SHOWN, "more group", "more groups")
        print_message(f"and {more}; --json, --csv and --html show all")
    print_result(str(report))
